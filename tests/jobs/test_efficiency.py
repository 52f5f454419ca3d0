"""Many jobs at once, as a user asks for them. Slurm's commands here are stand-ins; tests/cluster runs the real ones."""

import json
import os

import pytest

from hpcdist.jobs import efficiency as job_efficiency
from hpcdist.jobs.job import read_efficiencies
from hpcdist.slurm.sacct import parse_sacct
from tests.conftest import run_hpcdist
from tests.slurm.test_sacct import row, step

CONFIG = """\
JobAcctGatherFrequency  = 15
JobAcctGatherType       = jobacct_gather/linux
SLURM_VERSION           = 23.02.7
"""
FINISHED = [row(JobID="7", JobIDRaw="7"), step(JobID="7", TRESUsageInTot="mem=100M")]
RUNNING = [
    row(JobID="8", JobIDRaw="8", State="RUNNING", End="Unknown", TotalCPU="00:00:00", AllocCPUS="2", ElapsedRaw="20"),
    step(JobID="8", State="RUNNING", End="Unknown", TotalCPU="00:00:00"),
]
LATER = [row(JobID="9", JobIDRaw="9", State="FAILED")]
QUEUED = "\x1f".join(["12", "PENDING", "Priority", "0:00", "", "soon"])
FORMS = ("--json", "--jsonl", "--parsable", "--table")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Commands that print these files; sacct with the delimiter it is told to use."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    told = 'for word; do case $word in --delimiter=*) told=${word#*=};; esac; done\nsed "s/\x1f/$told/g" "$0.out"\n'
    printed = {"scontrol": CONFIG, "sacct": "", "sstat": "", "squeue": ""}
    for name, text in printed.items():
        path = folder / name
        path.write_text("#!/bin/bash\n" + (told if name == "sacct" else 'echo "$@" >> "$0.asked"\ncat "$0.out"\n'))
        path.chmod(0o755)
        (folder / f"{name}.out").write_text(text)

    def prints(name, lines):
        (folder / f"{name}.out").write_text("".join(f"{line}\n" for line in lines))

    prints.folder = folder
    return prints


def figures(*arguments):
    """The jobs by id, as JSON, in any of its forms."""
    done = run_hpcdist("seff", *arguments)
    assert done.code == 0, done.err
    text = done.out if "--json" in arguments else f"[{','.join(done.out.splitlines())}]"
    return {job["job_id"]: job for job in json.loads(text)}


def columns(*arguments):
    done = run_hpcdist("seff", "--parsable", *arguments)
    assert done.code == 0, done.err
    return [line.split("|") for line in done.out.splitlines()[1:]]


@pytest.mark.parametrize("form", ["--json", "--jsonl"])
@pytest.mark.parametrize("asked", [("7", "9"), ("--since", "1d")])
def test_every_form_says_how_figures_were_gathered(project, cluster, form, asked):
    cluster("sacct", FINISHED + LATER)
    jobs = figures(*asked, form)
    sampled = {"gathered": "sampled", "every_s": 15}
    assert jobs["7"]["gathering"] == {**sampled, "slurm_version": "23.02.7"}
    assert jobs["7"]["kinds"]["memory_used_bytes"] == {**sampled, "kind": "peak", "source": "sacct"}
    assert jobs["9"]["gathering"] == jobs["7"]["gathering"]
    assert (cluster.folder / "scontrol.asked").read_text().count("show config") == 1


@pytest.mark.parametrize("form", ["--json", "--jsonl"])
def test_a_running_job_has_the_figures_of_now_in_every_form(project, cluster, form):
    cluster("sacct", FINISHED + RUNNING + LATER)
    cluster("sstat", ["8.0|1|200M|00:00:10|cpu=00:00:10,mem=50M"])
    job = figures("7", "8", "9", form)["8"]
    assert (job["source"], job["live"], job["cpu_time_s"], job["memory_used_bytes"]) == (
        "sstat",
        True,
        10,
        200 * 1024**2,
    )
    assert job["cpu_efficiency"] == 0.25  # 10 / (2 * 20)
    assert job["kinds"]["memory_used_bytes"]["every_s"] == 15


def test_in_a_stream_running_jobs_come_last_and_are_asked_for_at_once(project, cluster):
    cluster("sacct", RUNNING + [line.replace("8", "10", 2) for line in RUNNING] + FINISHED)
    cluster("sstat", ["8.0|1|200M|00:00:10|cpu=00:00:10,mem=50M"])
    assert columns("--since", "1d", "--format", "job,cputime") == [["7", "8"], ["8", "10"], ["10", ""]]
    (asked,) = (cluster.folder / "sstat.asked").read_text().splitlines()
    assert asked.endswith("--jobs=8,10")


def test_more_running_jobs_than_sstat_should_be_asked_for_stay_unknown(project, cluster):
    ids = [str(number) for number in range(100, 160)]
    cluster("sacct", [row(JobID=one, JobIDRaw=one, State="RUNNING", End="Unknown") for one in ids])
    cluster("sstat", ["100.0|1|200M|00:00:10|cpu=00:00:10,mem=50M"])
    rows = columns("--since", "1d", "--format", "job,memused")
    assert sorted(rows) == [[one, ""] for one in ids]
    assert not (cluster.folder / "sstat.asked").exists()


@pytest.mark.parametrize("form", FORMS)
def test_of_several_jobs_one_that_accounting_does_not_know_yet_is_a_row(project, cluster, form):
    cluster("sacct", FINISHED)
    cluster("squeue", [QUEUED])
    done = run_hpcdist("seff", "7", "12", form)
    assert done.code == 0, done.err
    if form in {"--table", "--parsable"}:
        separator = "|" if form == "--parsable" else None
        rows = [[cell for cell in line.split(separator) if cell not in {"", "-"}] for line in done.out.splitlines()]
        assert [cells[0] for cells in rows[1:]] == ["7", "12"]
        assert rows[2] == ["12", "soon", "PENDING"]
    else:
        job = figures("7", "12", form)["12"]
        assert (job["state"], job["source"], job["live"]) == ("PENDING", "squeue", False)
        assert {job[name] for name in ("wall_time_s", "cpu_time_s", "cpu_efficiency", "memory_used_bytes")} == {None}


def test_one_that_runs_already_lives_without_figures(project, cluster):
    cluster("sacct", FINISHED)
    cluster("squeue", ["\x1f".join(["12_3", "RUNNING", "None", "1:05", "n2", "soon"])])
    job = figures("7", "12_3", "--json")["12_3"]
    assert (job["array_job_id"], job["live"], job["wall_time_s"], job["node_list"]) == ("12_3", True, 65, "n2")
    assert (job["cpu_time_s"], job["exit_code"]) == (None, None)


@pytest.mark.parametrize("form", FORMS)
def test_alone_it_is_not_ready(project, cluster, form):
    cluster("squeue", [QUEUED])
    done = run_hpcdist("seff", "12", "--source", "sacct", form)
    assert (done.code, done.out) == (3, "")
    assert "job 12 is PENDING" in done.err


@pytest.mark.parametrize("form", [*FORMS, "--parsable --sort=job", "--watch=1"])
def test_jobs_that_nobody_knows_are_named_after_those_that_are_known(project, cluster, form):
    cluster("sacct", FINISHED)
    cluster("squeue", [QUEUED])
    known = ("7", "12") if "watch" not in form else ("7",)  # what is queued would be watched for ever
    done = run_hpcdist("seff", "98", *known, "99", "nobody-s", *form.split())
    assert done.code == 1
    told = "error: no run here is called 'nobody-s', nor had that job id; Slurm knows no job 98, 99"
    assert done.err.splitlines() == [told, "hint: hpcdist status lists the runs"]
    if form == "--json":
        shown = [job["job_id"] for job in json.loads(done.out)]
    elif form == "--jsonl":
        shown = [json.loads(line)["job_id"] for line in done.out.splitlines()]
    else:
        shown = [line.split("|" if "parsable" in form else None)[0] for line in done.out.splitlines() if line][1:]
    assert shown == list(known) if "sort" not in form else sorted(shown) == sorted(known)


@pytest.mark.parametrize("form", FORMS)
def test_where_nobody_knows_any_job_nothing_is_shown(project, cluster, form):
    done = run_hpcdist("seff", "98", "99", form)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: Slurm knows no job 98, 99\nhint: hpcdist status")


@pytest.mark.parametrize("form", ["--json", "table"])
def test_status_shows_the_known_jobs_too(project, cluster, form):
    cluster("squeue", [QUEUED])
    done = run_hpcdist("status", "12", "99", *([form] if form == "--json" else []))
    assert (done.code, done.err.splitlines()[0]) == (1, "error: Slurm knows no job 99")
    assert "PENDING" in done.out
    assert run_hpcdist("status", "98", "99").out == ""


def test_of_thousands_of_unknown_jobs_the_first_are_named(project, cluster):
    done = run_hpcdist("seff", "7", *range(1001, 1013), "--parsable")
    assert done.err.startswith("error: Slurm knows no job 7, 1001, 1002, ")
    assert " 1009 and 3 more\n" in done.err


def test_a_run_that_has_no_figures_yet_takes_none_from_the_others(project, cluster):
    for name in ("first", "second"):
        run_hpcdist("submit", "--backend", "local", "--run", name, "--wait", "--", "true")
    for path in (project / "jobs" / "runs" / "first" / "ranks").iterdir():
        path.unlink()
    done = run_hpcdist("seff", "first", "second", "--parsable", "--format", "job")
    assert (done.code, done.out) == (3, "job_id\nlocal-2\n")
    assert "no rank of job local-1 has written anything yet" in done.err


def test_a_project_without_jobs_on_slurm_asks_slurm_nothing(project, cluster):
    assert run_hpcdist("seff").code == 0
    run_hpcdist("submit", "--backend", "local", "--wait", "--", "true")
    assert len(figures("--json")) == 1
    assert not list(cluster.folder.glob("*.asked"))


def test_the_project_s_table_has_the_figures_of_now_too(project, cluster):
    runs = project / "jobs" / "runs" / "mine-1x0-abcdef"
    run_hpcdist("submit", "--backend", "local", "--run", runs.name, "--wait", "--", "true")
    record = json.loads((runs / "job.json").read_text())
    (runs / "job.json").write_text(json.dumps(record | {"backend": "slurm", "job_id": "8"}))
    cluster("sacct", RUNNING)
    cluster("sstat", ["8.0|1|200M|00:00:10|cpu=00:00:10,mem=50M"])
    (job,) = figures("--json").values()
    assert (job["job_id"], job["source"], job["cpu_time_s"]) == ("8", "sstat", 10)
    assert job["gathering"]["every_s"] == 15


# From Python


def test_each_job_s_figures_are_in_the_order_of_the_jobs_and_looked_at_once(project, monkeypatch):
    ids = [str(number) for number in range(1, 301)]
    answers = parse_sacct([row(JobID=one, JobIDRaw=one) for one in ids])
    looked_at, names_of = [], job_efficiency.names_of
    monkeypatch.setattr(job_efficiency, "iter_known", lambda asked, source: answers)
    monkeypatch.setattr(job_efficiency, "names_of", lambda one: looked_at.append(one) or names_of(one))
    assert [one.job_id for one in read_efficiencies(ids[::-1])] == ids[::-1]
    assert len(looked_at) == len(ids)


def test_an_array_gives_its_tasks_once_each_in_sacct_s_order(project, monkeypatch):
    tasks = [row(JobID=f"5_{task}", JobIDRaw=str(5 + task)) for task in (1, 2, 3)]
    waiting = row(JobID="5_[4-5]", JobIDRaw="5", State="PENDING")
    answers = parse_sacct([*tasks, waiting])
    monkeypatch.setattr(job_efficiency, "iter_known", lambda asked, source: answers)
    assert [one.array_job_id for one in read_efficiencies(["5_[2-5]", "5"])] == [
        *["5_2", "5_3", "5_[4-5]"],
        *["5_1", "5_2", "5_3", "5_[4-5]"],
    ]
