"""A cluster's partitions and their nodes, read from what sinfo prints. Pure."""

import re

import msgspec

from hpcdist.errors import ParseError, UsageError
from hpcdist.units import parse_slurm_time

# Exact values instead of the least with a plus, without a heading; sinfo(1), --Format.
SINFO = ("sinfo", "-e", "-h", "-o", "%P|%l|%D|%c|%m|%G")
_ROW = re.compile(r"([^|*]+)(\*?)\|([^|]*)\|([0-9]+)\|([0-9]+)\+?\|([0-9]+)\+?\|(.*)")
_GPUS = re.compile(r"(?:^|,)gpu(?::[A-Za-z_][\w.-]*)?:([0-9]{1,9})")


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nodes of one kind in a partition.

    Attributes:
        count: How many.
        cpus: CPUs of each.
        memory_bytes: Memory of each.
        gpus: GPUs of each.
    """

    count: int
    cpus: int
    memory_bytes: int
    gpus: int = 0


class Partition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A partition.

    Attributes:
        name: Its name.
        nodes: Its nodes, by kind.
        time_limit_s: The longest a job may take; None for any time.
        is_default: Whether jobs that name none go there.
    """

    name: str
    nodes: tuple[Node, ...]
    time_limit_s: int | None = None
    is_default: bool = False


def parse_sinfo(text: str) -> tuple[Partition, ...]:
    """The partitions in what `SINFO` printed.

    Raises:
        ParseError: It is something else.
    """
    partitions: dict[str, Partition] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        found = _ROW.fullmatch(line.strip())
        if found is None:
            raise ParseError(
                f"{line[:60]!r} is no line of sinfo", f"make the file with: {' '.join(SINFO[:-1])} '{SINFO[-1]}'"
            )
        name, star, limit, count, cpus, memory_mb, gres = found.groups()
        node = Node(
            count=int(count),
            cpus=int(cpus),
            memory_bytes=int(memory_mb) * 1024**2,
            gpus=sum(int(number) for number in _GPUS.findall(gres)),
        )
        known = partitions.get(name)
        partitions[name] = Partition(
            name=name,
            nodes=(*known.nodes, node) if known else (node,),
            time_limit_s=_limit_s(limit),
            is_default=bool(star),
        )
    return tuple(partitions.values())


def _limit_s(text: str) -> int | None:
    try:
        return parse_slurm_time(text)
    except UsageError:
        return None  # "n/a"
