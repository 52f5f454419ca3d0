"""What becomes of a job whose program stopped, from what the controller of Slurm 22.05 says of it."""

import os
import signal
import subprocess
import sys

import pytest

from hpcdist.record import BAD_NODE_STATUS, LOST_PEER_STATUS, STOPPED_STATUS
from hpcdist.requeue import Fate, choose_fate
from hpcdist.status_rows import parse_job_fields

RUNNING = "JobId=1 JobName=a JobState=RUNNING Reason=None Requeue=1 Restarts=0 PreemptTime=None Command=(null)"
PREEMPTED = RUNNING.replace("PreemptTime=None", "PreemptTime=2026-11-21T15:42:49")
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
show) echo "{RUNNING} ExcNodeList=n3" ;;
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
