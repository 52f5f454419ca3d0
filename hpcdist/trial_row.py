"""One job of a study in figures: what its record says, what it cost, when it reached the target. Pure."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from hpcdist.comparison import TrialRow
from hpcdist.config.site import Prices
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import JobRecord, Timeline
from hpcdist.records.ranks import TrainingMetrics, find_straggler, mean_split, waiting_s
from hpcdist.studies.study import Study, Trial, Variant

NOT_SUBMITTED = "NOT SUBMITTED"
_NO_FIGURES = Timeline()
_HOUR_S = 3600.0

# Figures that are called the same where they come from.
_ACCOUNTED = ("cpu_efficiency", "memory_efficiency", "gpu_efficiency", "started_at_s", "ended_at_s")
_MEASURED = ("images_per_s", "accuracy", "global_batch_size", "bytes_per_step")

V = TypeVar("V")


def build_trial_row(study: Study, variant: Variant, trial: Trial, record: JobRecord | None) -> TrialRow:
    """The figures of one job.

    Args:
        study: Its prices and target are used.
        variant: What was asked for.
        trial: Which job it is.
        record: What happened to it; None of a job that was never sent.
    """
    if record is None:
        return TrialRow(repeat=trial.repeat, run=trial.run, state=NOT_SUBMITTED, reason="it was not submitted")
    efficiency = record.efficiency
    timeline = record.timeline or _NO_FIGURES
    paid_s = _sum_paid_s(efficiency)
    reached_s = _find_time_to_target(efficiency, _trainings(record), study.target_accuracy)
    price = _price_per_hour(study.prices, variant, efficiency)
    gpus = _count_gpus(variant, efficiency)
    return TrialRow(
        repeat=trial.repeat,
        run=trial.run,
        job_id=record.status.job_id,
        state=record.status.state,
        reason=_find_reason(record),
        ranks_worked=_count_ranks(variant, record),
        wall_s=efficiency.wall_time_s if efficiency else None,
        starting_s=timeline.starting_s,
        queued_s=timeline.queued_s,
        time_to_target_s=reached_s,
        gpu_hours=None if paid_s is None else (gpus or variant.layout.world_size) * paid_s / _HOUR_S,
        cost=None if paid_s is None or price is None else price * paid_s / _HOUR_S,
        cost_to_target=None if reached_s is None or price is None else price * reached_s / _HOUR_S,
        ettr=timeline.ettr,
        loader_cpu_share=_find_loader_share(record),
        **_accounted(efficiency),
        **_measured(record),
    )


def _accounted(efficiency: Efficiency | None) -> dict[str, Any]:
    """The figures that are the accounting's."""
    if efficiency is None:
        return {}
    busy = efficiency.cpu_efficiency
    if busy is None and efficiency.cpu_time_s is not None and efficiency.core_walltime_s:
        busy = efficiency.cpu_time_s / efficiency.core_walltime_s
    return {"cpu_busy": busy, **{name: getattr(efficiency, name) for name in _ACCOUNTED}}


def _measured(record: JobRecord) -> dict[str, Any]:
    """The figures that the ranks measured."""
    trainings = _trainings(record)
    probe = _first(trainings, lambda one: one.probe or None) or ()
    by_size = sorted(probe, key=attrgetter("size_bytes"))
    efficiency = record.efficiency
    return {
        **{name: _first(trainings, attrgetter(name)) for name in _MEASURED},
        "split": mean_split(record.ranks),
        "waiting_s": waiting_s(record.ranks),
        "straggler": find_straggler(record.ranks),
        "latency_s": by_size[0].latency_s if by_size else None,
        "bandwidth_bytes_per_s": by_size[-1].bandwidth_bytes_per_s if by_size else None,
        "tests": _first(trainings, lambda one: one.tests or None) or (),
        "nodes": (efficiency.node_list if efficiency else None) or record.status.nodes,
    }


def _trainings(record: JobRecord) -> list[TrainingMetrics]:
    return [rank.training for rank in record.ranks if rank.training]


def _first(trainings: Sequence[TrainingMetrics], value: Callable[[TrainingMetrics], V | None]) -> V | None:
    """What the first rank that knows it says; these figures are the same on every rank."""
    return next((known for known in map(value, trainings) if known is not None), None)


def _find_loader_share(record: JobRecord) -> float | None:
    """CPU time of the ranks' children over that of the CPUs allocated."""
    spent = [rank.children_cpu_time_s for rank in record.ranks]
    known = [seconds for seconds in spent if seconds is not None]
    allocated_s = record.efficiency.core_walltime_s if record.efficiency else None
    return sum(known) / allocated_s if allocated_s and known and len(known) == len(spent) else None


def _find_reason(record: JobRecord) -> str | None:
    if record.failure:
        return record.failure.sentence
    return record.status.reason if record.status.state not in {"COMPLETED", "RUNNING"} else None


def _count_ranks(variant: Variant, record: JobRecord) -> int | None:
    """Ranks that trained together; of those with a GPU each, no more than the GPUs that were busy at all."""
    audit = record.audit
    if audit is None:
        return None
    ranks = audit.world_size
    # torchrun starts the ranks, so that what reports is one task per node.
    if ranks is None and variant.options.get("launcher") != "torchrun":
        ranks = audit.ranks
    if ranks is not None and audit.gpus and audit.gpus_used:
        return min(ranks, audit.gpus_used)
    return ranks


def _count_gpus(variant: Variant, efficiency: Efficiency | None) -> int:
    """GPUs allocated; where nobody tells, and without Slurm, those asked for."""
    allocated = efficiency.gpus if efficiency else None
    return allocated or variant.layout.nodes * variant.layout.gpus


def _price_per_hour(prices: Prices, variant: Variant, efficiency: Efficiency | None) -> float | None:
    """Of the whole job, by what was allocated, or asked for where nobody tells."""
    nodes = (efficiency.nodes if efficiency else None) or variant.layout.nodes
    constraint = variant.options.get("constraint")
    node_type = None if constraint is None else str(constraint)
    return prices.per_hour(nodes=nodes, gpus=_count_gpus(variant, efficiency), node_type=node_type)


def _sum_paid_s(efficiency: Efficiency | None) -> float | None:
    """Seconds that are charged: of a requeued job, its earlier runs too."""
    if efficiency is None or efficiency.wall_time_s is None:
        return None
    return efficiency.wall_time_s + sum(run.wall_time_s or 0.0 for run in efficiency.earlier_runs)


def _find_time_to_target(
    efficiency: Efficiency | None, trainings: Sequence[TrainingMetrics], target: float | None
) -> float | None:
    """Seconds from the job's start to the first test that reached the target; a requeued job's waits are left out."""
    if efficiency is None or target is None or efficiency.started_at_s is None:
        return None
    reached = [test.at_s for one in trainings for test in one.tests if test.accuracy >= target]
    if not reached:
        return None
    at_s = min(reached)
    if at_s >= efficiency.started_at_s:
        return at_s - efficiency.started_at_s + sum(run.wall_time_s or 0.0 for run in efficiency.earlier_runs)
    total_s = 0.0
    for run in efficiency.earlier_runs:
        if run.started_at_s is not None and run.started_at_s <= at_s:
            total_s += min(at_s - run.started_at_s, run.wall_time_s or 0.0)
    return total_s
