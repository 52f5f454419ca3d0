"""sacct rows folded into records: rows a real Slurm 22.05.8 printed, and rows of other releases made from docs."""

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdist.errors import ParseError, UsageError
from hpcdist.records.efficiency import Efficiency
from hpcdist.slurm.sacct import iter_sacct, parse_sacct
from hpcdist.slurm.sacct_query import DELIMITER, FIELDS, TIME_ENVIRONMENT, batch_job_ids, check_job_id, sacct_arguments
from hpcdist.slurm.seff import format_seff, parse_seff

DATA = Path(__file__).parents[1] / "data" / "slurm-22.05"
CAPTURES = sorted(DATA.glob("*.sacct"))
SITUATIONS = (DATA / "situations.rows").read_bytes().decode()
KIB, MIB = 1024, 1024**2


def row(**cells: str) -> str:
    """A row of our own format; the job's row of a plain finished job unless told otherwise."""
    plain = {
        "JobID": "7",
        "JobIDRaw": "7",
        "Cluster": "c",
        "User": "alice",
        "State": "COMPLETED",
        "ExitCode": "0:0",
        "Submit": "100",
        "Start": "200",
        "End": "210",
        "ElapsedRaw": "10",
        "TotalCPU": "00:08.000",
        "AllocCPUS": "1",
        "NNodes": "1",
        "AllocTRES": "billing=1,cpu=1,mem=1G,node=1",
    }
    return DELIMITER.join((plain | cells).get(field, "") for field in FIELDS)


def step(**cells: str) -> str:
    job = cells.pop("JobID", "7")
    return row(**({"JobID": f"{job}.0", "JobIDRaw": f"{job}.0", "User": "", "NTasks": "1"} | cells))


def one(*rows: str) -> Efficiency:
    (found,) = parse_sacct(rows)
    return found


def situation(job_id: str) -> Efficiency:
    (found,) = (job for job in parse_sacct(SITUATIONS) if job.job_id == job_id)
    return found


# Against genuine seff


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_figures_are_those_of_genuine_seff(path: Path) -> None:
    (genuine,) = parse_seff(path.with_suffix(".seff").read_text())
    (found,) = (job for job in parse_sacct(path.read_text()) if job.job_id == genuine.job_id)
    same = ("array_job_id", "user", "group", "state", "exit_code", "nodes", "cores", "cores_per_node", "extra")
    for name in (*same, "core_walltime_s", "wall_time_s", "memory_is_estimate"):
        assert getattr(found, name) == getattr(genuine, name), name
    # seff rounds CPU time to whole seconds before it divides; memory it prints to two decimals of its unit.
    assert found.cpu_time_s == pytest.approx(genuine.cpu_time_s, abs=0.5)
    assert found.memory_used_bytes == pytest.approx(genuine.memory_used_bytes, abs=0.0051 * MIB)
    assert found.memory_efficiency == pytest.approx(genuine.memory_efficiency, abs=0.000051)
    assert found.memory_requested_bytes == pytest.approx(genuine.memory_requested_bytes, rel=0.0033)


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_printed_as_genuine_seff_prints_it(path: Path) -> None:
    genuine = path.with_suffix(".seff").read_text()
    job_id = parse_seff(genuine)[0].job_id
    (found,) = (job for job in parse_sacct(path.read_text()) if job.job_id == job_id)
    # Not in sacct's rows: what memory was asked per, and (in these captures) the cluster; and CPU time is not rounded.
    expected = re.sub(
        r" \(\S+ MB/node\)|^Cluster: .*\n|[0-9.]+%(?= of .* core-walltime)", "", genuine, flags=re.MULTILINE
    )
    printed = re.sub(r"^Cluster: .*\n|[0-9.]+%(?= of .* core-walltime)", "", format_seff(found), flags=re.MULTILINE)
    assert printed == expected


def test_cpu_time_keeps_microseconds_of_all_steps() -> None:
    (found,) = parse_sacct((DATA / "two-node.sacct").read_text())
    assert found.cpu_time_s == 10.602
    assert found.cpu_efficiency == pytest.approx(10.602 / 52)


def test_memory_is_that_of_the_largest_step() -> None:
    (found,) = parse_sacct((DATA / "two-steps.sacct").read_text())
    assert found.memory_used_bytes == 306256 * KIB


def test_delimiter_of_others_in_the_name() -> None:
    (found,) = parse_sacct((DATA / "pipe-in-name.sacct").read_text())
    assert found.name == "a|b c"


# Situations captured on a real cluster with our own arguments


def test_array_tasks_are_records_of_their_own() -> None:
    tasks = [job for job in parse_sacct(SITUATIONS) if (job.array_job_id or "").startswith("26_")]
    assert [(job.job_id, job.array_job_id) for job in tasks] == [
        ("35", "26_2"),
        ("36", "26_3"),
        ("37", "26_4"),
        ("26", "26_5"),
    ]
    assert tasks[0].memory_used_bytes == 43737088


def test_components_of_a_heterogeneous_job() -> None:
    first, second = situation("27"), situation("28")
    assert (first.het_job_id, second.het_job_id) == ("27+0", "27+1")
    assert (first.memory_requested_bytes, second.memory_requested_bytes) == (60 * MIB, 70 * MIB)


def test_pending() -> None:
    job = situation("187")
    assert (job.state, job.live, job.exit_code, job.wall_time_s, job.cpu_time_s) == ("PENDING", False, None, None, None)
    assert (job.started_at_s, job.ended_at_s, job.submitted_at_s) == (None, None, 1795264414)
    assert (job.nodes, job.memory_requested_bytes) == (2, 100 * MIB)  # what was asked for
    assert situation("188").array_job_id == "188_[2-5]"


def test_running() -> None:
    job = situation("189")
    assert (job.state, job.live, job.wall_time_s, job.ended_at_s) == ("RUNNING", True, 12, None)
    assert (job.cpu_time_s, job.cpu_efficiency, job.memory_used_bytes) == (None, None, None)


def test_cancelled_before_it_started() -> None:
    job = situation("31")
    assert (job.state, job.wall_time_s, job.started_at_s, job.node_list) == ("CANCELLED", 0, None, None)
    assert (job.cpu_time_s, job.cpu_efficiency, job.memory_used_bytes) == (None, None, None)


def test_exit_code_and_steps_too_short_to_be_sampled() -> None:
    job = situation("32")
    assert (job.state, job.exit_code, job.nodes, job.cores, job.cores_per_node) == ("FAILED", 3, 2, 3, 1)
    assert (job.cpu_time_s, job.memory_used_bytes, job.memory_requested_bytes) == (0.023, None, 150 * MIB)


def test_all_memory_of_the_node_and_gpus() -> None:
    job = situation("33")
    assert (job.memory_requested_bytes, job.gpus, job.node_list) == (16000 * MIB, 2, "n[1,4]")


def test_requeued_runs_are_kept_and_added_up() -> None:
    job = situation("34")
    assert (job.state, job.wall_time_s, [run.state for run in job.earlier_runs]) == ("COMPLETED", 8, ["REQUEUED"])
    assert sum(run.wall_time_s for run in (*job.earlier_runs, job)) == 11
    assert sum(run.cpu_time_s for run in (*job.earlier_runs, job)) == pytest.approx(0.363 + 0.352)


def test_unequal_tasks_are_summed_not_multiplied() -> None:
    job = situation("190")
    assert (job.memory_used_bytes, job.memory_is_estimate) == (137199616, False)
    # 113512448 is the larger task, 68599808 the mean of both.
    assert job.extra["The task which had the largest memory consumption"].startswith("differs by 165.47%")


def test_name_with_delimiter_and_line_end() -> None:
    assert situation("25").name == "ab c|d"


def test_streamed_records_are_the_same() -> None:
    assert sorted(iter_sacct(SITUATIONS.splitlines(keepends=True)), key=lambda job: int(job.job_id)) == sorted(
        parse_sacct(SITUATIONS), key=lambda job: int(job.job_id)
    )


# Rows made for what the cluster above cannot show


def test_largest_task_times_tasks_is_an_estimate() -> None:
    job = one(row(), step(MaxRSS="100K", NTasks="4"))
    assert (job.memory_used_bytes, job.memory_is_estimate) == (400 * KIB, True)


def test_gathering_switched_off_is_unknown_not_zero() -> None:
    job = one(row(TotalCPU="00:00:00"), step(TotalCPU="00:00:00"))
    assert (job.cpu_time_s, job.cpu_efficiency, job.memory_used_bytes) == (None, None, None)


def test_a_measured_zero_stays() -> None:
    assert one(row(TotalCPU="00:00:00"), step(TRESUsageInTot="cpu=00:00:00,mem=500K")).cpu_time_s == 0


@pytest.mark.parametrize(
    ("requested", "size_bytes", "per"),
    [("4Gn", 8 * 1024 * MIB, "node"), ("2000Mc", 16000 * MIB, "core"), ("4G", 4096 * MIB, None), ("0n", None, "node")],
)
def test_memory_request_before_and_since_21_08(requested: str, size_bytes: int | None, per: str | None) -> None:
    job = one(row(ReqMem=requested, NNodes="2", AllocCPUS="8", AllocTRES="cpu=8,node=2"))
    assert (job.memory_requested_bytes, job.memory_per) == (size_bytes, per)


def test_a_size_that_was_not_set_is_unknown() -> None:
    """As a job that was submitted a moment ago has it."""
    job = one(row(State="PENDING", ReqMem="18446744073709551616.00M", ReqTRES="", AllocTRES="", AllocCPUS="0"))
    assert (job.memory_requested_bytes, job.cores) == (None, None)
    job = one(row(AllocTRES="mem=18446744073709551615"), step(TRESUsageInTot="mem=18446744073709551614"))
    assert (job.memory_requested_bytes, job.memory_used_bytes) == (None, None)


@pytest.mark.parametrize(
    ("tres", "gpus"),
    [("gres/gpu=4,gres/gpu:a100=4", 4), ("gres/gpu:a100=2,gres/gpu:v100=1", 3), ("cpu=4,gres/shard=2", None)],
)
def test_gpus(tres: str, gpus: int | None) -> None:
    assert one(row(AllocTRES=tres)).gpus == gpus


def test_gpu_peak_is_no_efficiency() -> None:
    job = one(row(), step(TRESUsageInTot="gres/gpumem=1000M,gres/gpuutil=180,mem=1M"))
    assert (job.gpu_efficiency, job.gpu_memory_used_bytes) == (None, 1000 * MIB)
    assert job.extra["gres/gpuutil"] == "180"


@pytest.mark.parametrize(
    ("limit", "seconds"), [("90", 5400), ("UNLIMITED", None), ("Partition_Limit", None), ("", None)]
)
def test_time_limit(limit: str, seconds: int | None) -> None:
    assert one(row(TimelimitRaw=limit)).time_limit_s == seconds


def test_signal_and_canceller() -> None:
    job = one(row(State="CANCELLED by 1000", ExitCode="0:15"))
    assert (job.state, job.exit_code, job.extra) == ("CANCELLED", 0, {"Signal": "15"})


def test_local_times_without_the_environment() -> None:
    job = one(row(Start="2026-11-21T03:32:31", End="2026-11-21T03:32:44"))
    assert job.started_at_s is not None
    assert job.ended_at_s == job.started_at_s + 13


def test_reused_id_keeps_the_last_job() -> None:
    old, new = row(Submit="100", State="REQUEUED", User="bob"), row(Submit="900")
    job = one(old, new)
    assert (job.submitted_at_s, job.earlier_runs) == (900, ())
    assert len(list(iter_sacct([old, new]))) == 2


def test_finished_job_is_no_earlier_run() -> None:
    assert one(row(Submit="100"), row(Submit="900")).earlier_runs == ()


@pytest.mark.parametrize("state", ["REQUEUED", "PREEMPTED", "NODE_FAIL"])
def test_runs_are_chained_in_any_order_of_rows(state: str) -> None:
    job = one(row(Submit="900"), row(Submit="100", State=state), row(Submit="500", State=state))
    assert [run.submitted_at_s for run in job.earlier_runs] == [100, 500]


def test_job_that_waits_after_a_requeue_has_no_wall_clock() -> None:
    job = one(row(State="PREEMPTED"), row(Submit="900", State="PENDING", ElapsedRaw="0"))
    assert (job.state, job.wall_time_s) == ("PENDING", None)


def test_name_cannot_carry_escapes() -> None:
    assert one(row(JobName="\x1b[31mred\x1b]0;t\x07\u202e")).name == "red"


def test_undecodable_name_can_be_written() -> None:
    job = one(row(JobName=b"caf\xe9".decode(errors="surrogateescape")))
    assert msgspec.json.encode(job)


def test_name_that_looks_like_a_row_is_harmless_under_a_delimiter_nobody_knows() -> None:
    fake = row(JobID="8", JobIDRaw="8")
    secret = "5f1c"
    text = secret.join([*row().split(DELIMITER)[:-1], f"mine\n{fake}"])
    (job,) = parse_sacct(text, delimiter=secret)
    assert job.job_id == "7"


def test_header_in_any_order_with_any_delimiter() -> None:
    text = "JobID|JobName|State|ElapsedRaw|JobIDRaw|AllocCPUS\n7|a|b\nc|COMPLETED|10|7|4\n7.0|x|COMPLETED|10|7.0|4\n"
    job = one(*text.split("\n"))
    assert (job.name, job.cores, job.core_walltime_s, job.state) == ("a|b c", 4, 40, "COMPLETED")


# Files that somebody made without hpcdist's fields


def test_plain_sacct_is_read_with_what_it_has() -> None:
    """The fields that sacct prints when none are named."""
    header = "JobID|JobName|Partition|Account|AllocCPUS|State|ExitCode"
    job = one(header, "7|a|main|x|4|FAILED|3:0", "7.batch|batch||x|4|FAILED|3:0")
    assert (job.job_id, job.name, job.partition, job.state, job.exit_code) == ("7", "a", "main", "FAILED", 3)
    assert (job.cores, job.live) == (4, False)
    assert {job.wall_time_s, job.cpu_time_s, job.memory_used_bytes, job.time_limit_s, job.nodes} == {None}


def test_durations_in_words_are_read_as_well() -> None:
    header = "JobIDRaw|State|Elapsed|Timelimit|TotalCPU|NCPUS|AllocNodes|ReqMem|MaxRSS|NTasks|Start|End"
    rows = ["7|COMPLETED|1-00:00:10|2-00:00:00|12:00:05|2|1|4Gn|||2026-11-20T00:00:00|2026-11-21T00:00:10",
            "7.0|COMPLETED|1-00:00:10||12:00:05|2|1|4Gn|2G|1|2026-11-20T00:00:00|2026-11-21T00:00:10"]  # fmt: skip
    job = one(header, *rows)
    assert (job.wall_time_s, job.time_limit_s, job.cpu_time_s) == (86_410, 172_800, 43_205)
    assert (job.cores, job.nodes, job.cpu_efficiency) == (2, 1, 0.25)  # 43205 / (2 * 86410)
    assert (job.memory_efficiency, job.memory_is_estimate) == (0.5, False)
    assert job.ended_at_s - job.started_at_s == 86_410


@pytest.mark.parametrize(("limit", "seconds"), [("UNLIMITED", None), ("Partition_Limit", None), ("00:10:00", 600)])
def test_a_time_limit_in_words(limit: str, seconds: int | None) -> None:
    assert one("JobID|State|Timelimit", f"7|COMPLETED|{limit}").time_limit_s == seconds


def test_without_the_number_of_tasks_only_a_batch_step_s_memory_is_known() -> None:
    header = "JobID|State|MaxRSS"
    assert one(header, "7|COMPLETED|", "7.batch|COMPLETED|100K").memory_used_bytes == 100 * KIB
    assert one(header, "7|COMPLETED|", "7.batch|COMPLETED|100K", "7.0|COMPLETED|900K").memory_used_bytes is None


def test_a_running_job_lives_even_without_its_end() -> None:
    assert one("JobID|State|Elapsed", "7|RUNNING|00:10").live


@pytest.mark.parametrize(
    "lines", [["7|a|main|x|4|FAILED|3:0"], ["State|JobID", "FAILED|7"], ["JobID|ExitCode", "7|0:0"]]
)
def test_a_file_without_what_is_needed_says_what_that_is(lines: list[str]) -> None:
    with pytest.raises(ParseError) as caught:
        parse_sacct(lines, "|")
    assert "State is needed" in caught.value.hint


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["slurm_load_jobs error"], "line 1"),
        (["<html>"], "line 1"),
        ([step()], "step without its job"),
        ([row(), step(JobID="8")], "step without its job"),
        ([row()[:40]], "line 1"),
        ([row(JobID="7_[\x1b]0;t\x07]")], "line 1"),
        ([row(JobID="7_[\udcff]")], "line 1"),
        ([row(TotalCPU="ages")], "'ages'"),
        ([row(Start="soon")], "'soon'"),
        ([row(), step(MaxRSS="much")], "'much'"),
        (["JobID|JobName|ElapsedRaw"], "lacks State"),
        (["JobID|JobName|JobIDRaw|State|ElapsedRaw", "7|a"], "cut short"),
        (["JobID|JobIDRaw|JobName|State|ElapsedRaw", "7", "\udcff|7|a|COMPLETED|5"], "line 2"),
    ],
)
def test_anything_else_is_an_error(lines: list[str], named: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_sacct(lines)
    assert named in caught.value.message


def test_no_rows_no_records() -> None:
    assert parse_sacct("") == []
    assert parse_sacct([]) == []


CELLS = st.text(max_size=12) | st.from_regex(r"[0-9:.KMG=,/a-z_\[\]+-]{0,20}")


@given(
    st.text()
    | st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, CELLS)), max_size=4).map(
        lambda rows: "\n".join(row(**cells) for cells in rows)
    )
)
def test_no_text_breaks_it(text: str) -> None:
    try:
        found = parse_sacct(text)
    except ParseError:
        return
    assert msgspec.json.decode(msgspec.json.encode(found), type=list[Efficiency]) == found


# The question


def test_arguments() -> None:
    assert sacct_arguments(["12", "13_4"]) == [
        "--parsable2",
        "--noheader",
        "--noconvert",
        "--duplicates",
        "--delimiter=\x1f",
        f"--format={','.join(FIELDS).replace(',Group,', ',GID,')}",
        "--jobs=12,13_4",
    ]
    assert FIELDS[-1] == "JobName"
    assert TIME_ENVIRONMENT == {"SLURM_TIME_FORMAT": "%s"}


@pytest.mark.parametrize(
    ("asked", "jobs"),
    [
        ("5_[2-4]", "5_2,5_3,5_4"),
        ("5_[1,7-9:2%3]", "5_1,5_7,5_9"),
        ("5+1", "5+1"),
    ],
)
def test_array_tasks_are_named_one_by_one(asked: str, jobs: str) -> None:
    assert sacct_arguments([asked, asked])[-1] == f"--jobs={jobs}"


@pytest.mark.parametrize("job_id", ["1", "123", "123_4", "123_[2-5]", "123_[1,3-9:2%4]", "123+1"])
def test_job_ids(job_id: str) -> None:
    assert check_job_id(job_id) == job_id


@pytest.mark.parametrize(
    "text",
    ["", "0", "abc", "123.0", "123.batch", "-1", "--help", "12,13", "12 13", "12;rm", "12\n", "1_", "1_[]", "1_[x]",
     "1_2_3", "1+", "1+2+3", "٣", "1" * 30, "local-3", "$(id)"],
)  # fmt: skip
def test_nothing_else_is_a_job_id(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_job_id(text)
    assert "123_4" in caught.value.hint


@pytest.mark.parametrize("job_ids", [[], ["x"], ["1_[5-2]"], ["1_[0-999999999]"], ["1_[2--3]"], ["1_[1,]"]])
def test_arguments_for_no_job_are_refused(job_ids: list[str]) -> None:
    with pytest.raises(UsageError):
        sacct_arguments(job_ids)


def test_batches_fit_into_one_argument() -> None:
    job_ids = [str(10**9 + number) for number in range(30_000)]
    batches = list(batch_job_ids(job_ids))
    assert [one for batch in batches for one in batch] == job_ids
    assert len(batches) > 1
    assert max(len(sacct_arguments(batch)[-1]) for batch in batches) < 128 * 1024


def test_memory_that_slurm_has_not_written_down_yet_is_unknown():
    """Seen on Slurm 22.05 just after a job started: NO_VAL64 in mebibytes."""
    job = one(row(State="RUNNING", AllocTRES="", ReqMem="18446744073709551616.00M"))
    assert job.memory_requested_bytes is None
