"""A job's efficiency figures, and the provenance of each: total, mean, peak or estimate, and how it was sampled.

Sources: slurm.conf(5), `JobAcctGatherType`, `JobAcctGatherFrequency`; Slurm's `src/plugins/jobacct_gather`: `linux`
samples the resident memory of each task's processes; `cgroup` samples the task's cgroup, and from 24.11 reads
`memory.peak` (cgroup v1: `memory.max_usage_in_bytes`) where the kernel has it, which counts page cache too.
"""

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

Source = Literal["seff", "sacct", "sstat", "squeue", "ranks"]
Gathered = Literal["sampled", "cgroup-peak", "nothing"]


IMBALANCE = "The task which had the largest memory consumption"
"""The name under which `Efficiency.extra` has seff's sentence about tasks of unlike size."""


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What kind of number a figure is.

    Attributes:
        kind: "total" counts all there was; "mean" is over the job's time; "peak" is the highest there was (of several
            tasks the sum of each one's); "estimate" bounds that peak from above.
        gathered: By samples, or as the kernel's own peak of a cgroup, file cache included; None where nobody says.
        every_s: Seconds between samples, as the cluster is set up.
        source: Which program it came from.
    """

    kind: Literal["total", "mean", "peak", "estimate"]
    gathered: Gathered | None = None
    every_s: float | None = None
    source: Source


class Gathering(msgspec.Struct, frozen=True, kw_only=True):
    """How a cluster gathers the memory its jobs use.

    Attributes:
        gathered: As in `Kind`; "nothing" where gathering is switched off.
        every_s: Seconds between samples; None without samples at intervals.
        slurm_version: The cluster's Slurm.
    """

    gathered: Gathered | None = None
    every_s: float | None = None
    slurm_version: str | None = None


class Efficiency(msgspec.Struct, frozen=True, kw_only=True):
    """A job's accounting as `seff` or `sacct` has it. None is "not printed, not gathered, or impossible".

    Attributes:
        job_id: Slurm job id (`123`, `123_4` for an array task is split into `array_job_id`), or `local-N`.
        array_job_id: `<array id>_<task>` when the job is an array's task; `<array id>_[2-5]` for tasks still pending.
        het_job_id: `<job id>+<component>` when the job is a component of a heterogeneous job.
        cluster: Cluster name.
        user: Owner.
        group: Owner's group.
        state: Slurm's state word (`COMPLETED`, `TIMEOUT`, ...).
        exit_code: Exit status of the job, 0 to 255.
        nodes: Nodes allocated.
        cores: CPUs allocated over all nodes.
        cores_per_node: As printed; seff truncates it.
        cpu_time_s: User and system time of all processes, in seconds.
        cpu_efficiency: `cpu_time_s / core_walltime_s`, a fraction.
        core_walltime_s: `cores * wall_time_s`, in seconds.
        wall_time_s: From start to end, in seconds.
        memory_used_bytes: Peak memory summed over the tasks of the largest step, in bytes.
        memory_is_estimate: True where that sum is the largest task times the number of tasks.
        memory_efficiency: `memory_used_bytes / memory_requested_bytes`, a fraction; may exceed 1.
        memory_requested_bytes: Memory of the whole job, in bytes.
        memory_per: Whether memory was asked per "node" or per "core".
        gpus: GPUs allocated over all nodes.
        gpu_efficiency: Mean GPU utilisation over the job, a fraction.
        gpu_memory_used_bytes: Peak GPU memory, in bytes.
        time_limit_s: Time limit, in seconds.
        name: Job name.
        partition: Partition.
        node_list: Nodes in Slurm's bracket form (`n[1-2]`).
        submitted_at_s: Submission (of a requeued run: its requeueing), seconds since the epoch.
        started_at_s: Start, seconds since the epoch.
        ended_at_s: End, seconds since the epoch.
        earlier_runs: The runs before this one of a job that was requeued, oldest first.
        source: Which program the figures came from; "squeue" where there are none yet.
        kinds: What kind of number a measured figure is, by its name here; an efficiency is of the kind of its figure.
        gathering: How the cluster gathers usage, where it was asked.
        live: True while the job still runs: the figures are those of now.
        extra: Printed lines that are not a field here, by their printed name.
    """

    job_id: str
    array_job_id: str | None = None
    het_job_id: str | None = None
    cluster: str | None = None
    user: str | None = None
    group: str | None = None
    state: str | None = None
    exit_code: int | None = None
    nodes: int | None = None
    cores: int | None = None
    cores_per_node: int | None = None
    cpu_time_s: float | None = None
    cpu_efficiency: float | None = None
    core_walltime_s: float | None = None
    wall_time_s: float | None = None
    memory_used_bytes: int | None = None
    memory_is_estimate: bool | None = None
    memory_efficiency: float | None = None
    memory_requested_bytes: int | None = None
    memory_per: Literal["node", "core"] | None = None
    gpus: int | None = None
    gpu_efficiency: float | None = None
    gpu_memory_used_bytes: int | None = None
    time_limit_s: float | None = None
    name: str | None = None
    partition: str | None = None
    node_list: str | None = None
    submitted_at_s: float | None = None
    started_at_s: float | None = None
    ended_at_s: float | None = None
    earlier_runs: tuple["Efficiency", ...] = ()
    source: Source = "seff"
    kinds: dict[str, Kind] = {}
    gathering: Gathering | None = None
    live: bool = False
    extra: dict[str, str] = {}


RANK_INTERVAL_S = 1.0
"""Seconds between the samples that `hpcdist.rank` takes of its program."""
RANK_GATHERING = Gathering(gathered="sampled", every_s=RANK_INTERVAL_S)

_TASK_INTERVAL = re.compile(r"(?:^|,)(?:task=)?([0-9]{1,6})(?=,|$)", re.IGNORECASE)
_VERSION = re.compile(r"([0-9]{2})\.([0-9]{2})")
# The first release whose cgroup plugin reads the kernel's own peak.
_KERNEL_PEAK = (24, 11)
_DEFAULT_INTERVAL_S = 30.0
# Fewer samples than this say little about a peak, and a longer interval than this misses whole phases.
_FEW_SAMPLES = 3
_LONG_INTERVAL_S = 10.0
# What one interval can hide is less than a tenth of such a run.
_MANY_SAMPLES = 10
_KILLED = frozenset({"CANCELLED", "DEADLINE", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"})


def name_kinds(
    source: Source,
    *,
    cpu: float | None = None,
    memory: float | None = None,
    memory_is_estimate: bool | None = None,
    gpu: float | None = None,
    gpu_memory: float | None = None,
    gathering: Gathering | None = None,
) -> dict[str, Kind]:
    """Return the kind of each figure that is known, by the name of its field."""
    known: dict[str, Kind] = {}
    gathered, every_s = (gathering.gathered, gathering.every_s) if gathering else (None, None)
    on_gpu: Gathered | None = "sampled" if gathering else None
    if cpu is not None:
        known["cpu_time_s"] = Kind(kind="total", source=source)
    if memory is not None:
        known["memory_used_bytes"] = Kind(
            kind="estimate" if memory_is_estimate else "peak", gathered=gathered, every_s=every_s, source=source
        )
    if gpu is not None:
        known["gpu_efficiency"] = Kind(kind="mean", gathered=on_gpu, every_s=every_s, source=source)
    if gpu_memory is not None:
        known["gpu_memory_used_bytes"] = Kind(kind="peak", gathered=on_gpu, every_s=every_s, source=source)
    return known


def parse_gathering(config: Mapping[str, str]) -> Gathering:
    """Return how a cluster gathers usage, from its settings as `scontrol show config` has them.

    A job may have asked for another interval (`sbatch --acctg-freq`), which accounting does not keep.
    """
    version = config.get("SLURM_VERSION") or None
    plugin = config.get("JobAcctGatherType", "").removeprefix("jobacct_gather/")
    if plugin in {"", "none", "(null)"}:
        return Gathering(gathered="nothing" if plugin else None, slurm_version=version)
    release = _VERSION.match(version or "")
    if plugin == "cgroup" and release and (int(release[1]), int(release[2])) >= _KERNEL_PEAK:
        return Gathering(gathered="cgroup-peak", slurm_version=version)
    interval = _TASK_INTERVAL.search(config.get("JobAcctGatherFrequency", ""))
    every_s = float(interval[1]) if interval else _DEFAULT_INTERVAL_S
    return Gathering(gathered="sampled", every_s=every_s or None, slurm_version=version)


def with_gathering(efficiency: Efficiency, gathering: Gathering) -> Efficiency:
    """Return the figures with how their cluster gathers them."""
    kinds = dict(efficiency.kinds)
    for name, kind in efficiency.kinds.items():
        # CPU time is the kernel's own count; what ranks measured of themselves, they gathered themselves.
        if name in {"memory_used_bytes", "gpu_memory_used_bytes"} and kind.source != "ranks":
            how: Gathered | None = "sampled" if name.startswith("gpu") else gathering.gathered
            every_s = gathering.every_s if how == "sampled" else None
            kinds[name] = msgspec.structs.replace(kind, gathered=how, every_s=every_s)
    earlier = tuple(with_gathering(run, gathering) for run in efficiency.earlier_runs)
    return msgspec.structs.replace(efficiency, kinds=kinds, gathering=gathering, earlier_runs=earlier)


def footnotes(efficiency: Efficiency) -> list[str]:
    """Return what a reader has to know to take the figures for what they are; nothing where they are as they look."""
    notes = [*_cpu_notes(efficiency), *_memory_notes(efficiency), *_run_notes(efficiency)]
    if "gres/gpuutil" in efficiency.extra and efficiency.gpu_efficiency is None:
        notes.append("Slurm's GPU figure (gres/gpuutil) is the highest moment, summed over the tasks: no efficiency.")
    return notes


def _cpu_notes(efficiency: Efficiency) -> list[str]:
    """Of what was killed, the kernel counts the tasks alone; their children count up to the last sample [run]."""
    every_s = efficiency.gathering.every_s if efficiency.gathering else None
    if efficiency.state not in _KILLED or efficiency.source == "ranks" or "cpu_time_s" not in efficiency.kinds:
        return []
    if every_s is None or every_s < _LONG_INTERVAL_S or (efficiency.wall_time_s or 0.0) > _MANY_SAMPLES * every_s:
        return []
    return [f"CPU: the job was killed, so its programs' children count up to the last sample (every {every_s:g} s)."]


def _memory_notes(efficiency: Efficiency) -> list[str]:
    gathering, memory = efficiency.gathering, efficiency.kinds.get("memory_used_bytes")
    wall_s = efficiency.wall_time_s or 0.0
    if memory is None:
        ran = wall_s > 0 and efficiency.memory_used_bytes is None
        if gathering is None or not ran:
            return []
        if gathering.gathered == "nothing":
            return ["Memory: this cluster gathers no usage (JobAcctGatherType=none)."]
        if gathering.every_s is not None and wall_s <= gathering.every_s + 1:
            return [f"Memory: unknown, for it is sampled every {gathering.every_s:g} s and the job ran {wall_s:.0f} s."]
        return []
    notes = []
    if memory.kind == "estimate":
        sums = "the ranks' peaks, which need not have come at once" if memory.source == "ranks" else ""
        notes.append(f"Memory: an upper bound, {sums or 'the largest task times the number of tasks'}.")
    if memory.gathered == "cgroup-peak":
        notes.append("Memory: the kernel's peak of the job's cgroup, file cache included, which it could have dropped.")
    long_s = memory.every_s if memory.gathered == "sampled" else None
    if long_s is not None and long_s >= _LONG_INTERVAL_S and wall_s < _FEW_SAMPLES * long_s:
        notes.append(f"Memory: sampled every {long_s:g} s, so a job of {wall_s:.0f} s may have used more in between.")
    return notes


def _run_notes(efficiency: Efficiency) -> list[str]:
    if not efficiency.earlier_runs:
        return []
    runs = [*efficiency.earlier_runs, efficiency]
    states = ", ".join(f"{run.state} after {run.wall_time_s or 0:.0f} s" for run in efficiency.earlier_runs)
    walls = [run.wall_time_s for run in runs]
    total = f"; {sum(wall or 0 for wall in walls):.0f} s over all" if None not in walls else ""
    return [f"Requeued: the figures are run {len(runs)}'s; before it {states}{total}."]
