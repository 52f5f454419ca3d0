"""What a cluster says of its partitions, nodes and users, read into values. Pure.

Sources: `scontrol --oneliner show node` and `show partition` (scontrol(1); src/api/node_info.c and partition_info.c of
Slurm 22.05), `sacctmgr --parsable2` (sacctmgr(1)).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from hpcdist.site_checks import UNUSABLE

_FIELD = re.compile(r"(?:^| )([A-Za-z][A-Za-z0-9_/:.-]*)=")
_GPUS = re.compile(r"\bgpu:(?:([^:(),]+):)?([0-9]+)")
NOTHING = ("", "(null)", "N/A", "NONE", "UNLIMITED")
_ALL = "ALL"


class NodeKind(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes of a partition that are alike.

    Attributes:
        cpus: CPUs that jobs may have, of each; hardware threads where Slurm counts those.
        memory_mib: Memory that jobs may have, of each; None where Slurm was not told (1 MiB is its default).
        gpus: GPUs of each.
        gpu_type: Their type; None where they have none.
        threads_per_core: Hardware threads of a core.
        scratch_mib: Their own disk (`TmpDisk`), as the settings have it.
        partitions: Partitions they are in.
    """

    cpus: int
    memory_mib: int | None = None
    gpus: int = 0
    gpu_type: str | None = None
    threads_per_core: int = 1
    scratch_mib: int = 0
    partitions: tuple[str, ...] = ()


class PartitionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A partition as scontrol has it.

    Attributes:
        name: Its name.
        is_default: Whether jobs that name none go there.
        is_up: Whether it starts jobs.
        max_time: The longest time limit, in Slurm's words; None is no limit.
        default_time: The limit of a job that names none; None is the longest.
        max_mem_per_cpu_mib: The most memory per CPU; None is no limit.
        accounts: Accounts that may use it; empty is all.
        denied_accounts: Accounts that may not.
        qos: QOS that it takes; empty is all.
    """

    name: str
    is_default: bool = False
    is_up: bool = True
    max_time: str | None = None
    default_time: str | None = None
    max_mem_per_cpu_mib: int | None = None
    accounts: tuple[str, ...] = ()
    denied_accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()


class Association(msgspec.Struct, frozen=True, kw_only=True):
    """An account that the user may charge.

    Attributes:
        account: Its name.
        partition: The partition that it is for; None is any.
        qos: QOS that may be asked for with it.
        default_qos: That of a job that names none.
    """

    account: str
    partition: str | None = None
    qos: tuple[str, ...] = ()
    default_qos: str | None = None


def parse_fields(line: str) -> dict[str, str]:
    """`Key=value` pairs of one line of `scontrol --oneliner`; a value may hold spaces (`OS=Linux 5.14 #1 SMP`)."""
    found = list(_FIELD.finditer(line))
    ends = [match.start() for match in found[1:]] + [len(line)]
    return {match[1]: line[match.end() : end].strip() for match, end in zip(found, ends, strict=True)}


def parse_nodes(listed: str) -> list[tuple[NodeKind, int]]:
    """Kinds of usable nodes and how many there are of each, the most frequent first."""
    kinds: Counter[NodeKind] = Counter()
    for line in listed.splitlines():
        node = parse_fields(line.strip())
        if "NodeName" not in node or node.get("State", "").lower().startswith(UNUSABLE):
            continue
        memory = _number(node.get("RealMemory")) - _number(node.get("MemSpecLimit"))
        found = _GPUS.findall(node.get("Gres", ""))
        kinds[
            NodeKind(
                # CPUEfctv leaves out what is kept for the system; new in 22.05.
                cpus=_number(node.get("CPUEfctv")) or _number(node.get("CPUTot")),
                memory_mib=memory if memory > 1 else None,
                gpus=sum(int(count) for _, count in found),
                gpu_type=next((kind for kind, _ in found if kind), None),
                threads_per_core=_number(node.get("ThreadsPerCore")) or 1,
                scratch_mib=_number(node.get("TmpDisk")),
                partitions=_names(node.get("Partitions")),
            )
        ] += 1
    return kinds.most_common()


def parse_partition_facts(listed: str) -> list[PartitionFacts]:
    """The partitions, one a line."""
    found = []
    for line in listed.splitlines():
        fields = parse_fields(line.strip())
        if "PartitionName" not in fields:
            continue
        found.append(
            PartitionFacts(
                name=fields["PartitionName"],
                is_default=fields.get("Default") == "YES",
                is_up=fields.get("State", "UP") == "UP",
                max_time=_text(fields.get("MaxTime")),
                default_time=_text(fields.get("DefaultTime")),
                max_mem_per_cpu_mib=_number(fields.get("MaxMemPerCPU")) or None,
                accounts=_names(fields.get("AllowAccounts")),
                denied_accounts=_names(fields.get("DenyAccounts")),
                qos=_names(fields.get("AllowQos")),
            )
        )
    return found


def parse_associations(listed: str) -> list[Association]:
    """The user's accounts in sacctmgr's rows `Account|Partition|QOS|DefaultQOS`."""
    found = []
    for line in listed.splitlines():
        words = line.strip().split("|")
        if len(words) >= 4 and words[0]:
            found.append(
                Association(
                    account=words[0],
                    partition=words[1] or None,
                    qos=tuple(one for one in words[2].split(",") if one),
                    default_qos=words[3] or None,
                )
            )
    return found


def parse_qos_limits(listed: str) -> dict[str, str]:
    """What QOS limit, in words, from sacctmgr's rows `Name|MaxWall|MaxTRES|MaxTRESPU|MaxJobsPU`; empty without."""
    names = ("time", "per job", "per user", "jobs per user")
    found = {}
    for line in listed.splitlines():
        name, *values = line.strip().split("|")
        if name:
            found[name] = ", ".join(f"{what} {value}" for what, value in zip(names, values, strict=False) if value)
    return found


def parse_modules(listed: str) -> list[str]:
    """Names that `module --terse avail` prints: no folders' headings, no marks such as `(default)`."""
    found = []
    for line in listed.splitlines():
        name = re.sub(r"\([^)]*\)", "", line).strip()
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+/-]*", name) and not name.endswith("/"):
            found.append(name)
    return list(dict.fromkeys(found))


def order_partitions(
    partitions: Sequence[PartitionFacts],
    kinds: Iterable[tuple[NodeKind, int]],
    mine: Association | None = None,
    *,
    gpus: bool,
) -> list[PartitionFacts]:
    """Partitions that are up and have what is wanted, the likeliest first: the default one, then the largest.

    Those that seem closed to the user go last, and are not left out: in later releases an account that is listed
    stands for those below it too (scontrol(1), AllowAccounts).

    Args:
        partitions: The cluster's.
        kinds: Its nodes.
        mine: What the user charges.
        gpus: Whether GPUs are wanted; else partitions without any go first.
    """
    sizes: Counter[str] = Counter()
    with_gpus = set()
    for kind, count in kinds:
        for name in kind.partitions:
            if kind.gpus or not gpus:
                sizes[name] += count
            if kind.gpus:
                with_gpus.add(name)
    fitting = [one for one in partitions if one.is_up and sizes[one.name]]
    return sorted(
        fitting,
        key=lambda one: (
            is_closed(one, mine),
            not gpus and one.name in with_gpus,
            not one.is_default,
            -sizes[one.name],
            one.name,
        ),
    )


def is_closed(partition: PartitionFacts, mine: Association | None) -> bool:
    """Whether a partition's own lists leave the user out.

    `sbatch --test-only` does not tell where EnforcePartLimits is NO, the default: it takes the job, which would wait
    for ever (slurm.conf(5); seen with Slurm 22.05.8).
    """
    if mine is None:
        return False
    if mine.account in partition.denied_accounts or (partition.accounts and mine.account not in partition.accounts):
        return True
    return bool(partition.qos and mine.qos) and not set(partition.qos) & set(mine.qos)


def list_qos_to_try(partition: PartitionFacts, mine: Association | None) -> list[str | None]:
    """QOS to ask for there, the likeliest first; None is what Slurm takes by itself."""
    if mine is None:
        return [None]
    fitting: list[str | None] = [one for one in mine.qos if not partition.qos or one in partition.qos]
    must_name = partition.qos and mine.default_qos not in partition.qos
    return fitting if must_name and fitting else [None, *fitting]


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(one for one in (text or "").split(",") if one not in (*NOTHING, _ALL))


def _text(value: str | None) -> str | None:
    return None if value is None or value in NOTHING else value


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
