"""A report's figures as a person reads them: units, digits, spreads. Pure."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from hpcdist.comparison import Spread
from hpcdist.scaling import EFFICIENCY_LINE
from hpcdist.units import format_bytes, format_duration
from hpcdist.verdict_words import format_rate, format_size

_FRACTIONS = {"share", "efficiency", "fraction", "ettr", "accuracy"}
Mark = Literal["", "good", "bad", "name", "wide", "printed"]


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: What it says; None where nobody measured it.
        note: A second, smaller line: the spread, or what the figure means.
        mark: How it stands out.
        share: A fraction to be drawn as a bar under it.
    """

    text: str | None
    note: str | None = None
    mark: Mark = ""
    share: float | None = None


class Heading(NamedTuple):
    """A column's heading, with the unit of its figures on a second line; "wide" over texts that wrap."""

    text: str
    unit: str = ""
    mark: Mark = ""


class Line(NamedTuple):
    """A row of a table: its cells, what is said under it over the whole width, and how it stands out."""

    cells: tuple[Cell, ...]
    remark: str | None = None
    mark: Literal["", "failed"] = ""


class Table(NamedTuple):
    """A table; its first column names its rows."""

    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]


def format_seconds(seconds: float) -> str:
    """`4.3 ms`, `12.3 s`, and from 100 s on `00:02:31`."""
    if abs(seconds) < 1:
        return f"{_digits(1e3 * seconds, 3)} ms" if seconds else "0 s"
    return f"{seconds:.1f} s" if abs(seconds) < 99.95 else format_duration(seconds)


def format_number(value: float) -> str:
    """`24,300`, `0.2860`, `4`: four digits, and all of a whole number."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else _digits(value, 4)


def _digits(value: float, digits: int) -> str:
    """That many significant digits, also where they are zeros: what stands in a column has as many."""
    return f"{value:#.{digits}g}".rstrip(".")


def format_share(fraction: float) -> str:
    """`74.1 %`."""
    return f"{100 * fraction:.1f} %"


def format_accuracy(fraction: float) -> str:
    """`98.90 %`."""
    return f"{100 * fraction:.2f} %"


def format_money(amount: float) -> str:
    """`12.50`, and under one unit `0.286`."""
    return f"{amount:,.2f}" if abs(amount) >= 1 or not amount else _digits(amount, 3)


def format_times(factor: float) -> str:
    """`2.96×`."""
    return f"{factor:.2f}×"


def format_moment(seconds: float | None) -> str | None:
    """`2026-03-01 12:10 UTC`."""
    if seconds is None:
        return None
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def spread_cell(spread: Spread | None, form: Callable[[float], str], repeats: int = 0, mark: Mark = "") -> Cell:
    """The median, and under it the least and the largest.

    Args:
        spread: The figure.
        form: How it is printed.
        repeats: How often it should have been measured; where it was not, the cell says so.
        mark: How it stands out.
    """
    if spread is None:
        return Cell(None)
    low, high = form(spread.low), form(spread.high)
    note = "" if spread.count < 2 else "all equal" if low == high else f"{_without_unit(low, high)}–{high}"
    if spread.count < repeats:
        note = f"{note} ({spread.count} of {repeats})".strip()
    return Cell(form(spread.median), note or None, mark)


def _without_unit(low: str, high: str) -> str:
    """`98.84` of `98.84 %` where the other end says the unit."""
    number, _, unit = low.partition(" ")
    return number if unit and high.endswith(f" {unit}") else low


def efficiency_cell(spread: Spread | None, repeats: int = 0) -> Cell:
    """A parallel efficiency with its bar, marked by whether it reaches the 75 % line."""
    cell = spread_cell(spread, format_share, repeats)
    if spread is None:
        return cell
    return cell._replace(
        mark="good" if spread.median >= EFFICIENCY_LINE else "bad", share=max(0.0, min(1.0, spread.median))
    )


def format_evidence(name: str, value: float | str) -> tuple[str, str]:
    """A figure's name in words and the figure with the unit that its name ends with."""
    words = name.replace("_", " ")
    if isinstance(value, str):
        return words, value
    last = words.rpartition(" ")[2]
    if words.endswith(" bytes per s"):
        return words.removesuffix(" bytes per s"), format_rate(value)
    if words.endswith(" per s"):
        return words.removesuffix(" per s"), f"{format_number(value)}/s"
    if last == "s":
        return words.removesuffix(" s"), format_seconds(value)
    if words == "bytes per step":
        return words, format_size(value)
    if last == "bytes":
        return words.removesuffix(" bytes"), format_bytes(value)
    if _FRACTIONS & set(words.split()):
        return words, format_share(value)
    return words, format_number(value)
