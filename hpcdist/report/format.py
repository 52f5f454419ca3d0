"""A report's figures as a person reads them: units, digits, spreads."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from hpcdist.report.model import Spread
from hpcdist.report.scaling import EFFICIENCY_LINE
from hpcdist.units import format_bytes, format_number, format_rate, format_seconds, format_share, format_size

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


class TableRow(NamedTuple):
    """A row of a table: its cells, what is said under it over the whole width, and how it stands out."""

    cells: tuple[Cell, ...]
    remark: str | None = None
    mark: Literal["", "failed"] = ""


class Table(NamedTuple):
    """A table; its first column names its rows."""

    headings: tuple[Heading, ...]
    lines: tuple[TableRow, ...]


def spread_cell(spread: Spread | None, form: Callable[[float], str], repeats: int = 0, mark: Mark = "") -> Cell:
    """Return the median, and under it the least and the largest; measured too rarely, the cell says how often."""
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
