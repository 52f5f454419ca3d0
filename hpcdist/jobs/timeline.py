"""The joined record: where a job's time went, and where Slurm and the ranks disagree."""

from collections.abc import Sequence

from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import Disagreement, Timeline
from hpcdist.records.ranks import RankUsage, sum_known

# Figures closer than this are the same: ranks and Slurm look at slightly different processes and moments.
TOLERANCE = 0.1
# What the batch script, the launcher and each rank's watcher take, which Slurm counts and the ranks do not.
_WATCHER_CPU_S = 1.0
_WATCHER_BYTES = 48 * 1024**2
# The phases of `TrainingMetrics.phases_s` that lie before steady training.
_STARTING = ("imports", "process_group", "preflight", "data", "first_step")
_PHASES = (*_STARTING, "steady", "validation", "checkpoint")
PARTS = ("queued", "lost", "launch", *_PHASES, "other", "unsplit", "shutdown")
"""The parts that add up, in the order of a job's life; in `Timeline` each has `_s` at its end."""


def build_timeline(efficiency: Efficiency, ranks: Sequence[RankUsage], submitted_at_s: float | None = None) -> Timeline:
    """Return where a job's time went.

    One rank speaks for all, the first that measured a training: its phases follow each other without gaps, and what
    it waits for others is in them. Time that no program accounts for is `unsplit_s`, never guessed. `submitted_at_s`
    (seconds since the epoch) is for accounting that does not say.
    """
    wall_s = efficiency.wall_time_s
    queued_s, lost_s = _before(efficiency, submitted_at_s)
    parts = _within(efficiency, ranks) if wall_s is not None and not efficiency.live else {}
    total_s = None
    if wall_s is not None and not efficiency.live and queued_s is not None:
        total_s = queued_s + (lost_s or 0.0) + wall_s
    steady_s = parts.get("steady")
    starting = [parts[name] for name in ("launch", *_STARTING) if name in parts]
    return Timeline(
        queued_s=queued_s,
        lost_s=lost_s,
        starting_s=sum(starting) if "first_step" in parts else None,
        wall_time_s=wall_s,
        total_s=total_s,
        ettr=steady_s / total_s if steady_s is not None and total_s else None,
        **{f"{name}_s": seconds for name, seconds in parts.items()},
    )


def _before(one: Efficiency, submitted_at_s: float | None) -> tuple[float | None, float | None]:
    """Seconds in the queue, and in runs that were requeued; seff knows of neither."""
    runs = (*one.earlier_runs, one)
    first = runs[0].submitted_at_s if runs[0].submitted_at_s is not None else submitted_at_s
    lost = [run.wall_time_s for run in one.earlier_runs]
    known = [seconds for seconds in lost if seconds is not None]
    lost_s = sum(known, 0.0) if one.source != "seff" and len(known) == len(lost) else None
    if first is None or one.started_at_s is None or lost_s is None:
        return None, lost_s
    return max(0.0, one.started_at_s - first - lost_s), lost_s


def _within(one: Efficiency, ranks: Sequence[RankUsage]) -> dict[str, float]:
    """The parts of the last run's wall-clock time, by name."""
    wall_s = one.wall_time_s or 0.0
    if one.started_at_s is None or not ranks:
        return {"unsplit": wall_s}
    speaker = next((rank for rank in ranks if rank.training and rank.training.phases_s), ranks[0])
    phases_s = speaker.training.phases_s if speaker.training else {}
    parts = {"launch": min(max(0.0, speaker.started_at_s - one.started_at_s), wall_s)}
    parts |= {name: phases_s[name] for name in _PHASES if name in phases_s}
    if phases_s:
        parts["other"] = sum(seconds for name, seconds in phases_s.items() if name not in _PHASES)
    rest_s = wall_s - sum(parts.values())
    if rest_s < 0:
        # Slurm's start is a whole second, up to one too early: that second went into the launch.
        parts["launch"] = max(0.0, parts["launch"] + rest_s)
        rest_s = 0.0
    if phases_s and speaker.exit_code == 0:
        return parts | {"shutdown": rest_s}
    # A program without phases, or one that was killed after it last told them.
    if speaker.ended_at_s is None:
        return parts | {"unsplit": rest_s}
    told_s = speaker.started_at_s + sum(phases_s.values())
    unsplit_s = min(max(0.0, speaker.ended_at_s - told_s), rest_s)
    return parts | {"unsplit": unsplit_s, "shutdown": rest_s - unsplit_s}


def find_disagreements(slurm: Efficiency, ranks: Sequence[RankUsage]) -> tuple[Disagreement, ...]:
    """CPU time and memory on which Slurm and the ranks differ by more than a tenth of the larger figure.

    A difference no larger than what the programs around the ranks take is none. Nothing is compared while the job
    runs, or when a rank did not report.
    """
    if slurm.source == "ranks" or slurm.live or not ranks:
        return ()
    found = []
    cpu_s = sum_known([rank.cpu_time_s for rank in ranks])
    if (
        slurm.cpu_time_s is not None
        and cpu_s is not None
        and _differ(slurm.cpu_time_s, cpu_s, _WATCHER_CPU_S * len(ranks))
    ):
        reason = _CPU_REASONS[slurm.cpu_time_s > cpu_s]
        found.append(Disagreement(figure="cpu_time_s", slurm=slurm.cpu_time_s, ranks=cpu_s, reason=reason))
    memory = sum_known([rank.memory_peak_bytes for rank in ranks])
    used = slurm.memory_used_bytes
    if used is not None and memory is not None and _differ(used, memory, _WATCHER_BYTES * len(ranks)):
        if used > memory:
            kind = slurm.kinds.get("memory_used_bytes")
            reason = _ESTIMATED if slurm.memory_is_estimate else _MORE_MEMORY
            if kind is not None and kind.gathered == "cgroup-peak":
                reason = _PAGE_CACHE
        else:
            reason = _SUMMED if len(ranks) > 1 else _MISSED
        found.append(Disagreement(figure="memory_used_bytes", slurm=used, ranks=memory, reason=reason))
    return tuple(found)


# Keyed by whether Slurm's figure is the larger. sacct(1), TotalCPU: the times of killed steps may lack child processes.
_CPU_REASONS = {
    True: "Slurm also counts the batch script, setup lines and the launcher; a killed rank may not have said all",
    False: "Slurm may leave out the child processes (data loaders) of steps that were killed",
}
_ESTIMATED = "Slurm's figure is an estimate: its largest task times the number of tasks"
_PAGE_CACHE = "Slurm's figure is the kernel's peak of the task's cgroup, page cache included"
_MORE_MEMORY = "Slurm may count page cache and the batch script; the ranks sample once a second"
_SUMMED = "the ranks' peaks came at different moments and are summed, or Slurm's samples missed the peak"
_MISSED = "Slurm's samples missed the peak: many sites sample every 30 s"


def _differ(one: float, other: float, allowed: float) -> bool:
    return abs(one - other) > max(TOLERANCE * max(one, other), allowed)
