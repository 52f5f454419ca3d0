"""What a short training with one setting measured, from its job's record. Pure."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hpcdist.config.job import Layout
from hpcdist.records.job import JobRecord
from hpcdist.records.ranks import RankUsage, mean_split
from hpcdist.records.usage_curve import UsageCurve
from hpcdist.tuning import Attempt
from hpcdist.units import parse_slurm_memory

# Above the one a node has nothing left to give; below the other a rank waits for CPUs.
_FULL, _SERVED = 0.9, 0.8
_TOO_LARGE = frozenset({"cuda-out-of-memory", "out-of-memory"})


def build_attempt(
    layout: Layout,
    record: JobRecord | None,
    curves: Sequence[UsageCurve],
    *,
    batch_size: int,
    workers: int | None = None,
    run: str | None = None,
) -> Attempt:
    """The attempt.

    Args:
        layout: Its shape.
        record: What happened to its job; None of one that was never sent.
        curves: What its ranks used over time.
        batch_size: Samples per step over all ranks.
        workers: Processes of each rank that decode the images.
        run: Its run.
    """
    if record is None:
        return Attempt(batch_size=batch_size, workers=workers, run=run, failure="it was not submitted")
    if record.status.state != "COMPLETED":
        cause = record.failure
        return Attempt(
            batch_size=batch_size,
            workers=workers,
            run=run,
            failure=cause.sentence if cause else f"its job is {record.status.state}",
            out_of_memory=cause is not None and cause.kind in _TOO_LARGE,
        )
    split = mean_split(record.ranks)
    steady = [mean for mean in (_Means.of(layout, rank, curves) for rank in record.ranks) if mean]
    on_gpu, on_cpu, on_node = (_mean(getattr(one, name) for one in steady) for name in ("gpu", "cpu", "node"))
    speeds = [rank.training.images_per_s for rank in record.ranks if rank.training]
    speed = next((one for one in speeds if one is not None), None)
    return Attempt(
        batch_size=batch_size,
        workers=workers,
        run=run,
        images_per_s=speed,
        utilization=on_cpu if on_gpu is None else on_gpu,
        processor="CPU" if on_gpu is None else "GPU",
        is_crowded=on_cpu is not None and on_node is not None and on_node > _FULL and on_cpu < _SERVED,
        memory_share=find_memory_share(layout, record),
        data_share=split.data_s / split.step_s if split else None,
        failure=None if speed else "it ended before its second step",
    )


class _Means(NamedTuple):
    """How busy a rank's GPU, its CPUs and its whole node were in the steady state; None is unknown."""

    gpu: float | None
    cpu: float | None
    node: float | None

    @classmethod
    def of(cls, layout: Layout, rank: RankUsage, curves: Sequence[UsageCurve]) -> "_Means | None":
        """Those of a rank; None without its curve, or when nobody knows when the steady state was."""
        curve = next((one for one in curves if one.rank == rank.rank), None)
        if curve is None or rank.training is None or rank.training.steady_at_s is None:
            return None
        begin_s = rank.training.steady_at_s - curve.started_at_s
        end_s = begin_s + rank.training.phases_s.get("steady", 0.0)
        figures = ("gpu_utilization", "cpu_cores", "node_cpu_utilization")
        gpu, cores, node = (curve.mean(name, begin_s, end_s) for name in figures)
        return cls(gpu, None if cores is None else cores / layout.cpus_per_task, node)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def find_memory_share(layout: Layout, record: JobRecord) -> float | None:
    """Peak memory over what was asked for, of the fullest node; or that of the fullest GPU where it is larger.

    What was not asked for is what the cluster gave, else what the node has.
    """
    shares = []
    hosts: dict[str, list[RankUsage]] = {}
    for rank in record.ranks:
        hosts.setdefault(rank.host, []).append(rank)
        if rank.gpu_memory_peak_bytes is not None and rank.gpu_memory_total_bytes:
            shares.append(rank.gpu_memory_peak_bytes / rank.gpu_memory_total_bytes)
    for on_host in hosts.values():
        room = _find_room(layout, record, on_host)
        used = [rank.memory_peak_bytes for rank in on_host]
        if room and None not in used:
            shares.append(sum(one for one in used if one is not None) / room)
    return max(shares, default=None)


def _find_room(layout: Layout, record: JobRecord, on_host: Sequence[RankUsage]) -> float | None:
    """Memory that the ranks of a host may use together, in bytes."""
    nodes_there = len({rank.node_rank for rank in on_host})  # without Slurm one machine is all nodes
    if layout.mem is not None and parse_slurm_memory(layout.mem):
        return parse_slurm_memory(layout.mem) * nodes_there
    if layout.mem_per_cpu is not None and parse_slurm_memory(layout.mem_per_cpu):
        return parse_slurm_memory(layout.mem_per_cpu) * layout.cpus_per_task * len(on_host)
    asked = record.efficiency.memory_requested_bytes if record.efficiency else None
    if asked:
        return asked / layout.nodes * nodes_there
    return next((rank.node_memory_bytes for rank in on_host if rank.node_memory_bytes), None)
