"""What kind of number each figure is, how it was gathered, and when that has to be said. Pure.

Sources: slurm.conf(5), `JobAcctGatherType`, `JobAcctGatherFrequency`; Slurm's `src/plugins/jobacct_gather`: `linux`
samples the resident memory of each task's processes; `cgroup` samples the task's cgroup, and from 24.11 reads
`memory.peak` (cgroup v1: `memory.max_usage_in_bytes`) where the kernel has it, which counts page cache too.
"""

import re
from collections.abc import Mapping

import msgspec

from hpcdist.record import Efficiency, Gathered, Gathering, Kind, Source

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
    """The kind of each figure that is known, by the name of its field."""
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
    """How a cluster gathers usage, from its settings as `scontrol show config` has them.

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
    """The figures with how their cluster gathers them."""
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
    """What a reader has to know to take the figures for what they are; nothing where they are as they look."""
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
