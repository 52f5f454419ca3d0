"""The next request, right-sized from what jobs used.

The limits are those in use at computing centres: memory under 35 % used or without 20 % of headroom, under 20 % of the
time limit used, CPU under 80 % (not for GPU jobs), GPU under 50 %.
"""

import math
from collections.abc import Iterable, Sequence

import msgspec

from hpcdist.config.job import JobSpec
from hpcdist.jobs.audit import CPU_SHARE, GPU_IDLE, GPU_SHARE, uses_gpus
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.ranks import RankUsage
from hpcdist.units import format_bytes, format_duration, parse_slurm_memory, parse_slurm_time


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One job that was run.

    Attributes:
        efficiency: Its accounting.
        job: What was asked for; None for a job that hpcdist did not submit.
        ranks: What its ranks measured; empty for such a job.
    """

    efficiency: Efficiency
    job: JobSpec | None = None
    ranks: tuple[RankUsage, ...] = ()


class PeakUsage:
    """The runs of one job, oldest first, and the highest of what they used; the last says what was requested.

    Attributes:
        runs: The runs.
        last: The last run's accounting.
        job: What was asked for; None for a job that hpcdist did not submit.
        live: Whether one still runs.
        completed: Whether one completed: only such a run shows what is enough.
        on_gpus: Whether they compute on GPUs.
        count: How many there are, in words.
    """

    def __init__(self, runs: Sequence[Observation]) -> None:
        self.runs = runs
        self.last = runs[-1].efficiency
        self.job = runs[-1].job
        self.live = any(one.efficiency.live for one in runs)
        self.completed = any(one.efficiency.state == "COMPLETED" for one in runs)
        self.on_gpus = uses_gpus(self.last, self.job)
        self.count = "1 job" if len(runs) == 1 else f"{len(runs)} jobs"

    @property
    def may_lower(self) -> bool:
        """Whether anything may be asked for in smaller amounts."""
        return self.completed and not self.live

    @property
    def nodes(self) -> int:
        """Nodes of the job."""
        return self.job.layout.nodes if self.job else self.last.nodes or 1

    @property
    def tasks(self) -> int:
        """Tasks of the job; of one that is not ours, one per GPU, else one per node."""
        return self.job.layout.world_size if self.job else self.last.gpus or self.nodes

    @property
    def tasks_per_node(self) -> int:
        """Tasks of each node."""
        return max(1, self.tasks // self.nodes)

    def ended_as(self, state: str) -> bool:
        """Whether any run ended in this state."""
        return any(one.efficiency.state == state for one in self.runs)

    def has_ranks(self) -> bool:
        """Whether any run's ranks measured themselves."""
        return any(one.ranks for one in self.runs)

    def wall_time_s(self) -> float | None:
        """Seconds of the longest run."""
        return _highest(one.efficiency.wall_time_s for one in self.runs)

    def time_limit_s(self) -> float | None:
        """The time limit in seconds; None without one."""
        if self.job and self.job.layout.time:
            return parse_slurm_time(self.job.layout.time)
        return self.last.time_limit_s

    def gpu_shares(self) -> list[float] | None:
        """How busy each rank's GPU was, fractions; None unless every rank measured it."""
        shares = [rank.gpu_utilization for one in self.runs for rank in one.ranks]
        known = [share for share in shares if share is not None]
        return known if known and len(known) == len(shares) else None

    def gpus_used_per_node(self) -> int:
        """GPUs that were busy at all, on the node that used most."""
        counts: dict[tuple[int, int], int] = {}
        for number, one in enumerate(self.runs):
            for rank in one.ranks:
                if rank.gpu_utilization is not None and rank.gpu_utilization >= GPU_IDLE:
                    counts[number, rank.node_rank] = counts.get((number, rank.node_rank), 0) + 1
        return max(counts.values(), default=0)

    def cpus_per_task(self) -> int | None:
        """CPUs asked for per task."""
        if self.job:
            return self.job.layout.cpus_per_task
        return max(1, self.last.cores // self.tasks) if self.last.cores else None

    def busy_cpus(self) -> float | None:
        """Mean number of CPUs that one task kept busy: the busiest task, where the ranks tell, of the busiest run."""
        return _highest(self._busy_cpus(one) for one in self.runs)

    def _busy_cpus(self, one: Observation) -> float | None:
        shares = _rank_cpus(one.ranks)
        cpu_s, wall_s = one.efficiency.cpu_time_s, one.efficiency.wall_time_s
        if cpu_s is not None and wall_s:
            shares.append(cpu_s / wall_s / self.tasks)
        return max(shares, default=None)

    def cpus_per_node(self) -> int:
        """CPUs that a node gave."""
        if self.last.cores:
            return max(1, self.last.cores // self.nodes)
        return (self.cpus_per_task() or 1) * self.tasks_per_node

    def memory_bytes(self) -> float | None:
        """Bytes on the fullest node of any run: Slurm's sum shared out, or the ranks' peaks of a node; the higher."""
        return _highest(self._memory_bytes(one) for one in self.runs)

    def _memory_bytes(self, one: Observation) -> float | None:
        by_node: dict[int, float] = {}
        for rank in one.ranks:
            by_node[rank.node_rank] = by_node.get(rank.node_rank, 0.0) + (rank.memory_peak_bytes or 0)
        used = one.efficiency.memory_used_bytes
        known = [] if used is None else [used / (one.efficiency.nodes or self.nodes)]
        return max([*known, *(size for size in by_node.values() if size)], default=None)

    def is_memory_per_cpu(self) -> bool:
        """Whether memory was asked for per CPU."""
        return bool(self.job.layout.mem_per_cpu) if self.job else self.last.memory_per == "core"

    def memory_asked_bytes(self) -> int | None:
        """Bytes asked for per node; None when nobody says."""
        if self.last.memory_requested_bytes is not None:
            return self.last.memory_requested_bytes // (self.last.nodes or self.nodes)
        layout = self.job.layout if self.job else None
        if layout and layout.mem:
            return parse_slurm_memory(layout.mem) or None
        if layout and layout.mem_per_cpu:
            return parse_slurm_memory(layout.mem_per_cpu) * self.cpus_per_node() or None
        return None

    def memory_asked(self) -> str | None:
        """The request in Slurm's words; None when none was made."""
        if self.job:
            return self.job.layout.mem_per_cpu if self.is_memory_per_cpu() else self.job.layout.mem
        asked_bytes = self.memory_asked_bytes()
        if asked_bytes is None:
            return None
        return f"{math.ceil(asked_bytes / (self.cpus_per_node() if self.is_memory_per_cpu() else 1) / 1024**2)}M"


def _rank_cpus(ranks: Sequence[RankUsage]) -> list[float]:
    """Mean number of CPUs each rank kept busy, of the ranks that ended."""
    return [
        rank.cpu_time_s / (rank.ended_at_s - rank.started_at_s)
        for rank in ranks
        if rank.cpu_time_s is not None and rank.ended_at_s is not None and rank.ended_at_s > rank.started_at_s
    ]


def _highest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


MEMORY_HEADROOM = 1.2
MEMORY_SHARE = 0.35
TIME_HEADROOM = 1.5
TIME_SHARE = 0.2
# A job that was ended for wanting more is given this much more, not the headroom over a peak: what it would have used,
# nobody saw.
RAISE = 1.5
SHORT_S = 600.0
_MIB = 1024**2
_NOISE = 0.005  # CPU time is counted in ticks: 1.003 busy CPUs are one


class Recommendation(msgspec.Struct, frozen=True):
    """The advice on one option.

    Attributes:
        option: The option's name in `hpcdist submit`, without the dashes.
        asked: What was asked for, in the option's own form; None when nothing was.
        advised: What to ask for next, in that form; the same as `asked` to leave it.
        evidence: What was used of what was asked for, where that figure comes from, over how many jobs.
        rule: Why it follows.
    """

    option: str
    asked: str | None
    advised: str | None
    evidence: str
    rule: str

    @property
    def is_change(self) -> bool:
        """Whether the option is to be changed."""
        return self.advised is not None and self.advised != self.asked


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """The next request.

    Attributes:
        jobs: Ids of the jobs it rests on.
        lines: One per option of which something is known.
        notes: What keeps the advice from being better.
    """

    jobs: tuple[str, ...]
    lines: tuple[Recommendation, ...]
    notes: tuple[str, ...]

    def changes(self) -> dict[str, str]:
        """The options to change, with their new values."""
        return {line.option: line.advised for line in self.lines if line.advised is not None and line.is_change}


def advise(observations: Sequence[Observation]) -> Advice:
    """Return the next request of a job that ran once or several times: from the highest use, never below it.

    Only a job that completed shows what is enough; others can only raise a request. The oldest run comes first.
    """
    pool = PeakUsage(observations)
    cpus = _advise_cpus(pool)
    lines = (*_advise_gpus(pool), cpus, _advise_memory(pool, cpus), _advise_time(pool))
    return Advice(
        jobs=tuple(one.efficiency.array_job_id or one.efficiency.job_id for one in observations),
        lines=tuple(line for line in lines if line),
        notes=tuple(_notes(pool)),
    )


def _advise_gpus(pool: PeakUsage) -> list[Recommendation]:
    """GPUs per node: fewer only where some were never used."""
    if not pool.last.gpus:
        return []
    asked = pool.job.layout.gpus if pool.job else pool.last.gpus // pool.nodes
    if pool.job and not pool.on_gpus:
        evidence = f"0 of {pool.last.gpus} used ({pool.count})"
        rule = "the training was told to use the CPUs"
        lines = [Recommendation("gpus", str(asked), "0", evidence, rule)]
        # A CPU layout has one rank per node unless told otherwise.
        ranks = [Recommendation("tasks-per-node", None, str(asked), evidence, "as many ranks as before")]
        return lines + ranks if asked > 1 else lines
    shares = pool.gpu_shares()
    if shares is None:
        evidence = f"{pool.last.gpus} allocated"
        return [Recommendation("gpus", str(asked), str(asked), evidence, "nobody measured their use")]
    used, mean = pool.gpus_used_per_node(), sum(shares) / len(shares)
    evidence = f"{used} of {asked} per node used, {mean:.0%} busy (ranks, {pool.count})"
    if 0 < used < asked and pool.may_lower:
        return [Recommendation("gpus", str(asked), str(used), evidence, "the others stayed idle")]
    rule = "all are used" if used >= asked else _why_kept(pool)
    if mean < GPU_SHARE:
        rule += f"; under {GPU_SHARE:.0%} busy: find what they wait for before adding any"
    return [Recommendation("gpus", str(asked), str(asked), evidence, rule)]


def _advise_cpus(pool: PeakUsage) -> Recommendation | None:
    """CPUs per task: as many as were busy on average; of a GPU job twice that, since loaders work in bursts."""
    asked, busy = pool.cpus_per_task(), pool.busy_cpus()
    if asked is None or busy is None:
        return None
    source = "ranks" if pool.has_ranks() else pool.last.source
    evidence = f"{busy:.2f} of {asked} busy on average, {busy / asked:.0%} ({source}, {pool.count})"
    advised = max(1, math.ceil((2 * busy if pool.on_gpus else busy) - _NOISE))
    share = pool.last.gpu_efficiency
    if pool.on_gpus and share is not None and share < GPU_SHARE:
        rule = f"the GPUs are under {GPU_SHARE:.0%} busy: too few CPUs may be why"
    elif not pool.on_gpus and busy >= CPU_SHARE * asked:
        rule = f"{CPU_SHARE:.0%} and more busy is good use"
    elif advised >= asked:
        rule = "in a GPU job loaders work in bursts" if pool.on_gpus else "a whole number of CPUs can't be lower"
    elif not pool.may_lower:
        rule = _why_kept(pool)
    else:
        rule = "a GPU job keeps twice what was busy" if pool.on_gpus else f"under {CPU_SHARE:.0%} busy: what was busy"
        return Recommendation("cpus-per-task", str(asked), str(advised), evidence, rule)
    return Recommendation("cpus-per-task", str(asked), str(asked), evidence, rule)


def _advise_memory(pool: PeakUsage, cpus: Recommendation | None) -> Recommendation | None:
    """Memory per node or per CPU: the highest peak and a fifth more."""
    peak, asked_bytes, asked = pool.memory_bytes(), pool.memory_asked_bytes(), pool.memory_asked()
    if peak is None:
        return None
    per_cpu = pool.is_memory_per_cpu()
    option = "mem-per-cpu" if per_cpu else "mem"
    needed, rule = MEMORY_HEADROOM * peak, "the peak and 20 % more"
    if pool.ended_as("OUT_OF_MEMORY"):
        needed, rule = raised_memory_bytes(asked_bytes, peak), "it ran out of memory: half as much again"
    source = "the higher of Slurm's and the ranks'" if pool.has_ranks() else pool.last.source
    of = "" if asked_bytes is None else f" of {format_bytes(asked_bytes)}, {peak / asked_bytes:.0%}"
    evidence = f"peak {format_bytes(peak)}{of}, per node ({source}, {pool.count})"
    kept = _why_memory_fits(pool, asked_bytes, needed, peak)
    # Where memory comes per CPU, by request or by the site's default, fewer CPUs mean less of it.
    fewer_cpus = cpus is not None and cpus.is_change and (per_cpu or asked is None)
    if kept and not fewer_cpus:
        return Recommendation(option, asked, asked, evidence, kept)
    if kept and asked_bytes is not None and peak >= MEMORY_SHARE * asked_bytes:
        needed, rule = asked_bytes, "as much as before on fewer CPUs"
    parts = pool.cpus_per_node() if per_cpu else 1
    if per_cpu and cpus is not None and cpus.is_change and cpus.advised is not None:
        parts = int(cpus.advised) * pool.tasks_per_node
    advised = memory_text(needed / parts)
    if asked_bytes is not None and parse_slurm_memory(advised) * parts >= asked_bytes >= needed and not fewer_cpus:
        return Recommendation(option, asked, asked, evidence, "small enough")
    return Recommendation(option, asked, advised, evidence, rule)


def _why_memory_fits(pool: PeakUsage, asked_bytes: int | None, needed: float, peak: float) -> str | None:
    """Why the request can stay; None when it can't."""
    if asked_bytes is None or asked_bytes < needed:
        return None
    if not pool.may_lower:
        return _why_kept(pool)
    if peak >= MEMORY_SHARE * asked_bytes:
        return f"{MEMORY_SHARE:.0%} and more used, 20 % of headroom left"
    return None


def _advise_time(pool: PeakUsage) -> Recommendation | None:
    """The time limit: the longest run and half as much again."""
    wall_s, limit_s = pool.wall_time_s(), pool.time_limit_s()
    if wall_s is None:
        return None
    asked = pool.job.layout.time if pool.job else None if limit_s is None else format_duration(limit_s)
    of = "" if limit_s is None else f" of {format_duration(limit_s)}, {wall_s / limit_s:.0%}"
    evidence = f"{format_duration(wall_s)}{of} used ({pool.last.source}, {pool.count})"
    if pool.ended_as("TIMEOUT"):
        advised = time_text(RAISE * max(limit_s or 0.0, wall_s))
        return Recommendation("time", asked, advised, evidence, "it ran into the limit: half as much again")
    if not pool.may_lower:
        return Recommendation("time", asked, asked, evidence, _why_kept(pool))
    if limit_s is None:
        rule = "a job with a time limit starts earlier"
    elif wall_s > limit_s / 1.1:
        rule = "less than 10 % of the limit was left"
    elif wall_s < TIME_SHARE * limit_s:
        rule = f"under {TIME_SHARE:.0%} of the limit used: a shorter job starts earlier"
    else:
        return Recommendation("time", asked, asked, evidence, f"{TIME_SHARE:.0%} and more of the limit used")
    advised_s = TIME_HEADROOM * wall_s
    # Rounding up must not turn a lower limit into a higher one.
    if limit_s is not None and wall_s < TIME_SHARE * limit_s and _minutes(advised_s) * 60 >= limit_s:
        return Recommendation("time", asked, asked, evidence, "short enough")
    return Recommendation("time", asked, time_text(advised_s), evidence, rule)


def _notes(pool: PeakUsage) -> list[str]:
    """What makes the advice weaker than it could be."""
    notes = []
    wall_s = pool.wall_time_s()
    if pool.live:
        notes.append("a job still runs: its figures can only grow")
    elif not pool.completed:
        notes.append("no job completed, so nobody knows what is enough: requests are only raised")
    elif len(pool.runs) == 1:
        short = wall_s is not None and wall_s < SHORT_S
        weighs = f"of {wall_s:.0f} s, in which start-up weighs more than training, " if short else ""
        notes.append(f"one job {weighs}is not much to go by: give several of the same")
    if pool.memory_bytes() is None:
        notes.append("nobody measured the memory")
    elif not pool.has_ranks():
        notes.append(_note_on_memory(pool.last))
    if pool.last.memory_is_estimate and not pool.has_ranks():
        notes.append("the memory is an estimate: the largest task times the number of tasks")
    if not pool.job and pool.tasks > 1:
        tasks = "GPU" if pool.last.gpus else "node"
        notes.append(f"not submitted by hpcdist: one task per {tasks} is assumed, and that all used the same")
    return notes


def _note_on_memory(one: Efficiency) -> str:
    """What Slurm's memory figure leaves out or counts in."""
    kind = one.kinds.get("memory_used_bytes")
    if kind is not None and kind.gathered == "cgroup-peak":
        return "Slurm counts page cache as memory: the program may need less"
    every = f"every {kind.every_s:g} s" if kind is not None and kind.every_s else "often every 30 s"
    return f"Slurm samples memory, {every}: a short peak between two samples is missing"


def _why_kept(pool: PeakUsage) -> str:
    return "not lowered while a job runs" if pool.live else "not lowered: no job completed"


def raised_memory_bytes(asked_bytes: float | None, peak_bytes: float | None) -> float:
    """What to ask for after too little memory: half as much again as the job had or was seen with, the higher.

    Samples may be higher than the request where nothing enforces it, and lower where it was ended between two of them.
    """
    return RAISE * max(asked_bytes or 0, peak_bytes or 0)


def memory_text(size_bytes: float) -> str:
    """The size rounded up to what people write: in steps of 128 MiB below 2 GiB, 512 MiB below 8 GiB, then 1 GiB."""
    step = 128 if size_bytes < 2048 * _MIB else 512 if size_bytes < 8192 * _MIB else 1024
    mebibytes = math.ceil(size_bytes / _MIB / step) * step
    return f"{mebibytes // 1024}G" if mebibytes % 1024 == 0 else f"{mebibytes}M"


def _minutes(seconds: float) -> int:
    """Minutes rounded up: in steps of 5 to an hour, 15 to four, then of an hour."""
    step = 5 if seconds <= 3600 else 15 if seconds <= 4 * 3600 else 60
    return math.ceil(seconds / 60 / step) * step


def time_text(seconds: float) -> str:
    """The time rounded up, in Slurm's words."""
    minutes = _minutes(seconds)
    if minutes < 60:
        return str(minutes)
    days, rest = divmod(minutes, 24 * 60)
    return (f"{days}-" if days else "") + f"{rest // 60:02d}:{rest % 60:02d}:00"
