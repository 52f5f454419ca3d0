"""Before a training begins: are its nodes fit for it, and do its ranks reach each other?

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
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from pytorch_lightning.__version__ import version as lightning_version
from torch.distributed.distributed_c10d import Store

from hpcdist.errors import HpcdistError
from hpcdist.gpu import read_driver
from hpcdist.records.network import Fault, NodeFacts
from hpcdist.train.distributed import UnmetError, choose_device, join_process_group, open_store, settle
from hpcdist.train.environment import SRUN_ARRIVAL_S, RankEnvironment
from hpcdist.train.failure import FailureReporter
from hpcdist.train.options import Options
from hpcdist.train.outcome import Outcome
from hpcdist.train.preflight.network_probe import measure_all_reduces
from hpcdist.train.preflight.rendezvous import CHECKS, BadNodeError, Facts, Member, Rendezvous, find_fault, find_skew
from hpcdist.units import format_size

VISIBLE_TIMEOUT_S = 30.0  # a shared folder may show a new file late
WARN_SKEW_S = 1.0


def preflight(options: Options, rank: RankEnvironment, outcome: Outcome, reporter: FailureReporter) -> torch.device:
    """Meet the other ranks, check the nodes, join the process group, and measure it; return the rank's device.

    Raises:
        BadNodeError: A node is not fit.
        HpcdistError: The device can't be used on any node, or the ranks did not meet.
    """
    clock = outcome.clock
    store = _reach_rank_0(rank, outcome)
    me = Member(rank=rank.rank, node_rank=rank.node_rank, host=os.environ.get("SLURMD_NODENAME", socket.gethostname()))
    with Rendezvous(store, me, rank, outcome, reporter) as rendezvous:
        rendezvous.gather()
        clock.enter("preflight")
        device = _try_device(options, rank)
        facts = _check_nodes(rendezvous, rank.run_dir, device.message if isinstance(device, HpcdistError) else "")
        if isinstance(device, HpcdistError):
            raise device
        clock.enter("process_group")
        rendezvous.come_to("the start of the process group")
        join_process_group(rank, device, store)
        clock.enter("preflight")
        if rank.world_size > 1:
            skew_s = _check_clocks(rendezvous, facts, device)
            probe = measure_all_reduces(
                device, lambda size: rendezvous.come_to(f"the all-reduce of {format_size(size)}")
            )
            outcome.learn(clock_skew_s=skew_s, probe=probe)
            if rank.rank == 0:
                _report(facts, outcome)
    return device


def _reach_rank_0(rank: RankEnvironment, outcome: Outcome) -> Store:
    """Return the store that rank 0 keeps.

    Raises:
        BadNodeError: srun started all ranks, and rank 0 has none.
        UnmetError: It can't be opened, or a person may not have started rank 0.
    """
    try:
        return open_store(rank)
    except UnmetError as error:
        if rank.rank == 0 or rank.arrival_s != SRUN_ARRIVAL_S:
            raise
        # A rank 0 that only does not reach this one would have missed it, and ended the job before.
        host = rank.main_address
        fault = Fault(sentence=error.message, hint=f"leave the node out with --exclude {host}", rank=0, host=host)
        outcome.learn(fault=fault)
        raise BadNodeError(fault) from None


def _try_device(options: Options, rank: RankEnvironment) -> torch.device | HpcdistError:
    """Return the rank's device, or why it has none."""
    try:
        return choose_device(options, rank)
    except HpcdistError as error:
        return error


def _check_nodes(rendezvous: Rendezvous, folder: Path | None, gpu_trouble: str) -> list[Facts]:
    """Compare what the ranks are; return that on rank 0."""
    token = _share_token(rendezvous, folder)
    me = rendezvous.me
    mine = Facts(
        **msgspec.structs.asdict(me),
        gpu_trouble=gpu_trouble,
        folder_trouble=_find_folder_trouble(me, folder, token) if folder else "",
        code=hash_code(Path(__file__).parents[2]),
        python=platform.python_version(),
        torch=str(torch.__version__),
        lightning=lightning_version,
    )
    facts: list[Facts] = []
    rendezvous.come_to(CHECKS, msgspec.json.encode(mine).decode())
    if me.rank == 0:
        facts = [msgspec.json.decode(word, type=Facts) for word in rendezvous.words(CHECKS)]
        if folder and token:
            (folder / token).unlink(missing_ok=True)
    rendezvous.agree("nodes", lambda: find_fault(facts))
    return facts


def _share_token(rendezvous: Rendezvous, folder: Path | None) -> str:
    """Return the name of a file that rank 0 left in the folder; empty when it could not."""
    if rendezvous.me.rank != 0:
        return rendezvous.board.get("token").decode()
    # A name nobody has asked for: what a file system remembers not to have would stay invisible for longer.
    token = f".preflight-{secrets.token_hex(8)}"
    try:
        if folder:
            (folder / token).touch(mode=0o600)
    except OSError:
        token = ""  # that it can't be written to is found once more, and told then
    rendezvous.board.set("token", token)
    return token


def _find_folder_trouble(me: Member, folder: Path, token: str) -> str:
    """Return what is wrong with a folder; empty when nothing is."""
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
    """Return a hash of all Python files under a folder."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _check_clocks(rendezvous: Rendezvous, facts: Sequence[Facts], device: torch.device) -> float:
    """Compare the ranks' clocks right after an all-reduce, which all leave together; return their spread."""
    rendezvous.come_to("the first all-reduce")
    dist.all_reduce(torch.zeros(1, device=device))
    settle(device)
    clocks = torch.zeros(rendezvous.size, dtype=torch.float64, device=device)
    clocks[rendezvous.me.rank] = time.time()
    dist.all_reduce(clocks)
    clocks_s = clocks.tolist()
    rendezvous.agree("clocks", lambda: find_skew(facts, clocks_s))
    skew_s: float = max(clocks_s) - min(clocks_s)
    if skew_s > WARN_SKEW_S and rendezvous.me.rank == 0:
        print(f"warning: preflight: the nodes' clocks are {skew_s:.1f} s apart", file=sys.stderr, flush=True)
    return skew_s


def _report(facts: Sequence[Facts], outcome: Outcome) -> None:
    metrics = outcome.metrics()
    speeds = ", ".join(f"{format_size(one.size_bytes)} {1e3 * one.latency_s:.1f} ms" for one in metrics.probe)
    nodes = len({one.node_rank for one in facts})
    fastest = metrics.probe[-1].bandwidth_bytes_per_s / 1e6
    print(f"preflight: {nodes} node(s) alike; all-reduce {speeds} ({fastest:,.0f} MB/s)", flush=True)


def try_nodes(options: Options, rank: RankEnvironment, outcome: Outcome, reporter: FailureReporter) -> None:
    """Say what is on this node, check it with the others and measure the network between them.

    Raises:
        HpcdistError: A node is not fit, or the ranks did not meet.
    """
    # First: it is told also of a node that turns out unfit.
    outcome.learn(node=read_node(rank.node_rank), world_size=rank.world_size)
    outcome.clock.enter("process_group")
    device = preflight(options, rank, outcome, reporter)
    if dist.is_initialized():
        # All are done with the measuring before the first one leaves.
        dist.barrier()
        dist.destroy_process_group()
    outcome.learn(finished=True)
    if rank.rank == 0:
        print(f"finished: {rank.world_size} rank(s) on {device.type} passed the preflight", flush=True)


def read_node(node_rank: int) -> NodeFacts:
    """Return what this process finds here."""
    driver, cuda_driver = read_driver() or (None, None)
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return NodeFacts(
        host=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        node_rank=node_rank,
        python=platform.python_version(),
        torch=str(torch.__version__),
        lightning=lightning_version,
        cuda_build=torch.version.cuda,
        cuda_driver=cuda_driver,
        driver=driver,
        gpus=tuple(torch.cuda.get_device_name(index) for index in range(usable)),
    )
