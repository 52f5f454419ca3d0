"""The measured networks of a project, kept in `jobs/runs/.probes.json` for whoever estimates a job's speed."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from hpcdist.files import write_atomically
from hpcdist.probe import Probe

FILE = ".probes.json"


def read_probes(root: Path) -> list[Probe]:
    """What was measured in a project, the newest first; nothing where it can't be read.

    Args:
        root: The project's folder.
    """
    try:
        return msgspec.json.decode(_path(root).read_bytes(), type=list[Probe])
    except (OSError, msgspec.MsgspecError):
        return []


def find_probe(probes: Sequence[Probe], *, cluster: str | None, partition: str | None, device: str) -> Probe | None:
    """The newest measurement between nodes of a partition."""
    fitting = (one for one in probes if (one.cluster, one.partition, one.device) == (cluster, partition, device))
    return next((one for one in fitting if one.nodes > 1 and one.all_reduce), None)


def write_probe(root: Path, probe: Probe) -> None:
    """Keeps a measurement, in place of an older one of the same shape there.

    Raises:
        OSError: The disk is full or not writable.
    """
    others = [one for one in read_probes(root) if _shape(one) != _shape(probe)]
    write_atomically(_path(root), msgspec.json.format(msgspec.json.encode([probe, *others])) + b"\n")


def _shape(probe: Probe) -> tuple[str | None, str | None, int, int, str]:
    return probe.cluster, probe.partition, probe.nodes, probe.gpus, probe.device


def _path(root: Path) -> Path:
    return root / "jobs" / "runs" / FILE
