"""Devices, threads and the process group of one rank."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from hpcdist.errors import HpcdistError, NotReadyError, UsageError
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.options import Options

JOIN_TIMEOUT = timedelta(minutes=10)
STORE_GRACE_S = 30.0


class UnmetError(HpcdistError):
    """The ranks did not meet."""


class StartedRanks(ClusterEnvironment):
    """Tells Lightning which rank this is, so that it neither starts processes nor reads Slurm's variables.

    Lightning's own Slurm support misreads some node lists and requeues jobs by itself.
    """

    def __init__(self, rank: RankEnvironment) -> None:
        super().__init__()
        self._rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        """Always: the launcher did."""
        return True

    @property
    def main_address(self) -> str:
        """Host of rank 0."""
        return self._rank.main_address

    @property
    def main_port(self) -> int:
        """Port of the rendezvous."""
        return self._rank.main_port

    @staticmethod
    def detect() -> bool:
        """Never chosen by itself."""
        return False

    def world_size(self) -> int:
        """Ranks in all."""
        return self._rank.world_size

    def set_world_size(self, size: int) -> None:
        """Ignored: the launcher decides."""

    def global_rank(self) -> int:
        """Return this rank."""
        return self._rank.rank

    def set_global_rank(self, rank: int) -> None:
        """Ignored: the launcher decides."""

    def local_rank(self) -> int:
        """Rank within the node."""
        return self._rank.local_rank

    def node_rank(self) -> int:
        """Index of the node."""
        return self._rank.node_rank


def choose_device(options: Options, rank: RankEnvironment) -> torch.device:
    """Return the rank's device.

    Raises:
        NotReadyError: GPUs were granted (or demanded) and can't be used.
        UsageError: The precision needs a GPU.
    """
    accelerator = options.training.accelerator
    if accelerator == "cpu" or (accelerator == "auto" and not options.layout.gpus):
        if options.training.precision == "16-mixed":
            raise UsageError("precision 16-mixed needs a GPU", "use --precision bf16-mixed or 32 on a CPU")
        return torch.device("cpu")
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if visible < rank.local_world_size:
        raise NotReadyError(
            f"rank {rank.rank} on {socket.gethostname()} needs {rank.local_world_size} GPU(s) and can use {visible}:"
            f" {_describe_gpus()}",
            "add --accelerator cpu to train on the CPUs, or check the GPU request and the driver",
        )
    device = torch.device("cuda", rank.local_rank)
    torch.cuda.set_device(device)
    return device


def _describe_gpus() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    driver = Path("/proc/driver/nvidia/version")
    facts = [
        f"CUDA_VISIBLE_DEVICES is {'not set' if visible is None else repr(visible)}",
        f"this torch is built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPUs only'}",
        f"NVIDIA driver: {driver.read_text().splitlines()[0] if driver.exists() else 'none'}",
    ]
    return "; ".join(facts)


def open_store(rank: RankEnvironment) -> Store:
    """Reach the store where the ranks leave words for each other. Rank 0 keeps it, and does not wait for the others.

    Raises:
        UnmetError: Rank 0 did not open it in time, or can't.
    """
    if rank.world_size == 1:
        return dist.HashStore()  # type: ignore[attr-defined]
    # Rank 0 is the first to give up: it knows who did not come.
    timeout = timedelta(seconds=rank.arrival_s + STORE_GRACE_S)
    store: Store
    with _naming(rank):
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # torchrun keeps the store.
            address = f"tcp://{rank.main_address}:{rank.main_port}"
            store, _, _ = next(rendezvous(address, rank.rank, rank.world_size, timeout=timeout))
        else:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                rank.main_address,
                rank.main_port,
                rank.world_size,
                is_master=rank.rank == 0,
                timeout=timeout,
                wait_for_workers=False,
                multi_tenant=True,
            )
        store.set_timeout(JOIN_TIMEOUT + timedelta(seconds=STORE_GRACE_S))
    return store


def join_process_group(rank: RankEnvironment, device: torch.device, store: Store) -> None:
    """Connect the ranks that have met; a single process needs no group.

    Raises:
        UnmetError: They don't reach each other.
    """
    if rank.world_size == 1:
        return
    with _naming(rank):
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("group", store),
            rank=rank.rank,
            world_size=rank.world_size,
            timeout=JOIN_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )


@contextmanager
def _naming(rank: RankEnvironment) -> Iterator[None]:
    """Say who did not meet whom and where, which torch does not."""
    address = f"{rank.main_address}:{rank.main_port}"
    started = time.monotonic()
    try:
        yield
    except (dist.DistNetworkError, dist.DistStoreError, dist.DistBackendError) as error:
        waited_s = time.monotonic() - started
        raise UnmetError(
            f"rank {rank.rank} on {socket.gethostname()} did not meet the other ranks at {address} in {waited_s:.0f} s:"
            f" {str(error).splitlines()[0]}",
            "check that every rank started and that the nodes reach each other (network_interface in hpcdist.toml)",
        ) from None


def settle(device: torch.device) -> None:
    """Wait for the GPU, so that a time taken now is that of work done and not of work queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def find_longest(seconds: float, device: torch.device) -> float:
    """Return the most that any rank has, so that all decide alike; every rank must call it."""
    longest = torch.tensor(seconds, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(longest, dist.ReduceOp.MAX)
    return longest.item()


def count_ranks_here(rank: RankEnvironment) -> int:
    """Count the ranks on this machine, also where one machine plays several nodes; every rank must call it.

    A machine is told by its boot id (random(4)), because emulated nodes have host names of their own.
    """
    if rank.world_size == 1:
        return 1
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
    boot_ids: list[str] = [""] * rank.world_size
    dist.all_gather_object(boot_ids, boot_id)
    return boot_ids.count(boot_id)


def choose_threads(cpus_per_task: int, ranks_here: int) -> int:
    """Threads of a rank: as asked, but never more than the machine has for it.

    Threads that outnumber the cores wait for each other at the end of every operation: ten times slower was seen.
    """
    machine_share = max(1, (os.cpu_count() or 1) // ranks_here)
    return max(1, min(cpus_per_task, len(os.sched_getaffinity(0)), machine_share))


def use_threads(threads: int) -> None:
    """Compute with this many threads from now on.

    The variable is for Lightning: without it each rank of 2 x 1 on one machine would be given all of its cores, because
    Lightning counts the ranks of a node, and their threads would spin against each other (a third of the speed).
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
