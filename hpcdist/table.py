"""A table of jobs: aligned for a person, or with one separator for a program. Pure."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence

from hpcdist.columns import Column, Verdict, format_value, judge
from hpcdist.records.efficiency import Efficiency
from hpcdist.text import clean

GAP = "  "
SEPARATOR = "|"
ESTIMATE_NOTE = "~ an estimate: the largest task's memory times the number of tasks"

# "Select Graphic Rendition" of ECMA-48: the eight colours every terminal has.
_COLOURS: Mapping[Verdict, str] = {"good": "32", "weak": "33", "bad": "31", "running": "36", "waiting": "34"}


def format_jobs(
    jobs: Sequence[Efficiency], columns: Sequence[Column], *, width: int | None = None, colour: bool = False
) -> list[str]:
    """The table's lines: a heading, a line per job, and a note where one is due.

    Args:
        jobs: The jobs, in the order of their lines.
        columns: The columns; the ones without a place in `width` are shortened or left out.
        width: Characters a line may have; None for any number.
        colour: Whether good and bad figures are coloured.
    """
    cells = [[clean(format_value(column, one)) for column in columns] for one in jobs]
    widths = [max([len(column.title), *[measure(row[at]) for row in cells]]) for at, column in enumerate(columns)]
    kept = fit(columns, widths, width)
    lines = [_line([(columns[at].title, widths[at], None) for at in kept], columns, kept)]
    for one, row in zip(jobs, cells, strict=True):
        verdicts = [judge(columns[at], one) if colour else None for at in kept]
        parts = [(row[at], widths[at], verdict) for at, verdict in zip(kept, verdicts, strict=True)]
        lines.append(_line(parts, columns, kept))
    if any(row[at].startswith("~") for row in cells for at in kept if columns[at].kind in {"share", "size"}):
        lines.append(_cut(ESTIMATE_NOTE, width) if width else ESTIMATE_NOTE)
    return lines


def fit(columns: Sequence[Column], widths: list[int], width: int | None) -> list[int]:
    """Makes the columns fit: shortens the ones that may be, then leaves out the least important; changes `widths`.

    Returns:
        The places of the columns that stay, at least the most important one.
    """
    kept = list(range(len(columns)))
    while width is not None and (excess := _total(widths, kept) - width) > 0:
        at = max(kept, key=lambda place: widths[place] - columns[place].least if columns[place].least else 0)
        spare = widths[at] - max(columns[at].least, len(columns[at].title)) if columns[at].least else 0
        if spare > 0:
            widths[at] -= min(spare, excess)
        elif len(kept) > 1:
            kept.remove(min(kept, key=lambda place: columns[place].weight))
        else:
            widths[kept[0]] = max(1, width)
    return kept


def _total(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[at] for at in kept) + len(GAP) * (len(kept) - 1)


def _line(parts: Sequence[tuple[str, int, Verdict | None]], columns: Sequence[Column], kept: Sequence[int]) -> str:
    cells = []
    for (text, size, verdict), at in zip(parts, kept, strict=True):
        shown = _cut(text, size)
        blank = " " * (size - measure(shown))
        coloured = f"\x1b[{_COLOURS[verdict]}m{shown}\x1b[0m" if verdict else shown
        cells.append(coloured + blank if columns[at].kind == "text" else blank + coloured)
    return GAP.join(cells).rstrip()


def _cut(text: str, size: int) -> str:
    """The text in so many places of the terminal; an ellipsis where some of it is missing."""
    if measure(text) <= size:
        return text
    while text and measure(text) > size - 1:
        text = text[:-1]
    return text + "…" if size > 0 else ""


def measure(text: str) -> int:
    """Places the text takes in a terminal: two for a wide character, none for an accent of its own."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in {"W", "F"} else 1 for c in text
    )


def format_parsable_header(columns: Sequence[Column]) -> str:
    """The columns' names with their units: `job_id|state|wall_time_s|cpu_efficiency`."""
    return SEPARATOR.join(column.field for column in columns)


def parsable_formatter(columns: Sequence[Column]) -> Callable[[Efficiency], str]:
    """What makes a job's line: seconds, bytes and fractions, nothing where a figure is unknown.

    A separator in a job's name becomes an underscore and a control character a question mark: every line has as many
    fields as the header.
    """
    # Significant digits: six of a fraction, and of seconds and bytes all there are.
    readers = [(column.value, "%.6g" if column.kind == "share" else "%.15g") for column in columns]
    separators = len(columns) - 1

    def form(one: Efficiency) -> str:
        cells = []
        for reader, digits in readers:
            value = reader(one)
            if value is None:
                cells.append("")
            elif value.__class__ is float:
                cells.append(digits % value)
            else:
                cells.append(str(value))
        line = SEPARATOR.join(cells)
        if line.isprintable() and line.count(SEPARATOR) == separators:
            return line
        return SEPARATOR.join([clean(cell).replace(SEPARATOR, "_") for cell in cells])

    return form
