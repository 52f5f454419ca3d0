"""What a cluster says of its partitions, nodes and users, read into values. Pure.

Sources: `scontrol --oneliner show node` and `show partition` (scontrol(1); src/api/node_info.c and partition_info.c of
Slurm 22.05), `sacctmgr --parsable2` (sacctmgr(1)).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from hpcdist.partitions import Node, Partition, as_memory_bytes, is_usable, parse_gres, parse_limit_s

_FIELD = re.compile(r"(?:^| )([A-Za-z][A-Za-z0-9_/:.-]*)=")
_NO_NAMES = ("", "(null)", "N/A", "NONE", "UNLIMITED", "ALL")


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


def parse_scontrol(partitions: str, nodes: str) -> tuple[Partition, ...]:
    """The partitions with their usable nodes, the most frequent kind of node first.

    Args:
        partitions: `scontrol --oneliner show partition`.
        nodes: `scontrol --oneliner show node`.
    """
    kinds: Counter[tuple[Node, tuple[str, ...]]] = Counter()
    for line in nodes.splitlines():
        node = parse_fields(line.strip())
        if "NodeName" in node and is_usable(node.get("State", "")):
            kinds[_read_node(node), _names(node.get("Partitions"))] += 1
    found = []
    for line in partitions.splitlines():
        fields = parse_fields(line.strip())
        if "PartitionName" not in fields:
            continue
        name = fields["PartitionName"]
        own = [(node, count) for (node, names), count in kinds.most_common() if name in names]
        found.append(
            Partition(
                name=name,
                nodes=tuple(msgspec.structs.replace(node, count=count) for node, count in own),
                time_limit_s=parse_limit_s(fields.get("MaxTime", "")),
                default_time_s=parse_limit_s(fields.get("DefaultTime", "")),
                is_default=fields.get("Default") == "YES",
                is_up=fields.get("State", "UP") == "UP",
                max_mem_per_cpu_mib=_number(fields.get("MaxMemPerCPU")) or None,
                accounts=_names(fields.get("AllowAccounts")),
                denied_accounts=_names(fields.get("DenyAccounts")),
                qos=_names(fields.get("AllowQos")),
            )
        )
    return tuple(found)


def _read_node(fields: Mapping[str, str]) -> Node:
    gpus, gpu_type = parse_gres(fields.get("Gres", ""))
    return Node(
        count=1,
        # CPUEfctv leaves out what is kept for the system; new in 22.05.
        cpus=_number(fields.get("CPUEfctv")) or _number(fields.get("CPUTot")),
        memory_bytes=as_memory_bytes(_number(fields.get("RealMemory")) - _number(fields.get("MemSpecLimit"))),
        gpus=gpus,
        gpu_type=gpu_type,
        threads_per_core=_number(fields.get("ThreadsPerCore")) or 1,
        scratch_mib=_number(fields.get("TmpDisk")),
    )


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
    partitions: Sequence[Partition], mine: Association | None = None, *, gpus: bool
) -> list[Partition]:
    """Partitions that are up and have what is wanted, the likeliest first: the default one, then the largest.

    Those that seem closed to the user go last, and are not left out: in later releases an account that is listed
    stands for those below it too (scontrol(1), AllowAccounts).

    Args:
        partitions: The cluster's.
        mine: What the user charges.
        gpus: Whether GPUs are wanted; else partitions without any go first.
    """
    sizes = {one.name: sum(node.count for node in one.nodes if node.gpus or not gpus) for one in partitions}
    return sorted(
        (one for one in partitions if one.is_up and sizes[one.name]),
        key=lambda one: (
            is_closed(one, mine),
            not gpus and one.has_gpus,
            not one.is_default,
            -sizes[one.name],
            one.name,
        ),
    )


def is_closed(partition: Partition, mine: Association | None) -> bool:
    """Whether a partition's own lists leave the user out.

    `sbatch --test-only` does not tell where EnforcePartLimits is NO, the default: it takes the job, which would wait
    for ever (slurm.conf(5); seen with Slurm 22.05.8).
    """
    if mine is None:
        return False
    if mine.account in partition.denied_accounts or (partition.accounts and mine.account not in partition.accounts):
        return True
    return bool(partition.qos and mine.qos) and not set(partition.qos) & set(mine.qos)


def list_qos_to_try(partition: Partition, mine: Association | None) -> list[str | None]:
    """QOS to ask for there, the likeliest first; None is what Slurm takes by itself."""
    if mine is None:
        return [None]
    fitting: list[str | None] = [one for one in mine.qos if not partition.qos or one in partition.qos]
    must_name = partition.qos and mine.default_qos not in partition.qos
    return fitting if must_name and fitting else [None, *fitting]


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(one for one in (text or "").split(",") if one not in _NO_NAMES)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
