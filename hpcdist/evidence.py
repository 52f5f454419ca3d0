"""What is known of one attempt of a job, and which rank it speaks against. Pure."""

import math
import re

import msgspec

from hpcdist.ending import Ending
from hpcdist.observed import Observation, Pool
from hpcdist.record import HANG_STATUS, LOST_PEER_STATUS, STOPPED_STATUS, RankUsage
from hpcdist.signs import Raised, find_exception, find_time_out, is_lost_peer
from hpcdist.spec import JobSpec

TERMINATED = 15
KILLED = 9
# What a shell makes of a TERM that its program handles.
_TERMINATED_STATUS = 128 + TERMINATED
_OTHER_RANK = re.compile(r"\[rank(\d+)\]:")


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one log file.

    Attributes:
        path: The file.
        task: The task that wrote it, a rank unless torchrun starts the ranks; None for the batch script's.
        lines: Its last lines, safe to print.
    """

    path: str
    task: int | None
    lines: tuple[str, ...]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one attempt.

    Attributes:
        ending: What the scheduler says.
        job_id: The job's id; None of a job that was refused.
        run: Name of the run; None for a job that hpcdist did not submit.
        job: What was asked for; None where nobody wrote it down.
        ranks: What its ranks wrote.
        logs: What they and the batch script printed last.
        usage: What it used; None where nobody says.
    """

    ending: Ending
    job_id: str | None = None
    run: str | None = None
    job: JobSpec | None = None
    ranks: tuple[RankUsage, ...] = ()
    logs: tuple[Log, ...] = ()
    usage: Observation | None = None

    @property
    def world_size(self) -> int:
        """Ranks there should be."""
        return self.job.layout.world_size if self.job else max((rank.world_size for rank in self.ranks), default=0)

    def log_of(self, rank: RankUsage) -> Log | None:
        """A rank's log, without what torch says of other ranks that share the file."""
        shared = self.job is not None and self.job.launcher == "torchrun"
        task = rank.node_rank if shared else rank.rank
        log = next((log for log in self.logs if log.task == task), None)
        if log is None or not shared:
            return log
        return msgspec.structs.replace(log, lines=tuple(line for line in log.lines if _is_of(line, rank.rank)))

    def exception_of(self, rank: RankUsage) -> Raised | None:
        """The exception that a rank printed last."""
        log = self.log_of(rank)
        return find_exception(log.lines) if log else None

    def pool(self) -> Pool | None:
        """What it used and asked for, to reckon with."""
        return Pool([self.usage]) if self.usage else None

    def culprit(self) -> RankUsage | None:
        """The rank to blame: of those that failed on their own the first; victims only where there is nobody else."""
        guilty = [(self.innocence(rank), rank.ended_at_s or math.inf, rank.rank, rank) for rank in self.ranks]
        return min((one for one in guilty if one[0] is not None), default=(None,))[-1]

    def innocence(self, rank: RankUsage) -> int | None:
        """How little a rank is to blame; None of one that ended well or is not over.

        0 failed on its own, 1 waited in vain, 2 stopped or lost a peer, 3 was ended.
        """
        if rank.exit_code == 0:
            return None
        raised = self.exception_of(rank)
        if rank.signal == TERMINATED or rank.exit_code == _TERMINATED_STATUS or (raised and raised.is_interruption):
            ended = True
        else:
            ended = rank.exit_code is None and rank.signal is None
        # A rank whose exception is the last it said may hang in its exit until it is ended.
        if ended and not (raised and raised.is_last and not raised.is_interruption):
            return 3 if rank.ended_at_s is not None else None
        if rank.exit_code in (LOST_PEER_STATUS, STOPPED_STATUS) or (raised and is_lost_peer(raised.text)):
            return 2
        log = self.log_of(rank)
        if rank.exit_code == HANG_STATUS or (log and find_time_out(log.lines)):
            return 1
        return 0


def _is_of(line: str, rank: int) -> bool:
    named = _OTHER_RANK.match(line)
    return named is None or int(named[1]) == rank
