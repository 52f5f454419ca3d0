"""`hpcdist seff` from texts and files, as a user runs it; no Slurm."""

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.recording import COLUMNS, write_recording, write_stand_in
from tests.conftest import HPCDIST, run_hpcdist

SEFF = Path(__file__).parents[1] / "data" / "seff"
HEADER = (
    "JobID|JobIDRaw|State|ElapsedRaw|TimelimitRaw|TotalCPU|AllocCPUS|NNodes|AllocTRES|MaxRSS|NTasks|TRESUsageInTot"
    "|User|JobName"
)
ROWS = """\
21|21|COMPLETED|100|10|03:20.000|4|1|cpu=4,mem=1000M,node=1||||ada|good
21.batch|21.batch|COMPLETED|100||03:20.000|4|1||512000K|1|mem=500M||batch
22|22|FAILED|50|10|00:10.000|1|1|cpu=1,mem=1000M,node=1||||bob|bad
22.batch|22.batch|FAILED|50||00:10.000|1|1||102400K|1|mem=100M||batch
23|23|PENDING|0|10|00:00:00|1|1|||||ada|later
"""
HOSTILE = "x\x1b]0;owned\x07\x1b[31m|<script>alert(1)</script>\u202egnp"


@pytest.fixture
def sacct_file(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text(f"{HEADER}\n{ROWS}")
    return path


def text_of(name):
    return (SEFF / f"{name}.txt").read_text()


def fields(out):
    header, *rows = [line.split("|") for line in out.splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_a_text_of_seff_becomes_a_json_list(project):
    done = run_hpcdist("seff", "--text", SEFF / "24.11plus__mnist-2n4g.txt", "--json")
    assert done.code == 0, done.err
    (job,) = json.loads(done.out)
    expected = json.loads((SEFF / "24.11plus__mnist-2n4g.json").read_text())
    assert {key: job[key] for key in expected if key != "extra"} == {k: v for k, v in expected.items() if k != "extra"}


def test_standard_input_may_hold_several_jobs_and_their_order_stays(project):
    names = sorted(path.stem for path in SEFF.glob("*__mnist-*.txt"))[:3]
    text = "\n".join(text_of(name) for name in names)
    done = subprocess.run([*HPCDIST, "seff", "--text", "-", "--jsonl"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids = [json.loads(line)["job_id"] for line in done.stdout.splitlines()]
    assert ids == [json.loads((SEFF / f"{name}.json").read_text())["job_id"] for name in names]


def test_one_job_s_text_is_shown_as_seff_shows_it_and_several_in_a_table(project, tmp_path):
    one = run_hpcdist("seff", "--text", SEFF / "24.11plus__mnist-2n4g.txt")
    assert "CPU Efficiency: " in one.out
    several = tmp_path / "several.txt"
    several.write_text(text_of("24.11plus__mnist-2n4g") * 2)
    assert run_hpcdist("seff", "--text", several).out.splitlines()[0].split()[0] == "JOB"
    assert run_hpcdist("seff", "--table", "--text", SEFF / "24.11plus__mnist-2n4g.txt").out.startswith("JOB")


@pytest.mark.parametrize("form", ["--json", "--jsonl", "--parsable", "--table"])
def test_a_web_page_is_an_error_that_names_line_and_text(project, tmp_path, form):
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html>\n<html><body>Job ID: 12</body></html>\n")
    done = run_hpcdist("seff", "--text", page, form)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: line 1 ")
    assert "<!DOCTYPE html>" in done.err
    assert "Traceback" not in done.err


def test_jobs_before_a_fault_are_printed_in_a_stream(project, tmp_path):
    text = tmp_path / "cut.txt"
    text.write_text(text_of("24.11plus__mnist-2n4g") + "Job ID: 77\n<html>\n")
    done = run_hpcdist("seff", "--text", text, "--jsonl")
    assert done.code == 1
    assert len(done.out.splitlines()) == 1
    assert run_hpcdist("seff", "--text", text, "--json").out == ""


def test_rows_of_sacct_become_a_table(project, sacct_file):
    done = run_hpcdist("seff", "--sacct-file", sacct_file, "--format", "job,name,state,elapsed,time,cpu,mem")
    assert done.code == 0, done.err
    assert [line.split() for line in done.out.splitlines()] == [
        ["JOB", "NAME", "STATE", "ELAPSED", "TIME%", "CPU%", "MEM%"],
        ["21", "good", "COMPLETED", "00:01:40", "16.7%", "50.0%", "50.0%"],  # 100/600 s; 200/(4*100) s; 500/1000 M
        ["22", "bad", "FAILED", "00:00:50", "8.3%", "20.0%", "10.0%"],
        ["23", "later", "PENDING", "-", "-", "-", "-"],
    ]


def test_rows_of_sacct_become_fields(project, sacct_file):
    done = run_hpcdist("seff", "--sacct-file", sacct_file, "--parsable", "--format", "job,elapsed,cpu,memused,gpu")
    assert fields(done.out) == [
        {
            "job_id": job,
            "wall_time_s": wall,
            "cpu_efficiency": cpu,
            "memory_used_bytes": memory,
            "gpu_efficiency": "",
        }
        for job, wall, cpu, memory in (
            ("21", "100", "0.5", "524288000"),
            ("22", "50", "0.2", "104857600"),
            ("23", "", "", ""),
        )
    ]


def test_rows_can_come_through_a_pipe(project):
    done = subprocess.run(
        [*HPCDIST, "seff", "--sacct-file", "-", "--jsonl"], input=f"{HEADER}\n{ROWS}", capture_output=True, text=True
    )
    assert [json.loads(line)["job_id"] for line in done.stdout.splitlines()] == ["21", "22", "23"]


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (("--state", "failed"), ["22"]),
        (("--state", "CD,PD"), ["21", "23"]),
        (("--user", "ada"), ["21", "23"]),
        (("--user", "ada", "--state", "cd"), ["21"]),
        (("--sort", "-cpu"), ["21", "22", "23"]),
        (("--sort", "cpu"), ["22", "21", "23"]),
        (("--sort", "name"), ["22", "21", "23"]),
    ],
)
def test_jobs_are_chosen_and_sorted(project, sacct_file, options, ids):
    done = run_hpcdist("seff", "--sacct-file", sacct_file, "--parsable", *options)
    assert [row["job_id"] for row in fields(done.out)] == ids


@pytest.mark.parametrize("form", ["--table", "--parsable", "--json", "--jsonl"])
def test_a_hostile_job_name_moves_no_cursor_and_makes_no_field(project, tmp_path, form):
    path = tmp_path / "rows.txt"
    path.write_text(f"{HEADER}\n{ROWS.replace('|bad', '|' + HOSTILE)}")
    done = run_hpcdist("seff", "--sacct-file", path, form)
    assert done.code == 0, done.err
    assert not set(done.out) & {"\x1b", "\x07", "\u202e"}
    if form == "--parsable":
        assert len({line.count("|") for line in done.out.splitlines()}) == 1
    if form == "--table":
        assert len(done.out.splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("--format", "stat"), 2, "did you mean state?"),
        (("--sort", "-cqu"), 2, "did you mean cpu?"),
        (("--since", "yesterday"), 2, "'yesterday' is not a time"),
        (("--state", "gone"), 2, "'gone' is not a job state"),
        (("--user", "-x"), 2, "'-x' is not a user's name"),
        (("--parsable", "--json"), 2, "--parsable and --json exclude each other"),
        (("12", "--text", "a"), 2, "JOB and --text exclude each other"),
        (("12", "--since", "2d"), 2, "JOB and --since exclude each other"),
        (("--text", "nowhere.txt"), 2, "can't read nowhere.txt"),
        (("--sacct-file", "."), 2, "can't read ."),
        (("--sacct-file", "/dev/null"), 1, "there is no job"),
        (("--text", "/dev/null"), 1, "there is no job"),
        (("--watch", "2", "--text", "x"), 2, "--text and --watch exclude each other"),
    ],
)
def test_what_can_t_be_asked_ends_with_two_lines(project, arguments, code, expected):
    done = run_hpcdist("seff", *arguments)
    assert done.code == code
    assert (done.out, "Traceback" in done.err) == ("", False)
    assert done.err.startswith("error: ")
    assert expected in done.err
    assert "\nhint: " in done.err


def test_alone_it_shows_this_project_s_runs_newest_first(project):
    assert run_hpcdist("seff").code == 0
    assert json.loads(run_hpcdist("seff", "--json").out) == []
    for name in ("first", "second"):
        run_hpcdist("submit", "--backend", "local", "--run", name, "--wait", "--", "true")
    done = run_hpcdist("seff", "--format", "job,name,state")
    assert [line.split() for line in done.out.splitlines()[1:]] == [
        ["local-2", "second", "COMPLETED"],
        ["local-1", "first", "COMPLETED"],
    ]
    table = run_hpcdist("seff", "local-1", "local-2", "--parsable", "--format", "job,state")
    assert fields(table.out) == [{"job_id": f"local-{n}", "state": "COMPLETED"} for n in (1, 2)]


def on_terminal(arguments, env=None, rows=24, columns=80):
    """What a program shows on a terminal."""
    master, slave = pty.openpty()
    environment = {
        **os.environ,
        "TERM": "xterm",
        "LINES": str(rows),
        "COLUMNS": str(columns),
        "PAGER": "cat",
        **(env or {}),
    }
    with subprocess.Popen(
        [*HPCDIST, *map(str, arguments)], stdin=slave, stdout=slave, stderr=slave, env=environment
    ) as process:
        os.close(slave)
        shown = b""
        while select.select([master], [], [], 20)[0]:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the other end is closed: Linux says it so
                break
            shown += piece
        os.close(master)
    return process.returncode, shown.decode()


def test_colours_are_for_terminals_and_for_those_who_want_them(project, sacct_file):
    asked = ("seff", "--sacct-file", sacct_file)
    assert "\x1b[31m20.0%\x1b[0m" in on_terminal(asked)[1]
    assert "\x1b[" not in on_terminal(asked, {"NO_COLOR": "1"})[1]
    assert "\x1b[" not in on_terminal(asked, {"TERM": "dumb"})[1]
    assert "\x1b[" not in run_hpcdist(*asked).out


def test_lines_fit_a_narrow_terminal(project, sacct_file):
    shown = on_terminal(("seff", "--sacct-file", sacct_file), {"NO_COLOR": "1"}, columns=30)[1]
    assert max(map(len, shown.splitlines())) <= 30
    assert "STATE" in shown


def test_more_than_a_screenful_goes_through_the_pager(project, sacct_file, tmp_path):
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho PAGER\ncat\n")
    pager.chmod(0o755)
    asked = ("seff", "--sacct-file", sacct_file)
    assert "PAGER" in on_terminal(asked, {"PAGER": str(pager)}, rows=3)[1]
    assert "PAGER" not in on_terminal(asked, {"PAGER": str(pager)}, rows=24)[1]


def peak_bytes_of(arguments, env):
    """The highest resident memory of a program and its children, measured from a small process of its own."""
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)\n"
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run([sys.executable, "-SE", "-c", code, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024


@pytest.mark.parametrize("form", ["--parsable", "--jsonl"])
def test_memory_does_not_grow_with_the_number_of_jobs(project, tmp_path, form):
    """Ten times the jobs from a stand-in for sacct: the records alone would take some 20 MB more."""
    peaks = []
    for jobs in (1_000, 10_000):
        place = tmp_path / str(jobs)
        place.mkdir()
        write_recording(place / "recording", jobs)
        write_stand_in(place)
        env = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
        peaks.append(peak_bytes_of([*HPCDIST, "seff", form, "--since", "400d"], env))
    assert peaks[1] < peaks[0] + 3 * 1024**2


def test_a_stand_in_s_rows_come_out_as_many_as_went_in(project, tmp_path):
    write_recording(tmp_path / "recording", 50)
    write_stand_in(tmp_path)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    out = run_hpcdist("seff", "--parsable", "--since", "400d", env=env).out
    with (tmp_path / "recording").open() as rows:
        cells = [dict(zip(COLUMNS, line.rstrip("\n").split("\x1f"), strict=True)) for line in rows]
    jobs = [row for row in cells if "." not in row["JobID"]]
    assert [(row["job_id"], row["state"], row["wall_time_s"]) for row in fields(out)] == [
        (job["JobID"], job["State"], job["ElapsedRaw"]) for job in jobs
    ]


def test_without_slurm_a_question_to_it_is_not_ready(project):
    done = run_hpcdist("seff", "--since", "2d", env={"PATH": "/nowhere"})
    assert done.code == 3
    assert "sacct is not on PATH" in done.err
