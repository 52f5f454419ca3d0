"""Which way of sharing gradients won, all-reduce or a parameter server: by images/s, and by time to a target."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hpcdist.report.model import Spread, Statement, VariantRow
from hpcdist.report.scaling import is_less
from hpcdist.report.verdict.results import StudyResults, join_names, reached_target
from hpcdist.studies.study import format_settings, settings_key
from hpcdist.units import format_accuracy, format_time

OPTIONS = frozenset({"strategy", "ps_mode"})
_NOTHING = Spread(median=0.0, low=0.0, high=0.0, count=0)


def find_strategies(results: StudyResults) -> list[Statement]:
    """A sentence for each layout and setting that was run with several strategies."""
    groups: dict[bytes, list[VariantRow]] = {}
    for row in results.done:
        if row.ranks > 1 and row.images_per_s:
            groups.setdefault(msgspec.json.encode(row.layout) + settings_key(row.settings, OPTIONS), []).append(row)
    several = [group for group in groups.values() if len({name_strategy(row.settings) for row in group}) > 1]
    return [_compare(group, results.study.target_accuracy) for group in several]


def name_strategy(settings: Mapping[str, Any]) -> str:
    """`ddp`, `parameter-server async`."""
    strategy = str(settings.get("strategy", "ddp"))
    return f"{strategy} {settings.get('ps_mode', 'sync')}" if strategy == "parameter-server" else strategy


def _compare(group: Sequence[VariantRow], target: float | None) -> Statement:
    by_speed = sorted(group, key=lambda row: -_speed(row).median)
    by_time = sorted((row for row in group if reached_target(row)), key=lambda row: _time(row).median)
    # The best, and those that can't be told from it.
    fast = [row for row in by_speed if not is_less(_speed(row), _speed(by_speed[0]))]
    first = [row for row in by_time if not is_less(_time(by_time[0]), _time(row))]
    best, said = fast[0], _name_fastest(by_speed, fast)
    evidence: dict[str, float | str] = {
        f"{name_strategy(row.settings)} images per s": _speed(row).median for row in by_speed
    }
    advice = "images/s are not accuracy: compare the accuracy too, and repeat where it matters"
    if target is not None and len(by_time) == len(group):
        disagree = ", however," if len(fast) == len(first) == 1 and fast != first else ""
        best, said = first[0], f"{_name_first(by_time, first, target)}; by images/s{disagree} {said}"
        evidence |= {f"{name_strategy(row.settings)} seconds to target": _time(row).median for row in by_time}
        advice = "the time to the target is what counts; repeat where it matters"
    others = format_settings({name: value for name, value in best.settings.items() if name not in OPTIONS})
    where = f"{best.layout.name} with {others}" if others else best.layout.name
    figures = "; ".join(f"{name_strategy(row.settings)} {_figures(row)}" for row in by_speed)
    return Statement(
        code="strategy",
        sentence=f"On {where} {said} ({figures}).",
        variant=best.label,
        advice=advice,
        evidence=evidence,
    )


def _name_fastest(ordered: Sequence[VariantRow], tie: Sequence[VariantRow]) -> str:
    if len(tie) > 1:
        return f"no strategy is fastest beyond doubt: {_names(tie)} are called equal"
    times = _speed(ordered[0]).median / _speed(ordered[1]).median
    return f"{_names(tie)} is fastest, {times:.2f} times {_names(ordered[1:2])}"


def _name_first(ordered: Sequence[VariantRow], tie: Sequence[VariantRow], target: float) -> str:
    goal = f"{format_accuracy(target)} test accuracy"
    if len(tie) > 1:
        return f"no strategy is first at {goal} beyond doubt: {_names(tie)} are called equal"
    times = [format_time(_time(row).median) for row in ordered[:2]]
    return f"{_names(tie)} is first at {goal}, after {times[0]}, and {_names(ordered[1:2])} after {times[1]}"


def _names(rows: Sequence[VariantRow]) -> str:
    return join_names(name_strategy(row.settings) for row in rows)


def _speed(row: VariantRow) -> Spread:
    return row.images_per_s or _NOTHING


def _time(row: VariantRow) -> Spread:
    return row.time_to_target_s or _NOTHING


def _figures(row: VariantRow) -> str:
    time = f", {format_time(row.time_to_target_s.median)} to the target" if row.time_to_target_s else ""
    accuracy = f", accuracy {format_accuracy(row.accuracy.median)}" if row.accuracy else ""
    return f"{_speed(row).median:,.0f} images/s{time}{accuracy}"
