"""A study's trials put together into its comparison: one row per variant, fits, predictions, verdict. Pure.

Linear in the number of trials, but for what is said of each pair of variants whose spreads overlap.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from hpcdist.comparison import SPREAD_FIGURES, Comparison, Fit, Spread, TrialRow, VariantRow
from hpcdist.config.site import Prices
from hpcdist.prediction import predict_measured
from hpcdist.records.job import JobRecord
from hpcdist.records.ranks import median_split
from hpcdist.scaling import compare_spreads, fit_all, ratio, scale, spread
from hpcdist.studies.study import Study, Trial, Variant, settings_key
from hpcdist.trial_row import build_trial_row
from hpcdist.unmeasured import find_unmeasured
from hpcdist.verdict import judge

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
        made_at_s: Now, seconds since the epoch.
        conditions: Versions, machine and dates, by name, as printed.
        scripts: Each run's exact script, by run.
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
    by_start = sorted((row for row in rows if row.wall_s), key=lambda row: row.wall_s.low if row.wall_s else 0.0)
    reaching: list[VariantRow] = []
    for row in by_start:
        reaching = [one for one in reaching if one.wall_s and row.wall_s and one.wall_s.high >= row.wall_s.low]
        for one in reaching:
            if one.wall_s and row.wall_s and compare_spreads(one.wall_s, row.wall_s) == "equal":
                equals[one.label].append(row.label)
                equals[row.label].append(one.label)
        reaching.append(row)
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
            base_ranks = next((row.ranks_worked for row in group if row.is_baseline), None)
            fits += fit_all(_points(group, base_ranks), group[0].settings, weak=study.scaling == "weak")
    return tuple(fits)


def _points(group: Iterable[VariantRow], base_ranks: int | None) -> list[tuple[int, float]]:
    """Ranks and speedups; none where they refer to variants of other settings."""
    if base_ranks is None:
        return []
    return [(row.ranks_worked, row.speedup.median) for row in group if row.ranks_worked and row.speedup]
