"""A cluster's partitions and their nodes, and how sinfo prints them. Pure."""

import re

import msgspec

from hpcdist.errors import ParseError, UsageError
from hpcdist.units import parse_slurm_time

# What a person's file has, exact values instead of the least with a plus, without a heading; sinfo(1), --Format.
SINFO = ("sinfo", "-e", "-h", "-o", "%P|%l|%D|%c|%m|%G")
# And whether the partition is up and its nodes take jobs, where the cluster itself is asked.
SINFO_WITH_STATES = (*SINFO[:-1], f"{SINFO[-1]}|%a|%T")
# Words that the state of a node that takes no job begins with (sinfo(1), NODE STATE CODES).
UNUSABLE = ("down", "drain", "fail", "future", "inval", "maint", "no_resp", "perfctrs", "reboot", "unk")
_ROW = re.compile(
    r"([^|*]+)(\*?)\|([^|]*)\|([0-9]+)\|([0-9]+)\+?\|([0-9]+)\+?\|([^|]*)(?:\|([^|]*)\|([^|]*))?", re.ASCII
)
_GPUS = re.compile(r"(?:^|,)gpu(?=[:,(]|$)(?::([^:(),]+)(?=:))?(?::([0-9]{1,9}))?")


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nodes of one kind in a partition.

    Attributes:
        count: How many.
        cpus: CPUs that jobs may have, of each; hardware threads where Slurm counts those.
        memory_bytes: Memory that jobs may have, of each; None where Slurm was not told (1 MiB is its default).
        gpus: GPUs of each.
        gpu_type: Their type; None where they have none.
        threads_per_core: Hardware threads of a core.
        scratch_mib: Their own disk (`TmpDisk`), as the settings have it.
        is_usable: Whether they take jobs, now or when they are free.
    """

    count: int
    cpus: int
    memory_bytes: int | None = None
    gpus: int = 0
    gpu_type: str | None = None
    threads_per_core: int = 1
    scratch_mib: int = 0
    is_usable: bool = True


class Partition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A partition.

    Attributes:
        name: Its name.
        nodes: Its nodes, by kind.
        time_limit_s: The longest a job may take; None for any time.
        default_time_s: The limit of a job that names none; None is the longest.
        is_default: Whether jobs that name none go there.
        is_up: Whether it starts jobs.
        max_mem_per_cpu_mib: The most memory per CPU; None is no limit.
        accounts: Accounts that may use it; empty is all.
        denied_accounts: Accounts that may not.
        qos: QOS that it takes; empty is all.
    """

    name: str
    nodes: tuple[Node, ...] = ()
    time_limit_s: int | None = None
    default_time_s: int | None = None
    is_default: bool = False
    is_up: bool = True
    max_mem_per_cpu_mib: int | None = None
    accounts: tuple[str, ...] = ()
    denied_accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()

    @property
    def usable_nodes(self) -> int:
        """How many of its nodes take jobs."""
        return sum(node.count for node in self.nodes if node.is_usable)

    @property
    def has_gpus(self) -> bool:
        """Whether usable nodes have GPUs to ask for."""
        return any(node.gpus for node in self.nodes if node.is_usable)


def parse_sinfo(text: str) -> tuple[Partition, ...]:
    """The partitions in what `SINFO` or `SINFO_WITH_STATES` printed.

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
        name, star, limit, count, cpus, memory_mib, gres, availability, state = found.groups()
        gpus, gpu_type = parse_gres(gres)
        node = Node(
            count=int(count),
            cpus=int(cpus),
            memory_bytes=as_memory_bytes(int(memory_mib)),
            gpus=gpus,
            gpu_type=gpu_type,
            is_usable=is_usable(state or ""),
        )
        known = partitions.get(name)
        partitions[name] = Partition(
            name=name,
            nodes=(*known.nodes, node) if known else (node,),
            time_limit_s=parse_limit_s(limit),
            is_default=bool(star),
            is_up=availability is None or availability.startswith("up"),
        )
    return tuple(partitions.values())


def parse_gres(text: str) -> tuple[int, str | None]:
    """GPUs in a node's `gpu:a100:4(S:0-1),nvme:1`, and their type where one is named."""
    found = _GPUS.findall(text)
    return sum(int(count or 1) for _, count in found), next((kind for kind, _ in found if kind), None)


def as_memory_bytes(mebibytes: int) -> int | None:
    """A node's memory; None for the 1 MiB that stands for one that Slurm was not told."""
    return mebibytes * 1024**2 if mebibytes > 1 else None


def is_usable(state: str) -> bool:
    """Whether a node in a state such as `mixed`, `drained*` or `IDLE+DRAIN` takes jobs."""
    return not any(word.startswith(UNUSABLE) for word in state.lower().split("+"))


def parse_limit_s(text: str) -> int | None:
    """Seconds of a partition's time limit; None without one, and for `n/a` and `NONE`."""
    try:
        return parse_slurm_time(text)
    except UsageError:
        return None
