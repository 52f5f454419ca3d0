"""Measured networks: what a preflight finds, and the file that keeps it for estimates."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from hpcdist.files import write_atomically


class AllReduce(msgspec.Struct, frozen=True, kw_only=True):
    """An all-reduce over all ranks of a job, as one of them measured it.

    Attributes:
        size_bytes: What each rank brought.
        latency_s: Seconds it took, the median of several.
        bandwidth_bytes_per_s: `size_bytes / latency_s`, the algorithm's bandwidth (nccl-tests, PERFORMANCE.md).
    """

    size_bytes: int
    latency_s: float
    bandwidth_bytes_per_s: float


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why the ranks of a job can't train together.

    Attributes:
        sentence: What was found, where, and what was expected.
        hint: What to do.
        rank: The first rank it was found on.
        host: Its node, as Slurm calls it; None where it can't be told which node is to blame.
    """

    sentence: str
    hint: str
    rank: int
    host: str | None = None


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank finds on its node, for `hpcdist doctor --deep`.

    Attributes:
        host: Its node, as Slurm calls it.
        node_rank: Index of its node.
        python: Version of Python.
        torch: Version of torch.
        lightning: Version of Lightning.
        cuda_build: CUDA that torch was built for ("13.0"); None for CPUs only.
        cuda_driver: Newest CUDA that the driver runs ("13.0"); None without a driver.
        driver: Version of the NVIDIA driver; None without one.
        gpus: Names of the GPUs that torch can use there.
    """

    host: str
    node_rank: int
    python: str
    torch: str
    lightning: str
    cuda_build: str | None = None
    cuda_driver: str | None = None
    driver: str | None = None
    gpus: tuple[str, ...] = ()


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """How fast the nodes of a partition reach each other, measured once and kept.

    Attributes:
        cluster: Slurm's name of the cluster; None of this machine.
        partition: The partition; None where the default one was taken.
        nodes: Nodes.
        gpus: GPUs per node.
        device: "cpu" (gloo) or "cuda" (NCCL).
        hosts: The nodes.
        run: The run that measured it.
        measured_at_s: When, seconds since the epoch.
        all_reduce: All-reduces of several sizes, as the slowest rank had them.
        clock_skew_s: Seconds between the first and the last of the nodes' clocks.
    """

    cluster: str | None
    partition: str | None
    nodes: int
    gpus: int
    device: str
    hosts: tuple[str, ...]
    run: str
    measured_at_s: float
    all_reduce: tuple[AllReduce, ...]
    clock_skew_s: float | None = None


_FILE = Path("jobs", "runs", ".probes.json")


def read_probes(root: Path) -> list[Probe]:
    """Return what was measured in a project (its folder), the newest first; nothing where it can't be read."""
    try:
        return msgspec.json.decode((root / _FILE).read_bytes(), type=list[Probe])
    except (OSError, msgspec.MsgspecError):
        return []


def find_probe(probes: Sequence[Probe], *, cluster: str | None, partition: str | None, device: str) -> Probe | None:
    """Return the newest measurement between nodes of a partition."""
    fitting = (one for one in probes if (one.cluster, one.partition, one.device) == (cluster, partition, device))
    return next((one for one in fitting if one.nodes > 1 and one.all_reduce), None)


def write_probe(root: Path, probe: Probe) -> None:
    """Keep a measurement, in place of an older one of the same shape there.

    Raises:
        OSError: The disk is full or not writable.
    """
    others = [one for one in read_probes(root) if _shape(one) != _shape(probe)]
    write_atomically(root / _FILE, msgspec.json.format(msgspec.json.encode([probe, *others])) + b"\n")


def _shape(probe: Probe) -> tuple[str | None, str | None, int, int, str]:
    return probe.cluster, probe.partition, probe.nodes, probe.gpus, probe.device
