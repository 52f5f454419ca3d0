"""Figures that others printed, as columns of their own in a report. Pure."""

from collections.abc import Iterable, Sequence

from hpcdist.comparison import Comparison, VariantRow
from hpcdist.report_cells import Cell, Heading, Line, Table, spread_cell
from hpcdist.studies.study import Reference
from hpcdist.units import format_figure, format_seconds

PRINTED = "printed elsewhere"


def format_column(reference: Reference) -> str:
    """`[training time, s]`: in brackets, since nothing of it was measured here."""
    return f"[{reference.what}, {reference.unit}]"


def format_printed(row: VariantRow, reference: Reference) -> str | None:
    """The figure of a row, in brackets likewise; None where nobody printed one."""
    value = reference.figures.get(row.label)
    return None if value is None else f"[{format_figure(value)}]"


def describe_references(comparison: Comparison) -> list[str]:
    """A line per column: where it was printed, and what of it belongs to no row."""
    return [
        f"{format_column(one)} {PRINTED}, not measured here: {one.source}{_describe_rest(one, comparison.rows)}"
        for one in comparison.study.references
    ]


def _describe_rest(reference: Reference, rows: Iterable[VariantRow]) -> str:
    labels = {row.label for row in rows}
    others = [f"{label} {format_figure(value)}" for label, value in reference.figures.items() if label not in labels]
    parts = [f"; of variants that this study does not run: {', '.join(others)}"] if others else []
    if reference.unassigned:
        shown = ", ".join(map(format_figure, reference.unassigned))
        parts.append(f"; it is not known here which variants these are of: {shown}")
    return "".join(parts)


def tabulate_references(comparison: Comparison) -> Table:
    """What was printed beside what was measured; no lines where the study has none."""
    references = comparison.study.references
    measured = (Heading("Wall-clock", "measured here"), Heading("Start-up", "measured here"))
    printed = tuple(Heading(f"{one.what}, {one.unit}", PRINTED) for one in references)
    lines = tuple(_line(row, references) for row in comparison.rows) if references else ()
    return Table((Heading("Layout"), *measured, *printed), lines)


def _line(row: VariantRow, references: Sequence[Reference]) -> Line:
    repeats = len(row.trials)
    figures = [one.figures.get(row.label) for one in references]
    cells = (
        Cell(row.label, None, "name"),
        spread_cell(row.wall_s, format_seconds, repeats),
        spread_cell(row.starting_s, format_seconds, repeats),
        *(Cell(None if value is None else format_figure(value), None, "printed") for value in figures),
    )
    return Line(cells)
