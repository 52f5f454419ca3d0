"""What the runs of one job used at most, and what they asked for. Pure."""

import math
from collections.abc import Iterable, Sequence

import msgspec

from hpcdist.audit import GPU_IDLE, uses_gpus
from hpcdist.config.job import JobSpec
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.ranks import RankUsage
from hpcdist.units import parse_slurm_memory, parse_slurm_time


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


class Pool:
    """The runs of one job, and the highest of what they used.

    Args:
        runs: Oldest first; at least one. The last says what was asked for.

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
