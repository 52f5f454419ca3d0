"""What becomes of a job whose program stopped unfinished: Slurm takes it, it is requeued, or it ends.

Runs inside the job, in the watcher of each rank. A rank that exits while Slurm is preempting the job would leave it
FAILED and not requeued, so the watchers stay until Slurm takes them. [Slurm 22.05.8]
"""

import contextlib
import enum
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from hpcdist.errors import HpcdistError
from hpcdist.records.ranks import BAD_NODE_STATUS, LOST_PEER_STATUS, STOPPED_STATUS
from hpcdist.records.store import Run
from hpcdist.slurm import commands
from hpcdist.slurm.queue import parse_job_fields

# By now srun has sent TERM to a job in which a rank failed by itself, and that rank's watcher has written how; if
# neither, a node is gone, and Slurm may need minutes to notice.
LOST_PEER_WAIT_S = 10.0
# Ranks stop together when one of them is asked; Slurm's signal may reach the others' nodes later.
SIGNAL_WAIT_S = 10.0
LOOK_AGAIN_S = 30.0
ATTEMPTS = 3  # at asking the controller

Answer = TypeVar("Answer")


class Fate(enum.Enum):
    """What is to be done about a job whose program stopped."""

    LEAVE_TO_SLURM = "Slurm is requeueing it"
    REQUEUE = "nobody requeues it yet"
    END = "it is to end"


def choose_fate(job: Mapping[str, str], status: int, asked_by: int | None, *, restarts: int, cap: int) -> Fate:
    """Return what is to be done.

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
    if status == LOST_PEER_STATUS:
        # TERM in a running job that is not preempted: another rank failed by itself, and srun ends the step.
        helps = asked_by != signal.SIGTERM
    else:
        helps = status == BAD_NODE_STATUS or (status == STOPPED_STATUS and asked_by == signal.SIGUSR2)
    return Fate.REQUEUE if helps and restarts < cap else Fate.END


class Requeue:
    """One rank's part in bringing its job back.

    Args:
        job_id: The Slurm job (for an array task its own id, `SLURM_JOB_ID`).
        restarts: How often the job was requeued before.
        cap: How often it may be requeued by us.
        bad_node: A node that it is to be kept from when it comes back.
        run: The run, whose ranks say how they ended.
    """

    def __init__(
        self,
        job_id: str,
        rank: int,
        *,
        restarts: int,
        cap: int,
        bad_node: str | None = None,
        run: Run | None = None,
    ) -> None:
        self._job_id, self._rank = job_id, rank
        self._restarts, self._cap = restarts, cap
        self._bad_node, self._run = bad_node, run
        self._excluded = ""

    def settle(self, status: int, asked: Callable[[], int | None]) -> bool:
        """Do what is to be done; return False when the rank is to end with its program's status.

        Otherwise it returns when Slurm has taken the job.

        Args:
            asked: The signal that asked it to stop, as far as it has come by then.
        """
        self._wait_for_reason(status, asked)
        if status == LOST_PEER_STATUS and self._peer_failed():
            return False
        while True:
            fate = self._look(status, asked())
            if fate is Fate.END:
                return False
            if fate is Fate.REQUEUE and (self._rank == 0 or status != STOPPED_STATUS):
                break
            if self._is_taken(LOOK_AGAIN_S):
                return True
        if not self._requeue():
            return False
        if self._bad_node:
            self._exclude(self._bad_node)
            return True  # Slurm has taken it: its nodes could not be changed before
        while not self._is_taken(LOOK_AGAIN_S):
            pass
        return True

    def _wait_for_reason(self, status: int, asked: Callable[[], int | None]) -> None:
        """Until it can be known why the program stopped."""
        if status == STOPPED_STATUS:
            deadline = time.monotonic() + SIGNAL_WAIT_S
            while asked() is None and time.monotonic() < deadline:
                time.sleep(0.1)
        elif status == LOST_PEER_STATUS or (status == BAD_NODE_STATUS and self._rank):
            # One after the other: a second request would end the job that the first one has brought back. Where a node
            # is bad, rank 0 goes first; another rank only has to where rank 0 itself is silent.
            time.sleep(LOST_PEER_WAIT_S + self._rank)

    def _peer_failed(self) -> bool:
        """Whether a rank ended by itself in this attempt, and not for want of another one."""
        usages = self._run.ranks() if self._run else []
        ends = [one.exit_code for one in usages if one.restart_count == self._restarts and one.ended_at_s is not None]
        return any(code not in (0, LOST_PEER_STATUS, STOPPED_STATUS) for code in ends)

    def _is_taken(self, wait_s: float) -> bool:
        """Wait for Slurm to take the job: a rank that exits before leaves it FAILED."""
        told = threading.Event()
        told.set()  # Slurm may have said so already
        signal.signal(signal.SIGTERM, lambda *_: told.set())
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            if told.wait(1.0):
                told.clear()
                job = self._ask()
                if job and job.get("JobState") != "RUNNING":
                    return True
        return False

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
        """Return what the controller says of the job; None when it does not answer."""
        try:
            return parse_job_fields(_insist(commands.show_job, self._job_id))
        except HpcdistError as error:
            _say(f"left to Slurm for now, which does not answer: {error.message}")
            return None

    def _requeue(self) -> bool:
        # It ends this task: with TERM, and only KillWait later (30 s at most sites) with KILL. What is ignored here,
        # its command ignores, too, and the next one: Slurm excludes nodes of pending jobs only.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            commands.requeue(self._job_id)
        except HpcdistError as error:
            _say(f"not requeued: {error.message}")
            return False
        _say(f"requeued, time {self._restarts + 1} of {self._cap} at most")
        return True

    def _exclude(self, node: str) -> None:
        nodes = node if self._excluded in ("", "(null)") else f"{self._excluded},{node}"
        try:
            _insist(commands.exclude_nodes, self._job_id, nodes)
        except HpcdistError as error:
            _say(f"not kept from {node}: {error.message}")
        else:
            _say(f"kept from {node}, which its preflight found not fit")


def _insist(command: Callable[..., Answer], *words: str) -> Answer:
    """Give a command three tries: a signal to all processes of the step may meet scontrol itself."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(HpcdistError):
            return command(*words)
        time.sleep(1.0)
    return command(*words)


def _say(text: str) -> None:
    print(f"hpcdist: the job is {text}", file=sys.stderr, flush=True)
