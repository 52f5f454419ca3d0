"""What becomes of a job whose program stopped unfinished: Slurm takes it, it is requeued, or it ends.

Runs inside the job, in the watcher of each rank. A rank that exits while Slurm is preempting the job would leave it
FAILED and not requeued, so the watchers stay until Slurm takes them. [Slurm 22.05.8]
"""

import enum
import signal
import sys
import threading
import time
from collections.abc import Mapping

from hpcdist.backends import slurm
from hpcdist.errors import HpcdistError
from hpcdist.record import BAD_NODE_STATUS, LOST_PEER_STATUS, STOPPED_STATUS
from hpcdist.status_rows import parse_job_fields

# By now srun has ended a job in which a rank failed by itself; if not, a node is gone, and Slurm may need minutes to
# notice.
LOST_PEER_WAIT_S = 10.0
TAKEN_TIMEOUT_S = 300.0
ATTEMPTS = 3  # at asking the controller


class Fate(enum.Enum):
    """What is to be done about a job whose program stopped."""

    LEAVE_TO_SLURM = "Slurm is requeueing it"
    REQUEUE = "nobody requeues it yet"
    END = "it is to end"


def choose_fate(job: Mapping[str, str], status: int, asked_by: int | None, *, restarts: int, cap: int) -> Fate:
    """What is to be done.

    Args:
        job: What the controller says of the job (`scontrol show job`).
        status: The program's exit status.
        asked_by: The signal that asked it to stop; None when nobody did.
        restarts: How often the job was requeued before (`SLURM_RESTART_COUNT`).
        cap: How often it may be requeued by us.
    """
    if job.get("JobState") != "RUNNING":
        # Cancelled, or its limit is over: requeued now, it would come back to life against its owner's will.
        return Fate.END
    if job.get("PreemptTime", "None") != "None":
        return Fate.LEAVE_TO_SLURM
    helps = asked_by == signal.SIGUSR2 if status == STOPPED_STATUS else status in (LOST_PEER_STATUS, BAD_NODE_STATUS)
    return Fate.REQUEUE if helps and restarts < cap else Fate.END


class Requeue:
    """One rank's part in bringing its job back.

    Args:
        job_id: The Slurm job (for an array task its own id, `SLURM_JOB_ID`).
        rank: Its global rank.
        restarts: How often the job was requeued before.
        cap: How often it may be requeued by us.
        bad_node: A node that it is to be kept from when it comes back.
    """

    def __init__(self, job_id: str, rank: int, *, restarts: int, cap: int, bad_node: str | None = None) -> None:
        self._job_id = job_id
        self._rank = rank
        self._restarts = restarts
        self._cap = cap
        self._bad_node = bad_node
        self._excluded = ""

    def settle(self, status: int, asked_by: int | None) -> bool:
        """Does what is to be done; returns False when the rank is to end with its program's status.

        Otherwise it returns when Slurm has taken the job, or did not in five minutes.
        """
        if status == LOST_PEER_STATUS or (status == BAD_NODE_STATUS and self._rank):
            # One after the other: a second request would end the job that the first one has brought back. Where a node
            # is bad, rank 0 goes first; another rank only has to where rank 0 itself is silent.
            time.sleep(LOST_PEER_WAIT_S + self._rank)
        fate = self._look(status, asked_by)
        if fate is Fate.END:
            return False
        if fate is Fate.REQUEUE and (self._rank == 0 or status != STOPPED_STATUS):
            if not self._requeue():
                return False
            if self._bad_node:
                self._exclude(self._bad_node)
                return True  # Slurm has taken it: its nodes could not be changed before
        self._stay()
        return True

    def _stay(self) -> None:
        """Until Slurm takes the job: a rank that exits before leaves it FAILED."""
        told = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: told.set())
        deadline = time.monotonic() + TAKEN_TIMEOUT_S
        while time.monotonic() < deadline:
            if told.wait(1.0):
                told.clear()
                job = self._ask()
                if job and job.get("JobState") != "RUNNING":
                    return

    def _look(self, status: int, asked_by: int | None) -> Fate:
        job = self._ask()
        if job is None:
            return Fate.LEAVE_TO_SLURM
        self._excluded = job.get("ExcNodeList", "")
        fate = choose_fate(job, status, asked_by, restarts=self._restarts, cap=self._cap)
        if fate is Fate.END and job.get("JobState") == "RUNNING" and self._restarts >= self._cap:
            _say(f"not requeued: it was {self._restarts} time(s) before, and --max-requeues is {self._cap}")
        return fate

    def _ask(self) -> dict[str, str] | None:
        """What the controller says of the job; None when it does not answer."""
        for _ in range(ATTEMPTS):
            try:
                return parse_job_fields(slurm.show_job(self._job_id))
            except HpcdistError as error:
                # Also when a signal to all processes of the step met scontrol itself.
                reason = error.message
                time.sleep(1.0)
        _say(f"left to Slurm, which does not answer: {reason}")
        return None

    def _requeue(self) -> bool:
        if self._bad_node:
            # Slurm excludes nodes of pending jobs only, so after the requeue, which ends this task: with TERM, and only
            # KillWait later (30 s at most sites) with KILL. What is ignored here, the commands ignore, too.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            slurm.requeue(self._job_id)
        except HpcdistError as error:
            _say(f"not requeued: {error.message}")
            return False
        _say(f"requeued, time {self._restarts + 1} of {self._cap} at most")
        return True

    def _exclude(self, node: str) -> None:
        nodes = node if self._excluded in ("", "(null)") else f"{self._excluded},{node}"
        for _ in range(ATTEMPTS):
            try:
                slurm.exclude_nodes(self._job_id, nodes)
            except HpcdistError as error:
                reason = error.message
                time.sleep(1.0)
            else:
                _say(f"kept from {node}, which its preflight found not fit")
                return
        _say(f"not kept from {node}: {reason}")


def _say(text: str) -> None:
    print(f"hpcdist: the job is {text}", file=sys.stderr, flush=True)
