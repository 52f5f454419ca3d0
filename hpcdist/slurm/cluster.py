"""What a cluster says of its partitions, nodes and users, and of the jobs of one user.

Sources: `scontrol --oneliner show node` and `show partition` (scontrol(1); src/api/node_info.c and partition_info.c of
Slurm 22.05), `sacctmgr --parsable2` (sacctmgr(1)).

Functions that ask Slurm raise HpcdistError where it does not answer, unless they say what they return then.
"""

import getpass
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from hpcdist.errors import HpcdistError, ParseError, UsageError
from hpcdist.slurm import commands
from hpcdist.slurm.queue import MARK_FORMAT, RunMarker, parse_marks
from hpcdist.slurm.refusal import CLOSED_DOOR
from hpcdist.slurm.sacct_query import TIME_ENVIRONMENT
from hpcdist.slurm.sacct_rows import parse_time
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
_SINFO_GPUS = re.compile(r"(?:^|,)gpu(?=[:,(]|$)(?::([^:(),]+)(?=:))?(?::([0-9]{1,9}))?")


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
    """Return the partitions in what `SINFO` or `SINFO_WITH_STATES` printed.

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
    """Parse the GPUs in a node's `gpu:a100:4(S:0-1),nvme:1`, and their type where one is named."""
    found = _SINFO_GPUS.findall(text)
    return sum(int(count or 1) for _, count in found), next((kind for kind, _ in found if kind), None)


def as_memory_bytes(mebibytes: int) -> int | None:
    """Return a node's memory; None for the 1 MiB that stands for one that Slurm was not told."""
    return mebibytes * 1024**2 if mebibytes > 1 else None


def is_usable(state: str) -> bool:
    """Return whether a node in a state such as `mixed`, `drained*` or `IDLE+DRAIN` takes jobs."""
    return not any(word.startswith(UNUSABLE) for word in state.lower().split("+"))


def parse_limit_s(text: str) -> int | None:
    """Parse seconds of a partition's time limit; None without one, and for `n/a` and `NONE`."""
    try:
        return parse_slurm_time(text)
    except UsageError:
        return None


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
    """Parse `Key=value` pairs of a line of `scontrol --oneliner`; a value may hold spaces (`OS=Linux 5.14 #1 SMP`)."""
    _, *parts = _FIELD.split(line)
    return {key: value.strip() for key, value in zip(parts[::2], parts[1::2], strict=True)}


def parse_scontrol(partitions: str, nodes: str) -> tuple[Partition, ...]:
    """Return the partitions with their usable nodes, the most frequent kind of node first.

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
    """Return the user's accounts in sacctmgr's rows `Account|Partition|QOS|DefaultQOS`."""
    rows = (line.strip().split("|") for line in listed.splitlines())
    return [
        Association(
            account=row[0],
            partition=row[1] or None,
            qos=tuple(filter(None, row[2].split(","))),
            default_qos=row[3] or None,
        )
        for row in rows
        if len(row) >= 4 and row[0]
    ]


def parse_qos_limits(listed: str) -> dict[str, str]:
    """Parse what QOS limit, in words, of rows `Name|MaxWall|MaxTRES|MaxTRESPU|MaxJobsPU`; empty without."""
    names = ("time", "per job", "per user", "jobs per user")
    found = {}
    for line in listed.splitlines():
        name, *values = line.strip().split("|")
        if name:
            found[name] = ", ".join(f"{what} {value}" for what, value in zip(names, values, strict=False) if value)
    return found


def parse_modules(listed: str) -> list[str]:
    """Parse the names that `module --terse avail` prints: no folders' headings, no marks such as `(default)`."""
    found = []
    for line in listed.splitlines():
        name = re.sub(r"\([^)]*\)", "", line).strip()
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+/-]*", name) and not name.endswith("/"):
            found.append(name)
    return list(dict.fromkeys(found))


def order_partitions(
    partitions: Sequence[Partition], mine: Association | None = None, *, gpus: bool
) -> list[Partition]:
    """Return partitions that are up and have what is wanted, the likeliest first: the default one, then the largest.

    Those that seem closed to the user go last, and are not left out: in later releases an account that is listed
    stands for those below it too (scontrol(1), AllowAccounts).

    Args:
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
    """Return whether a partition's own lists leave the user out.

    `sbatch --test-only` does not tell where EnforcePartLimits is NO, the default: it takes the job, which would wait
    for ever (slurm.conf(5); seen with Slurm 22.05.8).
    """
    if mine is None:
        return False
    if mine.account in partition.denied_accounts or (partition.accounts and mine.account not in partition.accounts):
        return True
    return bool(partition.qos and mine.qos) and not set(partition.qos) & set(mine.qos)


def list_qos_to_try(partition: Partition, mine: Association | None) -> list[str | None]:
    """Return the QOS to ask for there, the likeliest first; None is what Slurm takes by itself."""
    if mine is None:
        return [None]
    fitting: list[str | None] = [one for one in mine.qos if not partition.qos or one in partition.qos]
    must_name = partition.qos and mine.default_qos not in partition.qos
    return fitting if must_name and fitting else [None, *fitting]


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(one for one in (text or "").split(",") if one not in _NO_NAMES)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def list_partitions() -> tuple[Partition, ...]:
    """Return all partitions of the cluster, without the rows that can't be read; none where it does not say."""
    try:
        listed = commands.run_command([*SINFO_WITH_STATES, "-a"])
    except HpcdistError:
        return ()
    return parse_sinfo("\n".join(line for line in listed.splitlines() if _ROW.fullmatch(line.strip())))


def name_partitions() -> list[str]:
    """Return the names of the partitions that this user may see."""
    return sorted(set(commands.run_command(["sinfo", "-h", "-o", "%R"]).split()))


def parse_clock(line: str) -> float | None:
    """Parse the controller's time in `Configuration data as of …`: seconds since the epoch, None in any other line.

    Slurm 22.05.8 sets it for each answer (src/slurmctld/proc_req.c, `_fill_ctld_conf`: `last_update = time(NULL)`). It
    is printed as `SLURM_TIME_FORMAT` asks, or in local time.
    """
    found = re.match(r"Configuration data as of (\S+)", line)
    try:
        return parse_time(found[1]) if found else None
    except ParseError:
        return None


def read_controller_clock() -> tuple[str, float, float]:
    """Return the controller's line for `parse_clock`, and this machine's time before and after, since the epoch."""
    before_s = time.time()
    said = commands.run_command(["scontrol", "show", "config"], TIME_ENVIRONMENT)
    return said.split("\n", 1)[0], before_s, time.time()


def list_living_runs() -> list[RunMarker]:
    """Return this user's jobs that wait or run, and carry the name of a run."""
    return parse_marks(commands.list_queue(MARK_FORMAT, "-u", getpass.getuser()))


def find_closed_door(job_id: str) -> str | None:
    """Return why a job that Slurm took will never start, in its words; None unless its partition is closed to it."""
    try:
        listed = commands.list_queue("%r", "-j", job_id)
    except HpcdistError:
        return None
    return next((line for line in listed.splitlines() if CLOSED_DOOR in line), None)


def find_cluster_name(config: Mapping[str, str] | None) -> str | None:
    """Return the cluster's name, from its settings or asked for; None where nobody says."""
    try:
        return (commands.read_config() if config is None else config).get("ClusterName")
    except HpcdistError:
        return None
