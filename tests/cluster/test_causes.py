"""`hpcdist why` on jobs that a real Slurm ended, one of each kind that the testbed can bring about.

It enforces no memory limit and has no GPU that computes: out of memory is here a rank killed with its memory full, and
there is no CUDA or NCCL. All jobs are sent at once and run side by side. Node n4 alone is preempted on and killed.
"""

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster.waiting import eventually
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(280)]

GLOO = """
import datetime, os, signal, sys, time, torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=float(sys.argv[2])))
dist.all_reduce(torch.ones(1))
if dist.get_rank() == 1 and sys.argv[1] == "silent":
    print("reading the data", flush=True)
    time.sleep(60)
if dist.get_rank() == 1 and sys.argv[1] == "vanish":
    os.kill(os.getppid(), signal.SIGKILL)  # its watcher too: nobody writes down how it ended
    time.sleep(60)
while True:
    dist.all_reduce(torch.ones(1))
    time.sleep(0.1)
"""
# Holds as much as it is told and is killed, as the kernel would do it.
FULL = """
import os, sys, time
held = bytearray(b"1") * (int(sys.argv[1]) * 1_000_000)
time.sleep(4)
os.kill(os.getpid(), 9)
"""
RAISE = "def step():\n    raise ValueError('bad batch')\n\nstep()\n"
AGAIN = '[ -n "$SLURM_RESTART_COUNT" ] || sleep 300'
# A rank that ends within the grace of a preemption leaves its job FAILED, so this one stays.
STAYS = f'trap "" TERM; echo it stays; {AGAIN}'
PYTHON = sys.executable
TWO = ("--nodes", "2", "--gpus", "0")
ONE = ("--gpus", "0")

ENDS = {
    "limit": ((*ONE, "--time", "1"), ["sleep", "300"], "time-limit"),
    "raised": (TWO, [PYTHON, "raise.py"], "user-exception"),
    "silent": (TWO, [PYTHON, "gloo.py", "silent", "15"], "time-out"),
    "vanish": (TWO, [PYTHON, "gloo.py", "vanish", "60"], "lost-peer"),
    "full": ((*ONE, "--mem", "150M"), [PYTHON, "full.py", "140"], "out-of-memory"),
    "killed": (TWO, ["sh", "-c", 'if [ "$RANK" = 1 ]; then kill -9 $$; fi; sleep 60'], "killed"),
    "exit-7": (TWO, ["sh", "-c", 'if [ "$RANK" = 1 ]; then exit 7; fi; sleep 60'], "unknown"),
    "module": (ONE, [PYTHON, "-c", "import nothing_of_the_kind"], "missing-module"),
    "data": ((*ONE, "--data-dir", "nowhere"), [], "missing-data"),
    "disk": (ONE, ["sh", "-c", "cat /dev/zero > /dev/full"], "full-disk"),
    "setup": ((*ONE, "--setup", "modul load cuda"), ["true"], "bad-script"),
    "no-command": (ONE, ["pyhton", "train.py"], "bad-script"),
    "no-program": (ONE, ["bash", "-c", "./raise.py"], "bad-script"),
    "stopped": ((*ONE, "--resumable"), ["sh", "-c", "exit 75"], "stopped"),
    "hang": (ONE, ["sh", "-c", "echo 'hang: no step for 5 s'; exit 70"], "hang"),
    "fine": (ONE, ["true"], "completed"),
    "cancelled": (ONE, ["sleep", "300"], "cancelled"),
    "unstarted": ((*ONE, "--sbatch", "hold="), ["true"], "cancelled"),
    "never": ((*ONE, "--dependency", "afterok:$EXIT_7"), ["true"], "never-started"),
    "array": ((*ONE, "--array", "1-2"), ["sh", "-c", '[ "$SLURM_ARRAY_TASK_ID" = 2 ] || exit 9'], "unknown"),
    "requeued": ((*ONE, "--sbatch", "requeue="), ["sh", "-c", AGAIN], "completed"),
}
"""Options, command and kind of each run."""
FIRST = ("limit", "exit-7")
"""What takes longest, and what another depends on."""


class Jobs:
    """The runs that were sent, and what is said of them."""

    def __init__(self, testbed, folder):
        self.testbed, self.folder, self.ids = testbed, folder, {}
        for name, text in (("raise.py", RAISE), ("gloo.py", GLOO), ("full.py", FULL)):
            (folder / name).write_text(text)

    def submit(self, run, options, command):
        options = [option.replace("$EXIT_7", self.ids.get("exit-7", "")) for option in options]
        elsewhere = [] if "--nodelist" in options else ["--exclude", "n4"]
        arguments = [*options, *elsewhere, "--cpus-per-task", "1", "--run", run]
        done = self.testbed.hpcdist("submit", *arguments, *(["--", *command] if command else []), cwd=self.folder)
        assert done.code == 0, done.err
        self.ids[run] = done.out.strip()

    def state(self, run):
        ask = ["squeue", "-h", "-r", "-t", "all", "-j", self.ids[run], "-o", "%T"]
        return set(self.testbed.run(*ask).split())

    def wait(self, run, states, seconds):
        deadline = time.monotonic() + seconds
        while not (found := self.state(run)) or not found <= states:
            assert time.monotonic() < deadline, f"{run}: {found}"
            time.sleep(0.5)

    def why(self, run, env=None):
        done = self.testbed.hpcdist("why", run, "--json", cwd=self.folder, env=env)
        assert done.code == 0, done.err
        return json.loads(done.out)


OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"}


def preempt(jobs):
    jobs.submit("preempted", ["--gpus", "0", "--nodelist", "n4", "--sbatch", "requeue="], ["sh", "-c", STAYS])
    # Slurm calls a job running before its ranks have begun.
    logs = jobs.folder / "jobs" / "runs" / "preempted" / "logs"
    eventually(lambda: any("it stays" in path.read_text() for path in logs.glob("*_0_log.out")), 90)
    jobs.testbed.run("srun", "--partition=high", "--nodelist=n4", "--exclusive", "true")
    jobs.wait("preempted", OVER, 60)


def kill_a_node(jobs):
    options = [*TWO, "--nodelist", "n3,n4", "--sbatch", "no-requeue="]
    jobs.submit("node", options, ["sleep", "300"])
    eventually((jobs.folder / "jobs" / "runs" / "node" / "ranks" / "1.json").exists, 90)
    try:
        subprocess.run([REPOSITORY / "testbed" / "kill-node", "n4"], env=jobs.testbed.env, check=True)
        jobs.wait("node", OVER, 90)
    finally:
        subprocess.run([REPOSITORY / "testbed" / "heal-node", "n4"], env=jobs.testbed.env, check=True)


def break_n4(jobs):
    preempt(jobs)
    kill_a_node(jobs)


@pytest.fixture(scope="module")
def jobs(testbed, tmp_path_factory):
    """Everything sent, and over but for what waits for ever; n4 is broken while the time limit's minute passes."""
    found = Jobs(testbed, tmp_path_factory.mktemp("why"))
    for run in FIRST:
        found.submit(run, *ENDS[run][:2])
    with ThreadPoolExecutor(3) as pool:
        broken = pool.submit(break_n4, found)
        list(pool.map(lambda run: found.submit(run, *ENDS[run][:2]), [run for run in ENDS if run not in FIRST]))
        broken.result()
    for run in ("cancelled", "requeued"):
        found.wait(run, {"RUNNING"}, 120)
    testbed.run("scancel", found.ids["cancelled"], found.ids["unstarted"])
    testbed.run("scontrol", "requeue", found.ids["requeued"])
    for run in ENDS:
        if run != "never":
            found.wait(run, OVER, 150)
    yield found
    for job_id in found.ids.values():
        subprocess.run(["scancel", job_id], env=testbed.env, check=False)


@pytest.mark.parametrize("run", [run for run in ENDS if run != "array"])
def test_each_kind_of_end(jobs, run):
    (verdict,) = jobs.why(run)
    assert verdict["cause"]["kind"] == ENDS[run][2], verdict
    if run != "fine":
        print(f"{run}: {verdict['state']}: {verdict['cause']['sentence']}")


@pytest.mark.parametrize("run", ["killed", "exit-7", "silent", "vanish"])
def test_the_right_rank_and_host_are_named(jobs, run):
    (verdict,) = jobs.why(run)
    usage = json.loads((jobs.folder / "jobs" / "runs" / run / "ranks" / "1.json").read_text())
    assert (verdict["cause"]["rank"], verdict["cause"]["host"]) == (1, usage["host"])


def test_the_place_of_an_exception_and_the_lines_before_it_are_shown(jobs):
    told = jobs.testbed.hpcdist("why", jobs.ids["raised"], cwd=jobs.folder).out
    assert f"raised ValueError: bad batch at {jobs.folder}/raise.py:2 in step" in told
    assert "  | ValueError: bad batch\n" in told
    for command in ("status", "wait", "logs"):
        said = jobs.testbed.hpcdist(command, jobs.ids["raised"], cwd=jobs.folder).err
        assert "raised ValueError: bad batch" in said, command


def test_hints_carry_the_figures(jobs):
    (limit,), (full,) = jobs.why("limit"), jobs.why("full")
    assert limit["cause"]["hint"] == "hpcdist rerun limit --set time=5"
    assert full["cause"]["hint"].startswith("hpcdist rerun full --set mem=")
    assert limit["cause"]["sentence"] == "it ran into its time limit of 00:01:00"


def test_who_cancelled_it_is_said(jobs):
    assert jobs.why("cancelled")[0]["cause"]["sentence"] == "it was cancelled by root"
    assert jobs.why("unstarted")[0]["cause"]["sentence"] == "it was cancelled by root before it started"


def test_a_dependency_that_failed_is_said(jobs):
    (verdict,) = jobs.why("never")
    assert "DependencyNeverSatisfied" in verdict["cause"]["sentence"] or verdict["state"] == "CANCELLED", verdict


def test_an_array_is_told_task_by_task(jobs):
    verdicts = {verdict["job_id"].partition("_")[2]: verdict for verdict in jobs.why("array")}
    assert (verdicts["1"]["cause"]["kind"], verdicts["1"]["cause"]["exit_code"]) == ("unknown", 9)
    assert verdicts["2"]["cause"]["kind"] == "completed"
    (alone,) = jobs.why(f"{jobs.ids['array']}_1")
    assert alone == verdicts["1"]


def test_a_requeued_job_is_told_attempt_by_attempt(jobs):
    (verdict,) = jobs.why("requeued")
    assert [attempt["cause"]["kind"] for attempt in verdict["earlier"]] == ["requeued"]


def test_without_accounting_the_cause_is_the_same(jobs, tmp_path):
    for command in ("squeue", "scontrol", "sbatch"):
        (tmp_path / command).symlink_to(shutil.which(command))
    env = {"PATH": str(tmp_path)}
    for run in ("raised", "exit-7", "silent", "setup", "module"):
        (verdict,) = jobs.why(run, env)
        assert verdict["cause"]["kind"] == ENDS[run][2], verdict


def test_a_refused_job(jobs):
    done = jobs.testbed.hpcdist("submit", "--partition", "nowhere", "--run", "no", "--", "true", cwd=jobs.folder)
    assert done.code == 1
    (verdict,) = jobs.why("no")
    assert (verdict["cause"]["kind"], "invalid partition" in verdict["cause"]["sentence"]) == ("bad-script", True)


def test_a_job_of_somebody_else(jobs):
    script = ["sbatch", "--wait", "--parsable", "--exclude=n4", "--output=/dev/null", "--wrap", "exit 3"]
    done = subprocess.run(script, env=jobs.testbed.env, capture_output=True, text=True)
    (verdict,) = jobs.why(done.stdout.strip())
    assert (verdict["run"], verdict["cause"]["kind"], verdict["cause"]["exit_code"]) == (None, "unknown", 3)


def test_preempted(jobs):
    (verdict,) = jobs.why("preempted")
    assert [attempt["cause"]["kind"] for attempt in verdict["earlier"]] == ["preempted"], verdict
    assert verdict["cause"]["kind"] == "completed"


def test_a_node_that_dies_is_named(jobs):
    (verdict,) = jobs.why("node")
    assert (verdict["cause"]["kind"], verdict["cause"]["host"]) == ("node-failure", "n4"), verdict
    assert verdict["cause"]["hint"] == "hpcdist rerun node --set exclude=n4"
