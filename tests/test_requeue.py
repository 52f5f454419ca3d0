"""What becomes of a job whose program stopped, from what the controller of Slurm 22.05 says of it."""

import signal

import pytest

from hpcdist.record import LOST_PEER_STATUS, STOPPED_STATUS
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
    ],
)
def test_only_what_can_help_is_requeued(job, status, asked_by, restarts, fate):
    assert choose_fate(parse_job_fields(job), status, asked_by, restarts=restarts, cap=3) is fate
