"""The table of jobs: columns, order, colours, width, and what a program reads."""

import csv
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdist.errors import UsageError
from hpcdist.jobs.table import (
    COLUMNS,
    choose_columns,
    find_column,
    format_jobs,
    format_parsable_header,
    judge,
    measure,
    parsable_formatter,
    parse_since,
    parse_states,
    parse_users,
    sort_jobs,
)
from hpcdist.records.efficiency import Efficiency
from hpcdist.text import clean

HALF_USED = Efficiency(
    job_id="101",
    name="train",
    user="ada",
    state="COMPLETED",
    wall_time_s=3600,
    time_limit_s=7200,
    cpu_efficiency=0.905,
    memory_efficiency=0.5,
    memory_used_bytes=4 * 1024**3,
    memory_requested_bytes=8 * 1024**3,
    source="sacct",
)
UNKNOWN = Efficiency(job_id="102", source="sacct")


def rows(jobs, text=None, **options):
    return [re.split(r" {2,}", line) for line in format_jobs(jobs, choose_columns(text), **options)]


def parsable(job, text=None):
    return parsable_formatter(choose_columns(text))(job)


def test_each_job_is_a_line_under_the_headings():
    assert rows([HALF_USED], "job,name,state,elapsed,time,cpu,mem,memused") == [
        ["JOB", "NAME", "STATE", "ELAPSED", "TIME%", "CPU%", "MEM%", "MEM USED"],
        ["101", "train", "COMPLETED", "01:00:00", "50.0%", "90.5%", "50.0%", "4.00 GB"],
    ]


def test_an_unknown_figure_is_a_dash_in_the_table_and_nothing_in_fields():
    assert rows([UNKNOWN], "job,state,elapsed,cpu,mem,gpu,memused")[1] == ["102", *["-"] * 6]
    assert parsable(UNKNOWN, "job,state,elapsed,cpu,mem,gpu,memused") == "102||||||"


def test_a_measured_zero_is_not_a_dash():
    idle = Efficiency(job_id="1", cpu_efficiency=0.0, wall_time_s=0)
    assert rows([idle], "job,elapsed,cpu")[1] == ["1", "00:00:00", "0.0%"]
    assert parsable(idle, "job,elapsed,cpu") == "1|0|0"


def test_columns_stay_aligned():
    lines = format_jobs([HALF_USED, UNKNOWN], choose_columns("job,state,elapsed,cpu"))
    assert lines == [
        "JOB  STATE       ELAPSED   CPU%",
        "101  COMPLETED  01:00:00  90.5%",
        "102  -                 -      -",
    ]


def test_a_peak_is_never_shown_as_an_efficiency():
    peak = Efficiency(job_id="1", gpus=2, extra={"gres/gpuutil": "187"}, source="sacct")
    everything = ",".join(column.key for column in COLUMNS)
    assert rows([peak], "job,gpu")[1] == ["1", "-"]
    assert "187" not in "\n".join(format_jobs([peak], choose_columns(everything)))
    assert "187" not in parsable(peak, everything)


def test_an_estimate_is_marked_and_explained():
    estimate = Efficiency(job_id="1", memory_efficiency=0.4, memory_used_bytes=1024, memory_is_estimate=True)
    lines = format_jobs([estimate], choose_columns("job,mem,memused"))
    assert lines[1].split() == ["1", "~40.0%", "~1.00", "KB"]
    assert "estimate" in lines[2]
    assert len(format_jobs([HALF_USED], choose_columns("job,mem,memused"))) == 2


def test_an_array_s_task_and_a_component_are_named_as_people_name_them():
    assert rows([Efficiency(job_id="7", array_job_id="5_2")], "job")[1] == ["5_2"]
    assert rows([Efficiency(job_id="7", het_job_id="6+1")], "job")[1] == ["6+1"]


def test_gpus_have_a_column_only_where_there_are_some():
    assert "gpu" not in [column.key for column in choose_columns(None, gpus=False)]
    assert "gpu" in [column.key for column in choose_columns(None, gpus=True)]
    assert "gpu" in [column.key for column in choose_columns("+gpu", gpus=False)]


def test_columns_are_chosen_or_added():
    assert [column.key for column in choose_columns("job,state,cpu")] == ["job", "state", "cpu"]
    added = [column.key for column in choose_columns("+user,gpus")]
    assert added == [*[column.key for column in choose_columns(None)], "user", "gpus"]
    assert [column.key for column in choose_columns("cpu, CPU ,cpu")] == ["cpu"]


@pytest.mark.parametrize(
    ("word", "key"),
    [("JobID", "job"), ("CPUEff", "cpu"), ("MemEff", "mem"), ("wall_time_s", "elapsed"), ("Cpu%", "cpu")],
)
def test_columns_have_the_names_of_other_programs_too(word, key):
    assert find_column(word).key == key


@pytest.mark.parametrize(
    ("word", "meant"), [("stat", "state"), ("elasped", "elapsed"), ("mme", "mem"), ("nodlist", "nodelist")]
)
def test_an_unknown_column_is_answered_with_the_nearest(word, meant):
    with pytest.raises(UsageError) as error:
        choose_columns(f"job,{word}")
    assert f"did you mean {meant}?" in error.value.hint


def test_sorting_puts_unknown_figures_last_either_way():
    low, high = Efficiency(job_id="1", cpu_efficiency=0.2), Efficiency(job_id="2", cpu_efficiency=0.9)
    none = Efficiency(job_id="3")
    assert [one.job_id for one in sort_jobs([none, high, low], "cpu")] == ["1", "2", "3"]
    assert [one.job_id for one in sort_jobs([none, low, high], "-cpu")] == ["2", "1", "3"]


def test_job_ids_are_sorted_as_numbers():
    jobs = [Efficiency(job_id=str(n), array_job_id=name) for n, name in enumerate(["10_2", "9_11", "9_2", "100_0"])]
    assert [one.array_job_id for one in sort_jobs(jobs, "job")] == ["9_2", "9_11", "10_2", "100_0"]


@pytest.mark.parametrize(
    ("key", "figures", "verdict"),
    [
        ("cpu", {"cpu_efficiency": 0.79}, "bad"),
        ("cpu", {"cpu_efficiency": 0.8}, "good"),
        ("cpu", {"cpu_efficiency": 0.1, "gpus": 1}, None),
        ("gpu", {"gpu_efficiency": 0.49, "gpus": 1}, "bad"),
        ("gpu", {"gpu_efficiency": 0.5, "gpus": 1}, "good"),
        ("mem", {"memory_efficiency": 0.34}, "bad"),
        ("mem", {"memory_efficiency": 0.35}, "good"),
        ("mem", {"memory_efficiency": 0.81}, "weak"),
        ("mem", {"memory_efficiency": 1.01}, "bad"),
        ("time", {"wall_time_s": 19.0, "time_limit_s": 100.0}, "bad"),
        ("time", {"wall_time_s": 20.0, "time_limit_s": 100.0}, "good"),
        ("cpu", {"cpu_efficiency": 0.1, "live": True}, None),
        ("cpu", {}, None),
        ("state", {"state": "TIMEOUT"}, "bad"),
        ("state", {"state": "COMPLETED"}, "good"),
    ],
)
def test_thresholds(key, figures, verdict):
    assert judge(find_column(key), Efficiency(job_id="1", **figures)) == verdict


def test_colours_change_nothing_but_the_colour():
    jobs, columns = [HALF_USED, UNKNOWN], choose_columns(None)
    coloured = format_jobs(jobs, columns, colour=True)
    assert any("\x1b[32m" in line for line in coloured)
    assert [re.sub(r"\x1b\[[0-9]*m", "", line) for line in coloured] == format_jobs(jobs, columns)
    assert "\x1b" not in "".join(format_jobs(jobs, columns))


NASTY = st.text(st.characters(exclude_categories=()), max_size=40)


@given(width=st.integers(1, 130), name=NASTY, user=NASTY)
def test_no_line_is_wider_than_the_terminal(width, name, user):
    job = Efficiency(job_id="1234567_89", name=name, user=user, state="OUT_OF_MEMORY", memory_is_estimate=True)
    for line in format_jobs([job, HALF_USED], choose_columns("+user,nodelist,memused"), width=width):
        assert measure(line) <= width


def test_a_narrow_terminal_shortens_names_then_leaves_out_the_least_important():
    long = Efficiency(job_id="1", name="a-very-long-name-of-a-job", state="COMPLETED", wall_time_s=1, user="ada")
    columns = choose_columns("job,name,user,state,elapsed")
    assert format_jobs([long], columns, width=46)[1].split() == ["1", "a-very-long-n…", "ada", "COMPLETED", "00:00:01"]
    assert format_jobs([long], columns, width=26)[0].split() == ["JOB", "STATE", "ELAPSED"]
    assert format_jobs([long], columns, width=9)[0].split() == ["JOB"]


@given(name=NASTY, user=NASTY, state=NASTY)
def test_fields_can_be_read_back_whatever_a_name_holds(name, user, state):
    columns = choose_columns("job,name,user,state,cpu")
    line = parsable_formatter(columns)(Efficiency(job_id="1", name=name, user=user, state=state, cpu_efficiency=0.25))
    assert line.isprintable()
    assert len(line.split("|")) == len(columns)
    assert line.startswith("1|")
    assert line.endswith("|0.25")


@given(name=NASTY)
def test_nothing_in_a_table_moves_the_cursor(name):
    for line in format_jobs([Efficiency(job_id="1", name=name)], choose_columns("job,name")):
        assert line.isprintable()


def test_fields_are_base_units_under_names_that_say_so():
    job = Efficiency(
        job_id="1",
        wall_time_s=90061,
        cpu_time_s=1.25,
        cpu_efficiency=1 / 3,
        memory_used_bytes=12345678901,
        started_at_s=1790000000.0,
    )
    columns = choose_columns("job,elapsed,cputime,cpu,memused,started")
    (row,) = csv.DictReader([format_parsable_header(columns), parsable_formatter(columns)(job)], delimiter="|")
    assert row == {
        "job_id": "1",
        "wall_time_s": "90061",
        "cpu_time_s": "1.25",
        "cpu_efficiency": "0.333333",
        "memory_used_bytes": "12345678901",
        "started_at_s": "1790000000",
    }


def test_wide_and_combining_characters_are_measured_as_shown():
    assert (measure("abc"), measure("日本"), measure("e\u0301")) == (3, 4, 1)


def test_clean_text_is_left_alone():
    assert clean("naïve 日本 <b>") == "naïve 日本 <b>"
    assert clean("a\x1b[31mb\nc") == "a?[31mb?c"


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("2d", "now-2days"),
        ("3h", "now-3hours"),
        ("30min", "now-30minutes"),
        ("1w", "now-1weeks"),
        ("now-2days", "now-2days"),
        ("today", "today"),
        ("2026-01-31T14:00", "2026-01-31T14:00"),
        ("013126", "013126"),
        ("14:30", "14:30"),
    ],
)
def test_times_reach_sacct_in_its_own_words(text, asked):
    assert parse_since(text) == asked


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2", "-1d", "2d; rm", "now -- 1", "--allusers", "2026-01-31\n", "１d"]
)
def test_other_times_are_refused(text):
    with pytest.raises(UsageError):
        parse_since(text + ("x" if text.endswith("\n") else ""))


def test_states_are_words_or_codes():
    assert parse_states("failed,TO,oom") == {"FAILED", "TIMEOUT", "OUT_OF_MEMORY"}
    with pytest.raises(UsageError) as error:
        parse_states("complete")
    assert "COMPLETED" in error.value.hint


@pytest.mark.parametrize("text", ["", "-x", "a b", "a,", "a;b", "a\x00"])
def test_what_is_no_user_s_name_reaches_no_command(text):
    with pytest.raises(UsageError):
        parse_users(text)
