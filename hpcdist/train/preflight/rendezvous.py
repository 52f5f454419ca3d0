"""Where the ranks of a job meet before anything else, whether they fit together, and who does not come."""

import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import TracebackType

import msgspec
from torch.distributed.distributed_c10d import PrefixStore, Store

from hpcdist.errors import HpcdistError
from hpcdist.records.network import Fault
from hpcdist.records.ranks import BAD_NODE_STATUS, RankUsage
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.failure import FailureReporter
from hpcdist.train.outcome import Outcome

MOST_SKEW_S = 60.0

_ALIKE = {"code": "the hpcdist code", "python": "Python", "torch": "torch", "lightning": "Lightning"}
_ALIKE_HINT = "give all nodes the same installation, best on a shared disk"
_NETWORK_HINT = "check that the nodes reach each other: network_interface in hpcdist.toml, firewalls, MTU"
_START_HINT = "check that every rank started, and that the nodes reach each other (network_interface in hpcdist.toml)"
_FOLDER_HINT = "put the project on a disk that all nodes share and may write to"


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A rank among the others; `host` is its node, as Slurm calls it."""

    rank: int
    node_rank: int
    host: str

    @property
    def name(self) -> str:
        """`rank 2 on n1`."""
        return f"rank {self.rank} on {self.host}"


class Facts(Member, frozen=True, kw_only=True):
    """What a rank says of itself.

    Attributes:
        gpu_trouble: Why it can't use its GPU; empty when it can.
        folder_trouble: What is wrong with the run's folder there; empty when nothing is.
        code: Hash of hpcdist's files; the other three are versions.
    """

    gpu_trouble: str = ""
    folder_trouble: str = ""
    code: str
    python: str
    torch: str
    lightning: str


def find_fault(facts: Sequence[Facts]) -> Fault | None:
    """Find the first thing that keeps these ranks from training together; None when nothing does."""
    without_gpu = [one for one in facts if one.gpu_trouble]
    # Where no rank can use its GPU, no node is to blame: each rank says it itself.
    if without_gpu and len(without_gpu) < len(facts):
        return _fault(without_gpu[0].gpu_trouble, "check the driver on that node", without_gpu, facts)
    for name, what in _ALIKE.items():
        if fault := _find_difference(facts, name, what):
            return fault
    cut_off = [one for one in facts if one.folder_trouble]
    return _fault(cut_off[0].folder_trouble, _FOLDER_HINT, cut_off, facts) if cut_off else None


def _find_difference(facts: Sequence[Facts], name: str, what: str) -> Fault | None:
    """Blame who has not what most have.

    What most ranks have is expected; of two that come as often, what the lowest rank has.
    """
    expected = Counter(getattr(one, name) for one in facts).most_common(1)[0][0]
    odd = [one for one in facts if getattr(one, name) != expected]
    if not odd:
        return None
    like = next(one for one in facts if getattr(one, name) == expected)
    sentence = f"{odd[0].name} has {what} {getattr(odd[0], name)}, expected {expected} as {like.name} has"
    return _fault(sentence, _ALIKE_HINT, odd, facts, is_relative=True)


def find_skew(members: Sequence[Member], clocks_s: Sequence[float]) -> Fault | None:
    """Find a clock that is more than a minute off the median one; all were read at one moment, since the epoch."""
    median_s = statistics.median_low(clocks_s)
    odd = [one for one, clock_s in zip(members, clocks_s, strict=True) if abs(clock_s - median_s) > MOST_SKEW_S]
    if not odd:
        return None
    like = members[clocks_s.index(median_s)]
    skew_s = clocks_s[members.index(odd[0])] - median_s
    side = "ahead of" if skew_s > 0 else "behind"
    sentence = f"the clock of {odd[0].name} is {abs(skew_s):.0f} s {side} that of {like.name}"
    sentence += f", expected less than {MOST_SKEW_S:.0f} s"
    return _fault(sentence, "have the nodes' time synchronised", odd, members, is_relative=True)


def find_late(stage: str, waited_s: float, present: Sequence[int], members: Mapping[int, Member], size: int) -> Fault:
    """Find who did not come, when what all ranks do together did not end in time.

    Args:
        present: The ranks that began it.
        members: The ranks as far as they ever said where they are, by rank.
    """
    late = sorted(set(range(size)) - set(present))
    if not late:
        sentence = f"all {size} ranks began {stage}, and it did not end within {waited_s:.0f} s"
        return Fault(sentence=sentence, hint=_NETWORK_HINT, rank=0)
    known = [members[rank] for rank in late if rank in members]
    name = members[late[0]].name if late[0] in members else f"rank {late[0]}"
    sentence = f"{name} did not come to {stage} within {waited_s:.0f} s, and {len(present)} of {size} ranks did"
    if len(known) < len(late):
        return Fault(sentence=sentence, hint=_START_HINT, rank=late[0])
    return _fault(sentence, _NETWORK_HINT, known, list(members.values()))


def _fault(
    sentence: str, hint: str, odd: Sequence[Member], everyone: Sequence[Member], *, is_relative: bool = False
) -> Fault:
    """Return the fault, with the node to blame where there is one.

    Args:
        sentence: What is odd about the first of the odd ones.
        hint: What to do where no node is to blame.
        is_relative: Whether they are odd only beside the others: of two nodes that differ neither is to blame.
    """
    nodes = {one.node_rank for one in odd}
    fine = {one.node_rank for one in everyone} - nodes
    more = f" ({len(odd) - 1} more rank(s) likewise)" if len(odd) > 1 else ""
    first = odd[0]
    if len(nodes) > 1 or len(fine) < (2 if is_relative else 1):
        return Fault(sentence=sentence + more, hint=hint, rank=first.rank)
    hint = f"leave the node out with --exclude {first.host}; --replace-bad-node does so by itself"
    return Fault(sentence=sentence + more, hint=hint, rank=first.rank, host=first.host)


DEADLINE_S = 60.0
# The store lives in rank 0: it waits until the others have heard why they end.
TELL_S = 2.0
HEAR_TIMEOUT_S = 10.0
LOOK_S = 0.5
START = "the start"
CHECKS = "the checks"


class BadNodeError(HpcdistError):
    """The preflight found a fault."""

    exit_code = BAD_NODE_STATUS

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"preflight: {fault.sentence}", fault.hint)


class Rendezvous:
    """What all ranks do together before the training; it ends the rank when that takes too long."""

    def __init__(
        self, store: Store, me: Member, rank: RankEnvironment, outcome: Outcome, reporter: FailureReporter
    ) -> None:
        self.me = me
        self.size = rank.world_size
        self._run_dir = rank.run_dir
        self.board = PrefixStore("preflight", store)
        # A connection of its own: the other may be waiting in another thread.
        self._side = PrefixStore("preflight", store.clone())
        self._side.set_timeout(timedelta(seconds=HEAR_TIMEOUT_S))
        self._outcome, self._reporter = outcome, reporter
        self._stage = START
        self._allow(rank.arrival_s)
        self._over = threading.Event()

    def __enter__(self) -> "Rendezvous":
        self.board.set(f"member/{self.me.rank}", msgspec.json.encode(self.me).decode())
        threading.Thread(target=self._watch, name="preflight", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()

    def gather(self) -> None:
        """Wait until every rank is there; what follows has a deadline of its own."""
        self.come_to(START)
        if self.me.rank == 0:
            self.words(START)
            self.board.set("all", "")
        else:
            self.board.get("all")
        self._allow(DEADLINE_S)

    def _allow(self, seconds: float) -> None:
        self._allowed_s = seconds
        self._deadline = time.monotonic() + seconds

    def come_to(self, stage: str, word: str = "") -> None:
        """Begin, as all ranks do, what can wait for ever for one of them; the word is for rank 0."""
        self._stage = stage
        self.board.set(f"{stage}/{self.me.rank}", word)

    def words(self, stage: str) -> list[bytes]:
        """Return what the ranks came with, by rank."""
        return [self.board.get(f"{stage}/{rank}") for rank in range(self.size)]

    def agree(self, question: str, judge: Callable[[], Fault | None]) -> None:
        """Have rank 0 judge, and all ranks end when it finds a fault.

        Raises:
            BadNodeError: It did.
        """
        if self.me.rank == 0:
            fault = judge()
            self._tell(self.board, question, fault)
        else:
            fault = msgspec.json.decode(self.board.get(question), type=Fault | None)
        if fault is not None:
            self._outcome.learn(fault=fault)
            raise BadNodeError(fault)

    def _tell(self, store: Store, question: str, fault: Fault | None) -> None:
        store.set(question, msgspec.json.encode(fault).decode())
        if fault is not None and self.size > 1:
            time.sleep(TELL_S)

    def _watch(self) -> None:
        # Looked at now and again: it comes nearer when all are there.
        while (left_s := self._deadline - time.monotonic()) > 0:
            if self._over.wait(min(left_s, LOOK_S)):
                return
        if self.me.rank == 0:
            fault = self._find_late()
            self._tell(self._side, "late", fault)
        else:
            fault = self._hear_late()
        if not self._over.is_set():
            self._outcome.learn(fault=fault)
            self._reporter.end(BadNodeError(fault))

    def _find_late(self) -> Fault:
        ranks = range(self.size)
        introduced = [rank for rank in ranks if self._side.check([f"member/{rank}"])]
        members = {rank: msgspec.json.decode(self._side.get(f"member/{rank}"), type=Member) for rank in introduced}
        members |= {rank: one for rank in ranks if rank not in members and (one := self._read_member(rank))}
        present = [rank for rank in ranks if self._side.check([f"{self._stage}/{rank}"])]
        return find_late(self._stage, self._allowed_s, present, members, self.size)

    def _read_member(self, rank: int) -> Member | None:
        """Return where a rank was started, as its watcher has written it down; None when it has not."""
        if self._run_dir is None:
            return None
        try:
            found = msgspec.json.decode((self._run_dir / "ranks" / f"{rank}.json").read_bytes(), type=RankUsage)
        except (OSError, msgspec.MsgspecError):
            return None
        if found.restart_count != int(os.environ.get("SLURM_RESTART_COUNT", "0")):
            return None  # of an earlier attempt
        return Member(rank=rank, node_rank=found.node_rank, host=found.host.partition(".")[0])

    def _hear_late(self) -> Fault:
        # In a thread: the store's own time-out waits for an answer to it.
        answer = ThreadPoolExecutor(1).submit(self._side.get, "late")
        try:
            return msgspec.json.decode(answer.result(HEAR_TIMEOUT_S), type=Fault)
        except (TimeoutError, RuntimeError):  # the latter is torch's
            host = os.environ.get("MASTER_ADDR", "its node")
            sentence = f"rank 0 on {host} does not answer {self.me.name} any more, after {self._stage} began"
            return Fault(sentence=sentence, hint=f"leave the node out with --exclude {host}", rank=0, host=host)
