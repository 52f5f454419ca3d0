"""Where the ranks of a job find each other before anything else, and find out who does not come."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import TracebackType

import msgspec
from torch.distributed.distributed_c10d import PrefixStore, Store

from hpcdist.errors import HpcdistError
from hpcdist.records.network import Fault
from hpcdist.records.ranks import BAD_NODE_STATUS, RankUsage
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.failure import LastWords
from hpcdist.train.nodes import Member, find_late
from hpcdist.train.outcome import Outcome

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


class Meeting:
    """What all ranks do together before the training; it ends the rank when that takes too long.

    Args:
        store: The rendezvous' store.
        me: This rank.
        rank: Its surroundings.
        outcome: Where a fault is noted.
        last_words: What ends the rank.
    """

    def __init__(
        self, store: Store, me: Member, rank: RankEnvironment, outcome: Outcome, last_words: LastWords
    ) -> None:
        self.me = me
        self.size = rank.world_size
        self._run_dir = rank.run_dir
        self.board = PrefixStore("preflight", store)
        # A connection of its own: the other may be waiting in another thread.
        self._side = PrefixStore("preflight", store.clone())
        self._side.set_timeout(timedelta(seconds=HEAR_TIMEOUT_S))
        self._outcome = outcome
        self._last_words = last_words
        self._stage = START
        self._allowed_s = rank.arrival_s
        self._deadline = time.monotonic() + self._allowed_s
        self._over = threading.Event()

    def __enter__(self) -> "Meeting":
        self.board.set(f"member/{self.me.rank}", msgspec.json.encode(self.me).decode())
        threading.Thread(target=self._watch, name="preflight", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()

    def gather(self) -> None:
        """Waits until every rank is there; what follows has a deadline of its own."""
        self.come_to(START)
        if self.me.rank == 0:
            self.words(START)
            self.board.set("all", "")
        else:
            self.board.get("all")
        self._allowed_s = DEADLINE_S
        self._deadline = time.monotonic() + DEADLINE_S

    def come_to(self, stage: str, word: str = "") -> None:
        """Begins, as all ranks do, what can wait for ever for one of them; the word is for rank 0."""
        self._stage = stage
        self.board.set(f"{stage}/{self.me.rank}", word)

    def words(self, stage: str) -> list[bytes]:
        """What the ranks came with, by rank."""
        return [self.board.get(f"{stage}/{rank}") for rank in range(self.size)]

    def agree(self, question: str, judge: Callable[[], Fault | None]) -> None:
        """Has rank 0 judge, and all ranks end when it finds a fault.

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
            self._last_words.end(BadNodeError(fault))

    def _find_late(self) -> Fault:
        ranks = range(self.size)
        introduced = [rank for rank in ranks if self._side.check([f"member/{rank}"])]
        members = {rank: msgspec.json.decode(self._side.get(f"member/{rank}"), type=Member) for rank in introduced}
        members |= {rank: one for rank in ranks if rank not in members and (one := self._read_member(rank))}
        present = [rank for rank in ranks if self._side.check([f"{self._stage}/{rank}"])]
        return find_late(self._stage, self._allowed_s, present, members, self.size)

    def _read_member(self, rank: int) -> Member | None:
        """Where a rank was started, as its watcher has written it down; None when it has not."""
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
