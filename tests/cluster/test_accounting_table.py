"""The table of `hpcdist seff` on a real cluster, against what sacct itself says of the same jobs."""

import getpass
import json
import time

import pytest

from tests.cluster.by_hand import seconds

pytestmark = pytest.mark.slurm

HOSTILE = "a|b\n1|2|COMPLETED\x1b[31m\x1b]0;owned\x07<script>alert(1)</script>"
OVER = {"COMPLETED", "FAILED"}


def sbatch(testbed, *options, wrap="true"):
    return testbed.run("sbatch", "--parsable", "-o", "/dev/null", *options, "--wrap", wrap).strip()


def until(condition):
    """Waits for the cluster; its accounting learns of jobs a little later than its queue."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened within a minute"
        time.sleep(0.3)


def raw(testbed, job_ids, *columns, steps=False):
    """sacct's own cells, a row per job, and one per step where steps are asked for."""
    options = ["-n", "-P", *([] if steps else ["-X"])]
    listed = testbed.run("sacct", *options, "-j", ",".join(job_ids), f"--format={','.join(columns)}")
    return [line.split("|") for line in listed.splitlines()]


@pytest.fixture(scope="module")
def jobs(testbed):
    """One that works, one that fails, an array, and one with a name made to do harm; all of them over."""
    ids = {
        "busy": sbatch(testbed, "-J", "busy", "-t", "2", wrap="i=0; while [ $i -lt 6000000 ]; do i=$((i+1)); done"),
        "failed": sbatch(testbed, "-J", "fails", wrap="exit 3"),
        "array": sbatch(testbed, "-J", "array", "--array", "1-3"),
        "hostile": sbatch(testbed, "-J", HOSTILE),
    }
    until(lambda: sum(row[0] in OVER for row in raw(testbed, ids.values(), "State")) == 6)
    return ids


def table(testbed, *arguments, columns="job,name,state,elapsed,cpus,exit"):
    done = testbed.hpcdist("seff", *arguments, "--parsable", "--format", columns)
    assert done.code == 0, done.err
    header, *rows = [line.split("|") for line in done.out.splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_several_jobs_are_what_sacct_says_they_are(testbed, project, jobs):
    ids = [jobs["busy"], jobs["failed"], jobs["array"]]
    rows = table(testbed, *ids, columns="job,state,elapsed,cpus,name")
    assert [list(row.values()) for row in rows] == raw(
        testbed, ids, "JobID", "State", "ElapsedRaw", "AllocCPUS", "JobName"
    )
    assert [row["job_id"] for row in rows][2:] == [f"{jobs['array']}_{task}" for task in (1, 2, 3)]


def test_efficiencies_follow_from_sacct_s_own_figures(testbed, project, jobs):
    (row,) = table(testbed, jobs["busy"], columns="job,cpu,time,cputime")
    fields = ("ElapsedRaw", "AllocCPUS", "TotalCPU", "TimelimitRaw")
    elapsed, cpus, used, minutes = raw(testbed, [jobs["busy"]], *fields, steps=True)[0]
    used_s = seconds(used)
    assert used_s > 0.1
    assert float(row["cpu_time_s"]) == pytest.approx(used_s)
    assert float(row["cpu_efficiency"]) == pytest.approx(used_s / (int(elapsed) * int(cpus)), rel=1e-5)
    assert float(row["time_efficiency"]) == pytest.approx(int(elapsed) / (60 * int(minutes)), rel=1e-5)


def test_an_array_is_a_row_per_task_and_a_range_is_those_tasks(testbed, project, jobs):
    lines = testbed.hpcdist("seff", jobs["array"], cwd=project).out.splitlines()
    assert [line.split()[0] for line in lines] == ["JOB", *[f"{jobs['array']}_{task}" for task in (1, 2, 3)]]
    asked = f"{jobs['array']}_[2-3]"
    assert [row["job_id"] for row in table(testbed, asked)] == [f"{jobs['array']}_{task}" for task in (2, 3)]


@pytest.mark.parametrize("by", [("--since", "1h"), ("--since", "2d"), ("--user", getpass.getuser())])
def test_slurm_s_jobs_are_listed_by_time_and_user(testbed, project, jobs, by):
    found = {row["job_id"] for row in table(testbed, *by)}
    assert {jobs["busy"], jobs["failed"], f"{jobs['array']}_2"} <= found


def test_a_user_without_jobs_has_none(testbed, project):
    assert table(testbed, "--user", "nobody", "--since", "1h") == []


def test_only_jobs_in_the_states_asked_for_are_listed(testbed, project, jobs):
    rows = table(testbed, "--since", "1h", "--state", "failed")
    assert {row["state"] for row in rows} == {"FAILED"}
    assert {row["job_id"]: row["exit_code"] for row in rows}[jobs["failed"]] == "3"
    assert jobs["busy"] not in {row["job_id"] for row in rows}


def test_a_time_in_the_future_is_answered_in_sacct_s_words(testbed, project):
    done = testbed.hpcdist("seff", "--since", "now+1hour", "--parsable")
    assert (done.code, done.out) == (1, "")
    assert "is after end time" in done.err


@pytest.mark.parametrize("form", ["--table", "--parsable", "--json", "--jsonl"])
def test_a_hostile_job_name_makes_no_job_and_moves_no_cursor(testbed, project, jobs, form):
    done = testbed.hpcdist("seff", jobs["hostile"], jobs["busy"], form, cwd=project)
    assert done.code == 0, done.err
    assert not set(done.out) & {"\x1b", "\x07"}
    if form == "--parsable":
        assert [line.count("|") for line in done.out.splitlines()] == [7, 7, 7]
    if form == "--table":
        assert len(done.out.splitlines()) == 3
    if form == "--json":
        assert {job["job_id"] for job in json.loads(done.out)} == {jobs["hostile"], jobs["busy"]}


def test_a_job_nobody_knows_is_said_after_the_others_were_printed(testbed, project, jobs):
    done = testbed.hpcdist("seff", jobs["busy"], "99999999", "--jsonl")
    assert done.code == 1
    assert json.loads(done.out)["job_id"] == jobs["busy"]
    assert "Slurm knows no job 99999999" in done.err


def test_the_owner_s_group_has_its_name(testbed, project, jobs):
    (row,) = table(testbed, jobs["busy"], columns="user,group")
    assert [row["user"], row["group"]] == raw(testbed, [jobs["busy"]], "User", "Group")[0]


def test_the_table_is_redrawn_until_every_job_is_over(testbed, project):
    job_id = sbatch(testbed, "-J", "soon", wrap="sleep 3")
    done = testbed.hpcdist("seff", job_id, "--watch", "1", "--format", "job,state", timeout=60)
    assert done.code == 0, done.err
    assert done.out.count("JOB") >= 2
    assert done.out.split()[-2:] == [job_id, "COMPLETED"]


def test_a_job_that_waits_is_a_row_of_dashes(testbed, project, jobs):
    waiting = sbatch(testbed, "-J", "waits", "--begin", "now+1hour")
    try:
        until(lambda: raw(testbed, [waiting], "State") == [["PENDING"]])
        rows = table(testbed, waiting, jobs["busy"], columns="job,state,elapsed,cpu")
        assert rows[-1] == {"job_id": waiting, "state": "PENDING", "wall_time_s": "", "cpu_efficiency": ""}
        assert testbed.hpcdist("seff", waiting).code == 3
    finally:
        testbed.run("scancel", waiting)
