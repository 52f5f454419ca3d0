"""Before a training begins: are its nodes fit for it, and do its ranks reach each other? A second, not a GPU-hour.

The ranks first tell each other what they are through the rendezvous' store, which works where NCCL does not. Rank 0
compares and all hear it, so that each ends with the same words.
"""

import hashlib
import os
import platform
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import msgspec
import torch
import torch.distributed as dist
from pytorch_lightning.__version__ import version as lightning_version
from torch.distributed.distributed_c10d import PrefixStore, Store

from hpcdist.errors import HpcdistError
from hpcdist.probe import AllReduce, Fault
from hpcdist.record import BAD_NODE_STATUS
from hpcdist.train.cluster import choose_device, join_process_group
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.failure import LastWords
from hpcdist.train.nodes import Facts, Member, find_fault, find_late, find_skew
from hpcdist.train.options import Options
from hpcdist.train.outcome import Outcome
from hpcdist.train.probing import format_size, measure_all_reduces, settle

DEADLINE_S = 60.0
VISIBLE_TIMEOUT_S = 30.0  # a shared folder may show a new file late
# The store lives in rank 0: it waits until the others have heard why they end.
TELL_S = 2.0
HEAR_TIMEOUT_S = 10.0
WARN_SKEW_S = 1.0
CHECKS = "the checks"


class BadNodeError(HpcdistError):
    """The preflight found a fault."""

    exit_code = BAD_NODE_STATUS

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"preflight: {fault.sentence}", fault.hint)


def preflight(
    options: Options, rank: RankEnvironment, store: Store, outcome: Outcome, last_words: LastWords
) -> torch.device:
    """Checks the nodes, joins the process group, and measures it; returns the rank's device.

    Raises:
        BadNodeError: A node is not fit.
        HpcdistError: The device can't be used on any node, or the ranks did not meet.
    """
    clock = outcome.clock
    clock.enter("preflight")
    me = Member(rank=rank.rank, node_rank=rank.node_rank, host=os.environ.get("SLURMD_NODENAME", socket.gethostname()))
    with Meeting(store, me, rank.world_size, outcome, last_words) as meeting:
        device = _try_device(options, rank)
        facts = _check_nodes(meeting, rank.run_dir, device.message if isinstance(device, HpcdistError) else "")
        if isinstance(device, HpcdistError):
            raise device
        clock.enter("process_group")
        meeting.come_to("the start of the process group")
        join_process_group(rank, device, store)
        clock.enter("preflight")
        if rank.world_size > 1:
            skew_s = _check_clocks(meeting, facts, device)
            outcome.learn(clock_skew_s=skew_s, probe=_probe(meeting, device))
            if rank.rank == 0:
                _report(facts, outcome)
    return device


class Meeting:
    """What all ranks do together before the training; it ends the rank when that takes too long.

    Args:
        store: The rendezvous' store.
        me: This rank.
        size: Ranks in all.
        outcome: Where a fault is noted.
        last_words: What ends the rank.
    """

    def __init__(self, store: Store, me: Member, size: int, outcome: Outcome, last_words: LastWords) -> None:
        self.me = me
        self.size = size
        self.board = PrefixStore("preflight", store)
        # A connection of its own: the other may be waiting in another thread.
        self._side = PrefixStore("preflight", store.clone())
        self._side.set_timeout(timedelta(seconds=HEAR_TIMEOUT_S))
        self._outcome = outcome
        self._last_words = last_words
        self._stage = CHECKS
        self._over = threading.Event()

    def __enter__(self) -> "Meeting":
        self.board.set(f"member/{self.me.rank}", msgspec.json.encode(self.me).decode())
        threading.Thread(target=self._watch, name="preflight", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()

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
        if self._over.wait(DEADLINE_S):
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
        present = [rank for rank in ranks if self._side.check([f"{self._stage}/{rank}"])]
        return find_late(self._stage, DEADLINE_S, present, members, self.size)

    def _hear_late(self) -> Fault:
        # In a thread: the store's own time-out waits for an answer to it.
        answer = ThreadPoolExecutor(1).submit(self._side.get, "late")
        try:
            return msgspec.json.decode(answer.result(HEAR_TIMEOUT_S), type=Fault)
        except (TimeoutError, RuntimeError):  # the latter is torch's
            host = os.environ.get("MASTER_ADDR", "its node")
            sentence = f"rank 0 on {host} does not answer {self.me.name} any more, after {self._stage} began"
            return Fault(sentence=sentence, hint=f"leave the node out with --exclude {host}", rank=0, host=host)


def _try_device(options: Options, rank: RankEnvironment) -> torch.device | HpcdistError:
    """The rank's device, or why it has none."""
    try:
        return choose_device(options, rank)
    except HpcdistError as error:
        return error


def _check_nodes(meeting: Meeting, folder: Path | None, gpu_trouble: str) -> list[Facts]:
    """Compares what the ranks are; returns that on rank 0."""
    token = _share_token(meeting, folder)
    me = meeting.me
    mine = Facts(
        rank=me.rank,
        node_rank=me.node_rank,
        host=me.host,
        gpu_trouble=gpu_trouble,
        folder_trouble=_find_folder_trouble(me, folder, token) if folder else "",
        code=hash_code(Path(__file__).parents[1]),
        python=platform.python_version(),
        torch=str(torch.__version__),
        lightning=lightning_version,
    )
    facts: list[Facts] = []
    meeting.come_to(CHECKS, msgspec.json.encode(mine).decode())
    if me.rank == 0:
        facts = [msgspec.json.decode(word, type=Facts) for word in meeting.words(CHECKS)]
        if folder and token:
            (folder / token).unlink(missing_ok=True)
    meeting.agree("nodes", lambda: find_fault(facts))
    return facts


def _share_token(meeting: Meeting, folder: Path | None) -> str:
    """The name of a file that rank 0 left in the folder; empty when it could not."""
    if meeting.me.rank != 0:
        return meeting.board.get("token").decode()
    # A name nobody has asked for: what a file system remembers not to have would stay invisible for longer.
    token = f".preflight-{secrets.token_hex(8)}"
    try:
        if folder:
            (folder / token).touch(mode=0o600)
    except OSError:
        token = ""  # that it can't be written to is found once more, and told then
    meeting.board.set("token", token)
    return token


def _find_folder_trouble(me: Member, folder: Path, token: str) -> str:
    """What is wrong with a folder; empty when nothing is."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"preflight")
    except OSError as error:
        return f"{me.name} can't write to the run's folder {folder}: {error.strerror}"
    deadline = time.monotonic() + VISIBLE_TIMEOUT_S
    while not (folder / token).exists():
        if time.monotonic() > deadline:
            return f"{me.name} does not see in {folder} what rank 0 wrote there {VISIBLE_TIMEOUT_S:.0f} s ago"
        time.sleep(0.1)
    return ""


def hash_code(package: Path) -> str:
    """A hash of all Python files under a folder."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _check_clocks(meeting: Meeting, facts: Sequence[Facts], device: torch.device) -> float:
    """Compares the ranks' clocks right after an all-reduce, which all leave together; returns their spread."""
    meeting.come_to("the first all-reduce")
    dist.all_reduce(torch.zeros(1, device=device))
    settle(device)
    clocks = torch.zeros(meeting.size, dtype=torch.float64, device=device)
    clocks[meeting.me.rank] = time.time()
    dist.all_reduce(clocks)
    clocks_s = clocks.tolist()
    meeting.agree("clocks", lambda: find_skew(facts, clocks_s))
    skew_s: float = max(clocks_s) - min(clocks_s)
    if skew_s > WARN_SKEW_S and meeting.me.rank == 0:
        print(f"warning: preflight: the nodes' clocks are {skew_s:.1f} s apart", file=sys.stderr, flush=True)
    return skew_s


def _probe(meeting: Meeting, device: torch.device) -> tuple[AllReduce, ...]:
    return measure_all_reduces(device, lambda size: meeting.come_to(f"the all-reduce of {format_size(size)}"))


def _report(facts: Sequence[Facts], outcome: Outcome) -> None:
    metrics = outcome.metrics()
    speeds = ", ".join(f"{format_size(one.size_bytes)} {1e3 * one.latency_s:.1f} ms" for one in metrics.probe)
    nodes = len({one.node_rank for one in facts})
    fastest = metrics.probe[-1].bandwidth_bytes_per_s / 1e6
    print(f"preflight: {nodes} node(s) alike; all-reduce {speeds} ({fastest:,.0f} MB/s)", flush=True)
