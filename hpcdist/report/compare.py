"""A study's trials put together into its comparison: one row per variant, fits, predictions, verdict.

Linear in the number of trials, but for what is said of each pair of variants whose spreads overlap.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from hpcdist.config.site import Prices
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import JobRecord, Timeline
from hpcdist.records.ranks import TrainingMetrics, find_straggler, mean_split, median_split, waiting_s
from hpcdist.report.model import SPREAD_FIGURES, Comparison, Fit, Spread, TrialRow, VariantRow
from hpcdist.report.predict import predict_measured
from hpcdist.report.scaling import compare_spreads, fit_all, ratio, scale, spread
from hpcdist.report.verdict.judge import judge
from hpcdist.report.verdict.results import join_names
from hpcdist.studies.study import NOT_SUBMITTED, Study, Trial, Variant, settings_key

# The field of a row, and what it is for a reader.
_FIGURES = {
    "images_per_s": "steady images/s",
    "accuracy": "test accuracy",
    "split": "step-time split",
    "starting_s": "start-up time",
    "cpu_efficiency": "CPU efficiency",
    "memory_efficiency": "memory efficiency",
    "gpu_efficiency": "GPU efficiency",
    "ettr": "goodput (effective training time ratio)",
    "ranks_worked": "ranks that really worked",
    "global_batch_size": "global batch",
}
# These only a job of several ranks can have.
_OF_SEVERAL = {
    "bandwidth_bytes_per_s": "bandwidth and latency between the ranks",
    "bytes_per_step": "bytes all-reduced per step",
    "straggler": "slowest rank",
}


def find_unmeasured(rows: Sequence[VariantRow], study: Study) -> tuple[str, ...]:
    """One clause each, such as `step-time split of 2x1, 2x2`; of completed jobs only."""
    done = [row for row in rows if row.wall_s is not None]
    if not done:
        return ("everything: no job of the study completed",)
    several = [row for row in done if row.ranks_asked > 1]
    clauses = [_clause(text, done, name) for name, text in _FIGURES.items()]
    clauses += [_clause(text, several, name) for name, text in _OF_SEVERAL.items()]
    return (*(clause for clause in clauses if clause), *_about_the_study(done, study))


def _clause(text: str, rows: Sequence[VariantRow], name: str) -> str | None:
    lacking = [row.label for row in rows if getattr(row, name) is None]
    if not lacking:
        return None
    if len(lacking) == len(rows):
        why = " (no layout has a GPU)" if text == "GPU efficiency" and not any(row.layout.gpus for row in rows) else ""
        return text + why
    return f"{text} of {join_names(lacking)}"


def _about_the_study(done: Sequence[VariantRow], study: Study) -> list[str]:
    found = []
    if all(row.wall_s is not None and row.wall_s.count == 1 for row in done):
        found.append("spread: everything ran once")
    if any(row.images_per_s is None for row in done) and any(row.speedup for row in done):
        found.append("speedup in the steady state: by wall-clock, start-up included, where images/s are missing")
    if not any(row.speedup for row in done):
        found.append("speedup: the baseline has no completed job")
    if study.target_accuracy is None:
        found.append("time to a target accuracy: the study names none")
    if all(row.cost is None for row in done):
        found.append("cost: the study has no prices for these layouts")
    return found


_NO_FIGURES = Timeline()
_HOUR_S = 3600.0

# Figures that are called the same where they come from.
_ACCOUNTED = ("cpu_efficiency", "memory_efficiency", "gpu_efficiency", "started_at_s", "ended_at_s")
_MEASURED = ("images_per_s", "accuracy", "global_batch_size", "bytes_per_step")

V = TypeVar("V")


def build_trial_row(study: Study, variant: Variant, trial: Trial, record: JobRecord | None) -> TrialRow:
    """Return the figures of one job, by the study's prices and target; the record of one never sent is None."""
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
    begun = ((run.started_at_s, run.wall_time_s or 0.0) for run in efficiency.earlier_runs)
    spent_s = (min(at_s - start_s, wall_s) for start_s, wall_s in begun if start_s is not None and start_s <= at_s)
    return sum(spent_s, 0.0)


# Figures of a variant that are the spread of its trials' own.
_SPREAD = tuple(name for name in SPREAD_FIGURES if name in TrialRow.__struct_fields__)
_SMALL_SCALE = {"scale": "small: data, networks and steps are cut down to run in minutes on CPUs"}


def compare(
    study: Study,
    variants: Sequence[Variant],
    trials: Sequence[tuple[Trial, JobRecord | None]],
    *,
    made_at_s: float,
    conditions: Mapping[str, str] | None = None,
    scripts: Mapping[str, str] | None = None,
) -> Comparison:
    """A study's report.

    A job that failed, was denied or never started stays as a row with its reason; figures are of the jobs that
    completed.

    Args:
        study: What was asked.
        variants: Its variants, in its order.
        trials: Its jobs, each with what happened to it; None of one that was never sent.
        made_at_s, conditions, scripts: As in `Comparison`.
    """
    by_label: dict[str, list[tuple[Trial, JobRecord | None]]] = {variant.label: [] for variant in variants}
    for trial, record in trials:
        if trial.variant in by_label:
            by_label[trial.variant].append((trial, record))
    rows = [_build_row(study, variant, by_label[variant.label]) for variant in variants]
    rows = _add_speedups(rows, find_baselines(study, variants))
    rows = _add_equals(rows)
    completed = [
        (variant, [record for _, record in by_label[variant.label] if record and record.status.state == "COMPLETED"])
        for variant in variants
    ]
    return Comparison(
        study=study,
        made_at_s=made_at_s,
        rows=tuple(rows),
        verdict=judge(rows, study),
        fits=fit_rows(rows, study),
        predictions=predict_measured(completed, weak=study.scaling == "weak"),
        currency=study.prices.currency if has_prices(study.prices) else None,
        not_measured=find_unmeasured(rows, study),
        conditions=_SMALL_SCALE | dict(conditions or {}) if study.scale == "small" else dict(conditions or {}),
        scripts=dict(scripts or {}),
    )


def has_prices(prices: Prices) -> bool:
    """Whether anything is known to cost something."""
    return prices.per_gpu_hour is not None or prices.per_node_hour is not None or bool(prices.node_types)


def _build_row(study: Study, variant: Variant, trials: Sequence[tuple[Trial, JobRecord | None]]) -> VariantRow:
    built = [build_trial_row(study, variant, trial, record) for trial, record in trials]
    built.sort(key=attrgetter("repeat"))
    done = [row for row in built if row.state == "COMPLETED"]
    stragglers = [row.straggler for row in done if row.straggler]
    figures: dict[str, Any] = {name: spread(getattr(row, name) for row in done) for name in _SPREAD}
    return VariantRow(
        label=variant.label,
        layout=variant.layout,
        settings=variant.settings,
        ranks_asked=variant.layout.world_size,
        ranks_worked=min((row.ranks_worked for row in done if row.ranks_worked is not None), default=None),
        trials=tuple(built),
        split=median_split([row.split for row in done if row.split]),
        waiting_s=_median(row.waiting_s for row in done),
        straggler=max(stragglers, key=attrgetter("slowdown"), default=None),
        bytes_per_step=_median_int(row.bytes_per_step for row in done),
        latency_s=_median(row.latency_s for row in done),
        bandwidth_bytes_per_s=_median(row.bandwidth_bytes_per_s for row in done),
        global_batch_size=_median_int(row.global_batch_size for row in done),
        **figures,
    )


def _median(values: Iterable[float | None]) -> float | None:
    found = spread(values)
    return found.median if found else None


def _median_int(values: Iterable[int | None]) -> int | None:
    """A value that was really seen: the lower of two in the middle."""
    known = [value for value in values if value is not None]
    return statistics.median_low(known) if known else None


def find_baselines(study: Study, variants: Sequence[Variant]) -> dict[str, str]:
    """The label of the variant that each variant's speedup refers to, by its label.

    That is the baseline's layout with the variant's own settings; the baseline itself where there is none of these,
    where the study names it by its whole label with its settings, or has a single layout and compares settings.
    """
    if not variants:
        return {}
    first = _find_baseline(study, variants)
    layouts = {variant.label: _layout_key(variant) for variant in variants}
    if study.baseline == first.label != first.label.split(" ")[0] or len(set(layouts.values())) == 1:
        return {variant.label: first.label for variant in variants}
    same_layout = {
        settings_key(variant.settings): variant.label
        for variant in reversed(variants)
        if layouts[variant.label] == layouts[first.label]
    }
    return {variant.label: same_layout.get(settings_key(variant.settings), first.label) for variant in variants}


def _find_baseline(study: Study, variants: Sequence[Variant]) -> Variant:
    """The variant that the study names, by its whole label or how it begins; else the first of one rank, or of all."""
    exact = [variant for variant in variants if variant.label == study.baseline]
    begun = [variant for variant in variants if variant.label.startswith(f"{study.baseline} ")]
    alone = [variant for variant in variants if variant.layout.world_size == 1]
    return [*exact, *begun, *alone, *variants][0]


def _layout_key(variant: Variant) -> bytes:
    """What variants of one layout have in common whatever is swept: an option, a table's entry, a program's words."""
    swept = variant.settings
    layout = {name: value for name, value in msgspec.to_builtins(variant.layout).items() if name not in swept}
    options = {name: value for name, value in variant.options.items() if name not in swept and name not in layout}
    for table, _, name in (key.partition(".") for key in swept if "." in key):
        options[table] = {entry: value for entry, value in options.get(table, {}).items() if entry != name}
    if "args" in swept:
        options.pop("command", None)
    return msgspec.json.encode((layout, options), order="sorted")


def _add_speedups(rows: Sequence[VariantRow], baselines: Mapping[str, str]) -> list[VariantRow]:
    """Speedup and efficiency of each row, by images/s; by wall-clock where a row of the same settings has no images/s.

    One figure for all of them: a table with two kinds of speedup can't be read.
    """
    by_label = {row.label: row for row in rows}
    timed = {
        baselines[row.label] for row in rows if row.images_per_s is None and row.wall_s is not None
    }  # baselines of rows that nobody measured the images/s of
    found = []
    for row in rows:
        base = by_label[baselines[row.label]]
        speedup = find_speedup(row, base, by_wall=base.label in timed)
        efficiency = None
        if speedup and row.ranks_worked and base.ranks_worked:
            efficiency = scale(speedup, base.ranks_worked / row.ranks_worked)
        found.append(
            msgspec.structs.replace(row, speedup=speedup, efficiency=efficiency, is_baseline=base.label == row.label)
        )
    return found


def find_speedup(row: VariantRow, base: VariantRow, *, by_wall: bool) -> Spread | None:
    """How many times as fast as the baseline; the baseline over itself is 1, whatever its spread."""
    own, others = (row.wall_s, base.wall_s) if by_wall else (row.images_per_s, base.images_per_s)
    if row.label == base.label and own:
        return Spread(median=1.0, low=1.0, high=1.0, count=own.count)
    return ratio(others, own) if by_wall else ratio(own, others)


def _add_equals(rows: Sequence[VariantRow]) -> list[VariantRow]:
    """Which wall-clock spreads overlap, found along the line of time: no two that lie apart are compared."""
    equals: dict[str, list[str]] = {row.label: [] for row in rows}
    walls = [(row.wall_s, row.label) for row in rows if row.wall_s]
    reaching: list[tuple[Spread, str]] = []
    for wall, label in sorted(walls, key=lambda pair: pair[0].low):
        reaching = [(other, name) for other, name in reaching if other.high >= wall.low]
        for other, name in reaching:
            if compare_spreads(other, wall) == "equal":
                equals[name].append(label)
                equals[label].append(name)
        reaching.append((wall, label))
    places = {row.label: place for place, row in enumerate(rows)}
    return [
        msgspec.structs.replace(row, same_as=tuple(sorted(equals[row.label], key=places.__getitem__))) for row in rows
    ]


def fit_rows(rows: Sequence[VariantRow], study: Study) -> tuple[Fit, ...]:
    """The laws of scaling over the rows of each choice of settings that has more than one number of ranks."""
    groups: dict[bytes, list[VariantRow]] = {}
    for row in rows:
        groups.setdefault(settings_key(row.settings), []).append(row)
    fits: list[Fit] = []
    for group in groups.values():
        if len({row.ranks_asked for row in group}) > 1:
            points = [(row.ranks_worked, row.speedup.median) for row in group if row.ranks_worked and row.speedup]
            # Without the baseline among them the speedups refer to a variant of other settings.
            has_base = any(row.is_baseline and row.ranks_worked is not None for row in group)
            fits += fit_all(points if has_base else [], group[0].settings, weak=study.scaling == "weak")
    return tuple(fits)
