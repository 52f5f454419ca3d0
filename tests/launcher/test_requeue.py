"""What becomes of a job whose program stopped, from what the controller of Slurm 22.05 says of it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hpcdist.launcher.requeue import Fate, Requeue, choose_fate
from hpcdist.records.ranks import BAD_NODE_STATUS, LOST_PEER_STATUS, STOPPED_STATUS
from hpcdist.records.store import Run
from hpcdist.slurm.queue import parse_job_fields
from tests.cluster.waiting import eventually

RUNNING = "JobId=1 JobName=a JobState=RUNNING Reason=None Requeue=1 Restarts=0 PreemptTime=None Command=(null)"
PREEMPTED = RUNNING.replace("PreemptTime=None", "PreemptTime=2026-11-21T15:42:49")
REQUEUED = RUNNING.replace("RUNNING", "PENDING")
CANCELLED = RUNNING.replace("RUNNING", "COMPLETING")


@pytest.mark.parametrize(
    ("job", "status", "asked_by", "restarts", "fate"),
    [
        (RUNNING, STOPPED_STATUS, signal.SIGUSR2, 0, Fate.REQUEUE),
        (RUNNING, STOPPED_STATUS, signal.SIGUSR2, 2, Fate.REQUEUE),
        (RUNNING, STOPPED_STATUS, signal.SIGUSR2, 3, Fate.END),
        # TERM in a running job that is not preempted: another rank failed, and srun ends the step.
        (RUNNING, STOPPED_STATUS, signal.SIGTERM, 0, Fate.END),
        # It stopped by itself.
        (RUNNING, STOPPED_STATUS, None, 0, Fate.END),
        (PREEMPTED, STOPPED_STATUS, signal.SIGTERM, 0, Fate.LEAVE_TO_SLURM),
        (PREEMPTED, STOPPED_STATUS, signal.SIGUSR2, 3, Fate.LEAVE_TO_SLURM),
        (CANCELLED, STOPPED_STATUS, signal.SIGUSR2, 0, Fate.END),
        (CANCELLED, STOPPED_STATUS, signal.SIGTERM, 0, Fate.END),
        (RUNNING, LOST_PEER_STATUS, None, 0, Fate.REQUEUE),
        (RUNNING, LOST_PEER_STATUS, signal.SIGTERM, 0, Fate.END),
        (RUNNING, LOST_PEER_STATUS, signal.SIGUSR2, 0, Fate.REQUEUE),
        (PREEMPTED, LOST_PEER_STATUS, signal.SIGTERM, 0, Fate.LEAVE_TO_SLURM),
        (RUNNING, LOST_PEER_STATUS, None, 3, Fate.END),
        (CANCELLED, LOST_PEER_STATUS, None, 0, Fate.END),
        (RUNNING, BAD_NODE_STATUS, None, 0, Fate.REQUEUE),
        (RUNNING, BAD_NODE_STATUS, None, 3, Fate.END),
        (PREEMPTED, BAD_NODE_STATUS, None, 0, Fate.LEAVE_TO_SLURM),
        (CANCELLED, BAD_NODE_STATUS, None, 0, Fate.END),
    ],
)
def test_only_what_can_help_is_requeued(job, status, asked_by, restarts, fate):
    assert choose_fate(parse_job_fields(job), status, asked_by, restarts=restarts, cap=3) is fate


# A rank whose preflight blames n7, as it ends in a job on Slurm.
BLAMES = """import json, os, sys
fault = {"sentence": "rank 1 on n7 is odd", "hint": "", "rank": 1, "host": "n7"}
open(os.environ["HPCDIST_METRICS"], "w").write(json.dumps({"fault": fault}))
sys.exit(71)"""
# Stands in for Slurm: nodes are excluded only while the job is pending, and its requeue ends all processes with TERM.
SCONTROL = f"""echo "$*" >> asked
case "$1" in
show) [ -e requeued ] && echo "{REQUEUED}" || echo "{RUNNING} ExcNodeList=n3" ;;
requeue) touch requeued; kill -TERM "$PPID" $$ ;;
update) [ -e requeued ] || {{ echo "Job is no longer pending execution" >&2; exit 1; }} ;;
esac"""


def run_blaming_rank(project, stand_in, *options):
    stand_in("scontrol", SCONTROL)
    env = {**os.environ, "SLURM_JOB_ID": "42", "HPCDIST_RUN_DIR": str(project)}
    command = [sys.executable, "-m", "hpcdist.rank", "--max-requeues", "2", *options]
    done = subprocess.run([*command, "--", sys.executable, "-c", BLAMES], env=env, capture_output=True, text=True)
    asked = project / "asked"
    return done.returncode, done.stderr, asked.read_text().splitlines() if asked.exists() else []


def test_a_bad_node_is_left_out_when_the_job_comes_back(project, stand_in):
    code, errors, asked = run_blaming_rank(project, stand_in, "--replace-bad-node")
    assert code == BAD_NODE_STATUS
    assert asked == ["show job -o 42", "requeue 42", "update JobId=42 ExcNodeList=n3,n7"]
    assert errors == (
        "hpcdist: the job is requeued, time 1 of 2 at most\n"
        "hpcdist: the job is kept from n7, which its preflight found not fit\n"
    )


def test_unless_asked_to_nothing_is_replaced(project, stand_in):
    assert run_blaming_rank(project, stand_in) == (BAD_NODE_STATUS, "", [])


# Ends as soon as it is asked to stop, or after a minute.
STOPS = """import os, sys, time
print("starts", flush=True)
for _ in range(600):
    if os.path.exists(os.environ["HPCDIST_STOP_FILE"]):
        sys.exit(75)
    time.sleep(0.1)"""


def start_watcher(project, program):
    env = {**os.environ, "SLURM_JOB_ID": "42", "HPCDIST_RUN_DIR": str(project / "run")}
    command = [sys.executable, "-m", "hpcdist.rank", "--max-requeues", "2", "--", sys.executable, "-c", program]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def asked_of_slurm(project):
    return (project / "asked").read_text().splitlines()


def test_a_signal_during_the_start_stops_the_program_once_it_runs(project, stand_in):
    stand_in("scontrol", SCONTROL)
    watcher = start_watcher(project, STOPS)
    # Its first thing, as /proc shows it (proc(5)); a signal before that no program could catch.
    eventually(lambda: blocks_usr2(watcher.pid), every_s=0.001)
    watcher.send_signal(signal.SIGUSR2)
    assert "requeued, time 1 of 2 at most" in watcher.communicate(timeout=30)[1]
    assert asked_of_slurm(project) == ["show job -o 42", "requeue 42", "show job -o 42"]


def blocks_usr2(pid):
    with open(f"/proc/{pid}/status") as file:
        (mask,) = [line.split()[1] for line in file if line.startswith("SigBlk")]
    return int(mask, 16) >> (signal.SIGUSR2 - 1) & 1


def test_a_stop_file_that_can_not_be_made_ends_nothing(project, stand_in):
    stand_in("scontrol", SCONTROL)
    watcher = start_watcher(project, STOPS)
    assert watcher.stdout.readline() == "starts\n"
    (project / "run" / "ranks").rename(project / "elsewhere")
    (project / "run" / "ranks").write_text("no folder")
    watcher.send_signal(signal.SIGUSR2)
    time.sleep(1.5)
    assert watcher.poll() is None
    (project / "run" / "ranks").unlink()
    (project / "run" / "ranks").mkdir()
    errors = watcher.communicate(timeout=30)[1]
    assert "can't ask the program to stop" in errors
    assert "requeued, time 1 of 2 at most" in errors


def test_a_rank_whose_own_signal_comes_late_is_requeued_too(project, stand_in):
    """The ranks agreed to stop because another one was asked."""
    stand_in("scontrol", SCONTROL)
    watcher = start_watcher(project, "import sys; print('stopped', flush=True); sys.exit(75)")
    assert watcher.stdout.readline() == "stopped\n"
    time.sleep(1)
    watcher.send_signal(signal.SIGUSR2)
    assert "requeued, time 1 of 2 at most" in watcher.communicate(timeout=30)[1]


@pytest.fixture
def own_signals():
    """A watcher ignores TERM from the requeue on; this process, and what it starts, must not."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("how", "requeued"), [({"signal": 9}, False), ({"exit_code": 1}, False), ({"exit_code": 69}, True), ({}, True)]
)
def test_a_lost_peer_is_no_reason_where_that_rank_failed_by_itself(
    project, stand_in, monkeypatch, own_signals, how, requeued
):
    stand_in("scontrol", SCONTROL)
    monkeypatch.setattr("hpcdist.launcher.requeue.LOST_PEER_WAIT_S", 0)
    peer = {"rank": 1, "local_rank": 0, "node_rank": 1, "world_size": 2, "host": "n2", "pid": 7, "started_at_s": 1.0}
    peer |= {"restart_count": 0, **how} | ({"ended_at_s": 2.0} if how else {})
    (project / "ranks").mkdir()
    (project / "ranks" / "1.json").write_text(json.dumps(peer))
    monkeypatch.setattr(Requeue, "_is_taken", lambda *_: True)
    job = Requeue("42", 0, restarts=0, cap=2, run=Run(project))
    assert job.settle(LOST_PEER_STATUS, lambda: None) is requeued
