"""Which way of sharing gradients won: all-reduce, or a parameter server that waits or does not. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from hpcdist.comparison import Spread, Statement, VariantRow
from hpcdist.scaling import is_less
from hpcdist.verdict_words import Case, format_accuracy, join_names, ranks

OPTIONS = frozenset({"strategy", "ps_mode"})


def find_strategies(case: Case) -> list[Statement]:
    """A sentence for each layout and setting that was run with several strategies."""
    groups: dict[bytes, list[VariantRow]] = {}
    for row in case.done:
        if ranks(row) > 1 and row.images_per_s:
            groups.setdefault(_rest(row), []).append(row)
    several = [group for group in groups.values() if len({name_strategy(row.settings) for row in group}) > 1]
    return [_compare(group) for group in several]


def _rest(row: VariantRow) -> bytes:
    """Layout and settings without the strategy."""
    settings = {name: value for name, value in row.settings.items() if name not in OPTIONS}
    return msgspec.json.encode((row.layout, settings), order="sorted")


def name_strategy(settings: Mapping[str, Any]) -> str:
    """`ddp`, `parameter-server async`."""
    strategy = str(settings.get("strategy", "ddp"))
    return f"{strategy} {settings.get('ps_mode', 'sync')}" if strategy == "parameter-server" else strategy


def _compare(group: Iterable[VariantRow]) -> Statement:
    by_speed = sorted(group, key=lambda row: -_speed(row).median)
    best, *others = by_speed
    slower = [row for row in others if is_less(_speed(row), _speed(best))]
    equals = [row for row in others if row not in slower]
    where = " ".join([best.layout.name, *_slowed(best.settings)])
    figures = "; ".join(f"{name_strategy(row.settings)} {_figures(row)}" for row in by_speed)
    if equals:
        names = join_names(name_strategy(row.settings) for row in (best, *equals))
        said = f"no strategy is fastest beyond doubt: {names} are called equal"
    else:
        times = _speed(best).median / _speed(slower[0]).median
        said = f"{name_strategy(best.settings)} is fastest, {times:.2f} times {name_strategy(slower[0].settings)}"
    return Statement(
        code="strategy",
        sentence=f"On {where} {said} ({figures}).",
        variant=best.label,
        advice="images/s are not accuracy: compare the accuracy too, and repeat where it matters",
        evidence={f"{name_strategy(row.settings)} images per s": _speed(row).median for row in by_speed},
    )


def _speed(row: VariantRow) -> Spread:
    return row.images_per_s or Spread(median=0.0, low=0.0, high=0.0, count=0)


def _figures(row: VariantRow) -> str:
    accuracy = f", accuracy {format_accuracy(row.accuracy.median)}" if row.accuracy else ""
    return f"{_speed(row).median:,.0f} images/s{accuracy}"


def _slowed(settings: Mapping[str, Any]) -> list[str]:
    """`with env.HPCDIST_DRILL_SLOW_RANK=1:0.02`."""
    told = [f"{name}={value}" for name, value in settings.items() if name not in OPTIONS]
    return [f"with {' '.join(told)}"] if told else []
