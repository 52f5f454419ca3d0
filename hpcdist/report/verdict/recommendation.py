"""The verdict's answers: what to use for the fastest result, for the cheapest, and how many GPUs to ask for."""

from collections.abc import Callable, Sequence
from operator import attrgetter

import msgspec

from hpcdist.report.model import Spread, Statement, VariantRow
from hpcdist.report.scaling import EFFICIENCY_LINE, compare_spreads, is_less
from hpcdist.report.verdict.results import StudyResults, format_spread, join_names, name_ranks, reached_target, size
from hpcdist.units import format_accuracy, format_hours, format_percent, format_time

Figure = Callable[[VariantRow], Spread | None]
_Measured = tuple[VariantRow, Spread]
_SECONDS = ("seconds", "seconds_low", "seconds_high", "runs")  # as a spread's fields


def answer(results: StudyResults) -> list[Statement]:
    """The answers, as far as the figures give any."""
    if not results.done:
        sentence = "No job of the study completed: there is nothing to compare."
        return [Statement(code="nothing-completed", sentence=sentence)]
    found = [_target_missed(results), _fastest(results), _equal(results), _cheapest(results), _most_ranks(results)]
    return [statement for statement in found if statement]


def _reached(results: StudyResults) -> list[VariantRow]:
    return [row for row in results.done if reached_target(row)]


def _target_missed(results: StudyResults) -> Statement | None:
    target = results.study.target_accuracy
    known = [row for row in results.done if row.accuracy]
    if target is None or not known or _reached(results):
        return None
    best = max(known, key=lambda row: row.accuracy.median if row.accuracy else 0.0)
    accuracy = best.accuracy.median if best.accuracy else 0.0
    return Statement(
        code="target-missed",
        sentence=f"No layout reached the target of {format_accuracy(target)} test accuracy in all its runs; the best, "
        f"{best.label}, ended at {format_accuracy(accuracy)}.",
        variant=best.label,
        advice="train longer, or lower the target",
        evidence={"target_accuracy": target, "accuracy": accuracy},
    )


def _speed(results: StudyResults) -> tuple[list[VariantRow], Figure, str]:
    """What is compared for speed: the rows, the figure, and what it is."""
    target = results.study.target_accuracy
    if target is not None and (reached := _reached(results)):
        return reached, attrgetter("time_to_target_s"), f"to {format_accuracy(target)} test accuracy"
    return list(results.done), attrgetter("wall_s"), "from start to end"


def choose(rows: Sequence[VariantRow], figure: Figure) -> tuple[_Measured, _Measured] | None:
    """The row to recommend for the least of a figure, and the row that had the least; each with its figure.

    They differ where a smaller layout can't be told from the one with the least.
    """
    known = _measure(rows, figure)
    if not known:
        return None
    best = min(known, key=lambda pair: (pair[1].median, size(pair[0])))
    return min((pair for pair in known if not is_less(best[1], pair[1])), key=lambda pair: size(pair[0])), best


def _measure(rows: Sequence[VariantRow], figure: Figure) -> list[_Measured]:
    return [(row, value) for row in rows if (value := figure(row))]


def _fastest(results: StudyResults) -> Statement | None:
    rows, figure, what = _speed(results)
    chosen = choose(rows, figure)
    if chosen is None:
        return None
    (recommended, spread), (best, least) = chosen
    sentence = f"For the fastest result use {recommended.label}: {format_spread(spread, format_time)} {what}"
    sentence += _compare_to_base(results, recommended, figure)
    if recommended.label != best.label:
        sentence += f"; {best.label} is no faster beyond doubt: {format_spread(least, format_time)}"
    caution = " It ran once, so nobody knows its spread." if spread.count == 1 else ""
    return Statement(
        code="fastest",
        sentence=f"{sentence}.{caution}",
        variant=recommended.label,
        evidence=dict(zip(_SECONDS, msgspec.structs.astuple(spread), strict=True)),
    )


def _compare_to_base(results: StudyResults, row: VariantRow, figure: Figure) -> str:
    """`, 1.8 times as fast as 1x1`."""
    base = next((one for one in results.group(row) if one.is_baseline), None)
    own, others = figure(row), figure(base) if base else None
    if base is None or base.label == row.label or not own or not others or not own.median:
        return ""
    return f", {others.median / own.median:.2f} times as fast as {base.label}"


def _equal(results: StudyResults) -> Statement | None:
    """The rows that can't be told from the fastest."""
    rows, figure, what = _speed(results)
    known = _measure(rows, figure)
    if not known:
        return None
    best, least = min(known, key=lambda pair: pair[1].median)
    equals = [row for row, value in known if row is not best and compare_spreads(least, value) == "equal"]
    if not equals:
        return None
    shown = ", ".join(
        f"{row.label} {format_spread(value, format_time)}" for row, value in known if row in (best, *equals[:2])
    )
    return Statement(
        code="equal",
        sentence=f"{best.label} and {join_names(row.label for row in equals)} are called equal: their spreads "
        f"{what} overlap ({shown}).",
        variant=best.label,
        advice="more repeats would tell them apart, if anything does; until then the smaller one is enough",
        evidence={"variants": ", ".join(row.label for row in (best, *equals))},
    )


def _price(results: StudyResults) -> tuple[list[VariantRow], Figure, Callable[[float], str]] | None:
    """What is compared for cost: money to the target, money, else hours."""
    currency = results.study.prices.currency
    reached = [row for row in _reached(results) if row.cost_to_target]
    if results.study.target_accuracy is not None and reached:
        return reached, attrgetter("cost_to_target"), lambda cost: f"{cost:.3g} {currency}"
    if any(row.cost for row in results.done):
        return list(results.done), attrgetter("cost"), lambda cost: f"{cost:.3g} {currency}"
    # An hour of a GPU and one of a CPU rank are different things.
    if len({bool(row.layout.gpus) for row in results.done}) != 1:
        return None
    of = "GPU" if results.done[0].layout.gpus else "rank"
    return list(results.done), attrgetter("gpu_hours"), lambda hours: format_hours(hours, of)


def _cheapest(results: StudyResults) -> Statement | None:
    priced = _price(results)
    chosen = choose(priced[0], priced[1]) if priced else None
    if priced is None or chosen is None:
        return None
    rows, figure, form = priced
    (recommended, spread), (best, least) = chosen
    dearest = max(value.median for _, value in _measure(rows, figure))
    sentence = f"For the cheapest result use {recommended.label}: {format_spread(spread, form)}"
    if recommended.label != best.label:
        sentence += f"; {best.label} is no cheaper beyond doubt: {format_spread(least, form)}"
    if dearest > spread.median:
        sentence += f"; the dearest takes {form(dearest)}"
    return Statement(
        code="cheapest",
        sentence=sentence + ".",
        variant=recommended.label,
        evidence={"least": spread.median, "most": dearest, "unit": form(1.0).split(" ")[1]},
    )


def _most_ranks(results: StudyResults) -> Statement | None:
    """The largest layout on the 75 % line that also ends earlier than the smaller ones; of the fastest's settings."""
    rows, figure, _ = _speed(results)
    chosen = choose(rows, figure)
    if chosen is None:
        return None
    group = sorted((row for row in results.group(chosen[0][0]) if row.efficiency), key=size)
    if len({size(row) for row in group}) < 2:
        return None
    worth = group[0]
    for row in group[1:]:
        own, others = figure(row), figure(worth)
        on_line = row.efficiency is not None and row.efficiency.median >= EFFICIENCY_LINE
        if on_line and row.ranks > worth.ranks and own and others and is_less(own, others):
            worth = row
    beyond = [row for row in group if row.ranks > worth.ranks]
    sentence = f"The most worth asking for is {name_ranks(worth.ranks, worth)} ({worth.label})"
    evidence: dict[str, float | str] = {"ranks": worth.ranks, "efficiency_line": EFFICIENCY_LINE}
    if worth.efficiency and not worth.is_baseline:
        sentence += f", at {format_percent(worth.efficiency.median)} parallel efficiency"
        evidence["efficiency"] = worth.efficiency.median
    return Statement(
        code="most-ranks", sentence=sentence + _why_no_more(beyond) + ".", variant=worth.label, evidence=evidence
    )


def _why_no_more(beyond: Sequence[VariantRow]) -> str:
    """Of the best of the larger layouts, what speaks against it."""
    best = max(beyond, key=lambda row: row.efficiency.median if row.efficiency else 0.0, default=None)
    if best is None or best.efficiency is None:
        return ": more was not tried"
    efficiency = format_percent(best.efficiency.median)
    if best.efficiency.median >= EFFICIENCY_LINE:
        return f"; {best.label} has {efficiency} efficiency, but does not end earlier beyond doubt"
    line = format_percent(EFFICIENCY_LINE)
    return f"; {best.label} with {name_ranks(best.ranks, best)} has {efficiency}, under the {line} line"
