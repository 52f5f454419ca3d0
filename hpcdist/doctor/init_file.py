"""What `hpcdist init` writes, each value with where it came from, and the file merged with a person's changes.

What was written last stands in a comment at the section's end, so that a person's edit (kept) can be told from a value
that the cluster has changed since (replaced).
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hpcdist.config.toml import parse_toml
from hpcdist.errors import UsageError
from hpcdist.slurm.cluster import Association, Partition
from hpcdist.text import clean, with_underscores
from hpcdist.units import format_duration

# As many modules as anybody reads; those that trainings load go first.
_MOST_MODULES = 12
_WANTED_MODULES = ("cuda", "cudnn", "nccl", "pytorch", "python", "anaconda", "miniconda", "gcc", "openmpi", "apptainer")
# What the testbed calls its GPUs.
FAKE_GPU = "fake"


class Setting(msgspec.Struct, frozen=True):
    """A line to write, or what a person might want to know.

    Attributes:
        key: The setting's name; empty for a remark.
        value: Its value: a text, a number, a truth, or texts by their names.
        source: Where it came from, or the remark.
    """

    key: str = ""
    value: str | int | bool | dict[str, str] | None = None
    source: str = ""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A request that Slurm would take.

    Attributes:
        partition: Where.
        gpu_flag: How its GPU was asked for; None for a CPU job.
        gpu_type: The type that had to be named; None where none had to.
        qos: The QOS that had to be named; None where none had to.
    """

    partition: str
    gpu_flag: str | None = None
    gpu_type: str | None = None
    qos: str | None = None


class GpuShare(msgspec.Struct, frozen=True, kw_only=True):
    """What one GPU's part of a node is.

    Attributes:
        cpus: CPUs per GPU.
        mem_per_cpu_mib: Memory per CPU; None where Slurm does not know the memory, or refused it.
        source: How that was found.
    """

    cpus: int
    mem_per_cpu_mib: int | None
    source: str


def find_share(partition: Partition) -> GpuShare | None:
    """A GPU's part of the partition's most frequent nodes with GPUs; None where they have none."""
    node = next((node for node in partition.nodes if node.gpus), None)
    if node is None:
        return None
    cpus = max(1, node.cpus // node.gpus)
    # Whole cores: half a core is not given to anybody else.
    cpus = max(node.threads_per_core, cpus - cpus % node.threads_per_core)
    node_mib = None if node.memory_bytes is None else node.memory_bytes // 1024**2
    memory = None if node_mib is None else node_mib // node.gpus // cpus
    if memory is not None and partition.max_mem_per_cpu_mib is not None:
        memory = min(memory, partition.max_mem_per_cpu_mib)
    told = f"{node.cpus} CPUs, {node_mib or '?'} MiB and {node.gpus} GPU(s)"
    source = f"{told} on {node.count} node(s) of partition {partition.name}"
    return GpuShare(cpus=cpus, mem_per_cpu_mib=memory, source=source)


def propose_identity(config: Mapping[str, str]) -> list[Setting]:
    """The cluster's name and Slurm's release."""
    found = []
    if name := config.get("ClusterName"):
        found.append(Setting("cluster", name, "ClusterName of scontrol show config"))
    if release := re.match(r"[0-9]{2}\.[0-9]{2}", config.get("SLURM_VERSION", "")):
        source = f"SLURM_VERSION = {config['SLURM_VERSION']} of scontrol show config"
        found.append(Setting("slurm_version", release[0], source))
    return found


def propose_account(
    associations: Sequence[Association], account: str | None, limits: Mapping[str, str]
) -> list[Setting]:
    """The account that was tried, and what else the user has."""
    found = []
    if account:
        found.append(Setting("account", account, "sacctmgr show associations, and a request with it"))
        others = sorted({one.account for one in associations} - {account})
        if others:
            found.append(Setting(source=f"further accounts of yours: {', '.join(others)}"))
    for qos in sorted({name for one in associations for name in one.qos}):
        limit = limits.get(qos)
        found.append(Setting(source=f"QOS {qos}: {limit or 'no limits of its own'} (sacctmgr show qos)"))
    return found


def propose_requests(
    gpu: Accepted | None,
    cpu: Accepted | None,
    partitions: Mapping[str, Partition],
    share: GpuShare | None,
    refused: Sequence[str],
) -> list[Setting]:
    """Partitions, the QOS to name, how GPUs are asked for, and a GPU's share of a node."""
    chosen = {purpose: one.partition for purpose, one in (("gpu", gpu), ("cpu", cpu)) if one}
    found = []
    if chosen:
        found.append(Setting("partitions", chosen, "sinfo's partitions, of which sbatch --test-only takes a job there"))
    for name in dict.fromkeys(chosen.values()):
        limit_s, usual_s = partitions[name].time_limit_s, partitions[name].default_time_s
        longest = format_duration(limit_s) if limit_s else "without limit"
        usual = f", {format_duration(usual_s)} where none is asked for" if usual_s else ""
        found.append(Setting(source=f"partition {name}: time limit {longest}{usual}"))
    found += _propose_qos(gpu, cpu)
    found += [Setting(source=f"refused here: {one}") for one in dict.fromkeys(refused)]
    if gpu is None:
        return [*found, Setting("gpus", 0, "no GPU can be asked for here: CPU layouts are the default")]
    tried = "sbatch --test-only took a job that asked so"
    found.append(Setting("gpu_flag", gpu.gpu_flag, tried))
    if gpu.gpu_type:
        found.append(Setting("gpu_type", gpu.gpu_type, f"without a type it was refused; {tried}"))
    if share:
        found.append(Setting("cpus_per_task", share.cpus, f"CPUs per GPU: {share.source}"))
        if share.mem_per_cpu_mib:
            memory = f"{share.mem_per_cpu_mib}M"
            found.append(Setting("mem_per_cpu", memory, "a GPU's share of the memory, by its CPUs"))
    return found


def _propose_qos(gpu: Accepted | None, cpu: Accepted | None) -> list[Setting]:
    """The QOS that jobs have to name; the file has one for all, and what CPU jobs need beside it is a remark."""
    named = [one for one in (gpu, cpu) if one and one.qos]
    if not named:
        return []
    first = named[0]
    source = f"partition {first.partition} takes no job without one of your QOS named; it took this one"
    others = [one for one in named if one.qos != first.qos]
    return [
        Setting("qos", first.qos, source),
        *(Setting(source=f"partition {one.partition} needs --qos {one.qos}") for one in others),
    ]


def propose_accelerator(partition: Partition | None) -> list[Setting]:
    """CPUs to train on, where a partition's GPUs are none; nothing where they are real."""
    if {node.gpu_type for node in (partition.nodes if partition else ()) if node.gpus} != {FAKE_GPU}:
        return []
    return [Setting("accelerator", "cpu", f"GPUs of type {FAKE_GPU} schedule, and do not compute (docs/testbed.md)")]


def propose_surroundings(
    *, modules: Sequence[str], programs: Sequence[str], srun_help: str, scratch: str | None, has_hyperpod: bool
) -> list[Setting]:
    """Propose what is there beside Slurm; remarks but for what is certain.

    `programs` are those of apptainer, singularity, enroot and seff that are on PATH here.
    """
    found = []
    if has_hyperpod:
        found.append(Setting("auto_resume", value=True, source="/opt/sagemaker_cluster is here: HyperPod"))
    if scratch:
        found.append(Setting("scratch", scratch, "TmpFS of scontrol show config; --stage-data copies there"))
    likely = [one for one in modules if one.lower().startswith(_WANTED_MODULES)][:_MOST_MODULES]
    if modules:
        found.append(Setting(source=f"modules here: {', '.join(likely or list(modules)[:_MOST_MODULES])}, …"))
        found.append(Setting(source='modules = ["…"]'))
    runtimes = [one for one in programs if one != "seff"]
    if "--container-image" in srun_help:
        found.append(Setting(source='containers: srun has pyxis; [container] runtime = "pyxis", image = "…"'))
    elif runtimes:
        likely_one = '[container] runtime = "apptainer", image = "…"'
        found.append(Setting(source=f"containers: {', '.join(runtimes)}; {likely_one}"))
    told = "on PATH" if "seff" in programs else "not here: hpcdist seff reads sacct, or what the ranks measured"
    return [*found, Setting(source=f"seff: {told}")]


_RECORD = "# hpcdist init wrote: "
_HEADER = re.compile(r"\s*\[")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """A file put together.

    Attributes:
        text: Its text.
        kept: What a person changed or took out, and the cluster says otherwise; one sentence each.
    """

    text: str
    kept: tuple[str, ...] = ()


def format_value(value: Any) -> str:
    """A value as TOML, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {format_value(one)}" for key, one in value.items()) + " }"
    # A JSON text is a basic string of TOML, but for the DEL character, which no name holds.
    return json.dumps(value, ensure_ascii=False)


def format_section(settings: Sequence[Setting]) -> list[str]:
    """The lines of settings and remarks, and of what was written."""
    return [*_format_settings(settings), _format_record(settings)]


def _format_settings(settings: Sequence[Setting]) -> list[str]:
    lines = []
    for one in settings:
        lines.append(f"# {clean(one.source)}")
        if one.key:
            lines.append(f"{one.key} = {format_value(one.value)}")
    return lines


def _format_record(settings: Sequence[Setting]) -> str:
    return _RECORD + json.dumps({one.key: one.value for one in settings if one.key}, ensure_ascii=False)


def merge_file(text: str, settings: Sequence[Setting], section: str | None, where: str) -> Merged:
    """Return a file with what the cluster says now; what a person wrote, changed or took out stays.

    The section is the profile under `[sites.NAME]`; None is the file's own settings.

    Raises:
        UsageError: It is no TOML.
    """
    parsed = parse_toml(text, where)
    lines = text.splitlines()
    if section is not None and section not in parsed.get("sites", {}):
        name = section if _BARE.fullmatch(section) else json.dumps(section)
        head = [*lines, *([""] if lines else []), f"[sites.{name}]"]
        return Merged(text="\n".join([*head, *format_section(settings)]) + "\n")
    mine = parsed.get("sites", {}).get(section, {}) if section else parsed
    mine = with_underscores(mine)
    first, end = _find_section(lines, section)
    own = lines[first:end]
    base = _read_record(own)
    own = [line for line in own if not line.startswith(_RECORD)]
    added: list[Setting] = []
    kept: list[str] = []
    for setting in settings:
        if not setting.key:
            continue
        key, new = setting.key, setting.value
        said = f"the cluster says {format_value(new)} ({setting.source})"
        if key in mine and mine[key] == new:
            continue
        if key in mine and key in base and mine[key] == base[key]:
            own = [_replace(line, key, new) for line in own]
        elif key in mine:
            kept.append(f"{key} = {format_value(mine[key])} stays; {said}")
        elif key in base:
            kept.append(f"{key} stays out; {said}")
        else:
            added.append(setting)
    while own and not own[-1].strip():
        own.pop()
    rest = lines[end:]
    gap = [""] if rest and rest[0].strip() else []
    joined = [*lines[:first], *own, *_format_settings(added), _format_record(settings), *gap, *rest]
    return Merged(text="\n".join(joined) + "\n", kept=tuple(kept))


def _find_section(lines: Sequence[str], section: str | None) -> tuple[int, int]:
    """Where a section's lines begin and end: the file's own, or those under its profile's header."""
    first = 0
    if section is not None:
        names = (f"[sites.{section}]", f"[sites.{json.dumps(section)}]")
        found = [number for number, line in enumerate(lines) if line.split("#")[0].strip() in names]
        if not found:
            raise UsageError(
                f"sites.{section} is written in another form than under a header of its own", f"write {names[0]}"
            )
        first = found[0] + 1
    end = next((number for number in range(first, len(lines)) if _HEADER.match(lines[number])), len(lines))
    # The blank line and the remarks before a header are the header's.
    while end < len(lines) and end > first and re.match(r"\s*(#(?! hpcdist init wrote)|$)", lines[end - 1]):
        end -= 1
    return first, end


def _read_record(lines: Sequence[str]) -> dict[str, Any]:
    found = next((line for line in reversed(lines) if line.startswith(_RECORD)), None)
    try:
        values = json.loads(found.removeprefix(_RECORD)) if found else {}
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _replace(line: str, key: str, value: Any) -> str:
    return f"{key} = {format_value(value)}" if re.match(rf"\s*{key.replace('_', '[_-]')}\s*=", line) else line
