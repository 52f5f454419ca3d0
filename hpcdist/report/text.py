"""A comparison as text: for a terminal, as Markdown and as CSV."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from hpcdist.jobs.table import measure
from hpcdist.report.format import Cell, Heading, Table, TableRow, spread_cell
from hpcdist.report.model import SPREAD_FIGURES, Comparison, Fit, Prediction, Spread, VariantRow
from hpcdist.report.scaling import EFFICIENCY_LINE
from hpcdist.studies.study import Reference, format_settings
from hpcdist.text import printable
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
    lines = tuple(_reference_line(row, references) for row in comparison.rows) if references else ()
    return Table((Heading("Layout"), *measured, *printed), lines)


def _reference_line(row: VariantRow, references: Sequence[Reference]) -> TableRow:
    repeats = len(row.trials)
    figures = [one.figures.get(row.label) for one in references]
    cells = (
        Cell(row.label, None, "name"),
        spread_cell(row.wall_s, format_seconds, repeats),
        spread_cell(row.starting_s, format_seconds, repeats),
        *(Cell(None if value is None else format_figure(value), None, "printed") for value in figures),
    )
    return TableRow(cells)


GAP = "  "
_NARROWEST = 80
_NOT_MEASURED = "Not measured"
_FITS = {"amdahl": "Amdahl", "karp-flatt": "Karp-Flatt", "usl": "USL"}


class Figure(NamedTuple):
    """A column of the table.

    Attributes:
        title: Its heading.
        weight: The least is left out first where the terminal is narrow.
        text: How a row's figure is printed; None where it is unknown.
    """

    title: str
    weight: int
    text: Callable[[VariantRow], str | None]


def format_comparison(comparison: Comparison, width: int | None = None) -> list[str]:
    """List the report's lines, of so many characters at most: verdict, table, and the sections that have anything."""
    sections = [
        _wrap_all(verdict_lines(comparison), width),
        format_figures(comparison, width),
        *(
            _wrap_all([f"not measured: {'; '.join(entries)}"] if title == _NOT_MEASURED else entries, width)
            for title, entries in _list_sections(comparison).items()
        ),
    ]
    lines: list[str] = []
    for section in sections:
        lines += ["", *section] if lines and section else section
    return lines


def verdict_lines(comparison: Comparison) -> list[str]:
    """A line per sentence, its advice behind it."""
    lines = []
    for one in comparison.verdict:
        advice = f" Advice: {one.advice.rstrip('.')}." if one.advice else ""
        lines.append(f"- {one.sentence}{advice}")
    return lines


def _list_sections(comparison: Comparison) -> dict[str, list[str]]:
    """What stands under the table, by title; sections that would be empty are left out."""
    sections = {
        "Printed elsewhere": describe_references(comparison),
        "Jobs that did not complete": [
            f"{row.label} run {trial.repeat}: {trial.describe_end()}"
            for row in comparison.rows
            for trial in row.trials
            if trial.state != "COMPLETED"
        ],
        "Fits": [format_fit(fit) for fit in comparison.fits],
        "Predictions": [format_prediction(one) for one in comparison.predictions],
        _NOT_MEASURED: list(comparison.not_measured),
        "Conditions": [f"{name}: {text}" for name, text in comparison.conditions.items()],
    }
    return {title: entries for title, entries in sections.items() if entries}


def format_figures(comparison: Comparison, width: int | None = None) -> list[str]:
    """The table: a heading, a line per variant, and what its marks mean."""
    figures = list_figures(comparison)
    cells = [[printable(one.text(row) or "-") for one in figures] for row in comparison.rows]
    kept = list(range(len(figures)))
    # In places of the terminal.
    sizes = [max([measure(one.title), *[measure(row[at]) for row in cells]]) for at, one in enumerate(figures)]
    limit = None if width is None else max(_NARROWEST, width)
    while limit is not None and sum(sizes[at] + len(GAP) for at in kept) - len(GAP) > limit and len(kept) > 1:
        kept.remove(min(kept, key=lambda at: figures[at].weight))
    lines = [_line([one.title for one in figures], sizes, kept), *[_line(row, sizes, kept) for row in cells]]
    return lines + _table_notes(comparison, len(figures) - len(kept))


def list_figures(comparison: Comparison) -> list[Figure]:
    """The columns that have anything: what was measured, and then, in brackets, what others printed."""
    printed = [
        Figure(format_column(one), 20, partial(format_printed, reference=one)) for one in comparison.study.references
    ]
    return [one for one in (*FIGURES, *printed) if any(one.text(row) for row in comparison.rows)]


def _line(cells: Sequence[str], sizes: Sequence[int], kept: Sequence[int]) -> str:
    """The first column to the left, figures to the right."""
    parts = []
    for at in kept:
        blank = " " * (sizes[at] - measure(cells[at]))
        parts.append(cells[at] + blank if at == 0 else blank + cells[at])
    return GAP.join(parts).rstrip()


def _table_notes(comparison: Comparison, left_out: int) -> list[str]:
    notes = []
    if any(row.wall_s and row.wall_s.count > 1 for row in comparison.rows):
        notes.append("medians of the completed repeats; ± is half of their spread")
    if any(row.efficiency and row.efficiency.median < EFFICIENCY_LINE for row in comparison.rows):
        notes.append(f"! under the {EFFICIENCY_LINE:.0%} line of parallel efficiency")
    if any(row.is_baseline for row in comparison.rows):
        notes.append("* speedups refer to this one")
    if left_out:
        notes.append(f"{left_out} more column(s) in a wider terminal, --csv or --json")
    return notes


def _wrap_all(lines: Sequence[str], width: int | None) -> list[str]:
    return [part for line in lines for part in _wrap(printable(line), width)]


def _wrap(line: str, width: int | None) -> list[str]:
    """The line in pieces at spaces, the later ones indented; a long word stays whole."""
    if width is None or measure(line) <= width:
        return [line]
    pieces, current = [], ""
    for word in line.split(" "):
        longer = f"{current} {word}" if current else word
        if current.strip() and measure(longer) > width:
            pieces.append(current)
            longer = f"  {word}"
        current = longer
    return [*pieces, current]


def _spread(name: str, form: str, factor: float = 1.0, *, whole: bool = False) -> Callable[[VariantRow], str | None]:
    """A figure's median; where it is whole, with half of its spread to the same digits."""

    def text(row: VariantRow) -> str | None:
        one: Spread | None = getattr(row, name)
        if one is None:
            return None
        median = format(one.median * factor, form)
        half = (one.high - one.low) / 2 * factor
        return f"{median} ±{format(half, form)}" if whole and one.count > 1 else median

    return text


def _worked(row: VariantRow) -> str | None:
    if row.ranks_worked is None:
        return None
    return str(row.ranks_worked) + ("" if row.ranks_worked == row.ranks_asked else f"/{row.ranks_asked}")


def _efficiency(row: VariantRow) -> str | None:
    if row.efficiency is None:
        return None
    return f"{row.efficiency.median:.0%}" + ("!" if row.efficiency.median < EFFICIENCY_LINE else "")


def _runs(row: VariantRow) -> str:
    done = sum(trial.state == "COMPLETED" for trial in row.trials)
    return str(done) if done == len(row.trials) else f"{done}/{len(row.trials)}"


def _part(name: str) -> Callable[[VariantRow], str | None]:
    def text(row: VariantRow) -> str | None:
        if row.split is None:
            return None
        return f"{getattr(row.split, name) / row.split.step_s:.0%}" if row.split.step_s else None

    return text


FIGURES = (
    Figure("VARIANT", 100, lambda row: row.label + (" *" if row.is_baseline else "")),
    Figure("RUNS", 70, _runs),
    Figure("RANKS", 80, _worked),
    Figure("WALL s", 95, _spread("wall_s", ".1f", whole=True)),
    Figure("START s", 60, _spread("starting_s", ".1f")),
    Figure("IMAGES/s", 65, _spread("images_per_s", ",.0f", whole=True)),
    Figure("SPEEDUP", 90, _spread("speedup", ".2f", whole=True)),
    Figure("EFF", 85, _efficiency),
    Figure("TARGET s", 75, _spread("time_to_target_s", ".1f", whole=True)),
    Figure("ACC %", 55, _spread("accuracy", ".2f", 100)),
    Figure("STEP ms", 50, lambda row: f"{1e3 * row.split.step_s:.1f}" if row.split else None),
    Figure("DATA", 45, _part("data_s")),
    Figure("COMP", 44, _part("compute_s")),
    Figure("COMM", 46, _part("communication_s")),
    Figure("CPU %", 30, _spread("cpu_efficiency", ".0f", 100)),
    Figure("MEM %", 25, _spread("memory_efficiency", ".0f", 100)),
    Figure("GPU %", 35, _spread("gpu_efficiency", ".0f", 100)),
    Figure("GPU-h", 40, _spread("gpu_hours", ".3g")),
    Figure("COST", 58, _spread("cost", ".3g")),
    Figure("TO TARGET", 42, _spread("cost_to_target", ".3g")),
    Figure("GOODPUT %", 28, _spread("ettr", ".0f", 100)),
)


def format_fit(fit: Fit) -> str:
    """`Amdahl: serial fraction 0.12 over 1, 2, 4 ranks`; why there is none, where there is none."""
    name = _FITS[fit.law] + (f" ({format_settings(fit.settings)})" if fit.settings else "")
    if fit.note:
        return f"{name}: {fit.note}"
    over = f"over {', '.join(map(str, fit.ranks))} ranks"
    if fit.law == "amdahl":
        return f"{name}: serial fraction {fit.parameters['serial_fraction']:.3g} {over}"
    if fit.law == "karp-flatt":
        points = ", ".join(f"{key[2:]} ranks {value:.3g}" for key, value in fit.parameters.items() if key[:2] == "e_")
        kind = "rises: overhead that grows" if fit.parameters["rises"] else "does not rise: serial work"
        return f"{name}: {points} ({kind})"
    parts = [f"{key} {fit.parameters[key]:.3g}{_interval(fit, key)}" for key in ("alpha", "beta", "gamma")]
    return f"{name}: {', '.join(parts)}; {_peak(fit)}; {over}"


def _interval(fit: Fit, name: str) -> str:
    if name not in fit.intervals:
        return " (no interval)"
    low, high = fit.intervals[name]
    return f" (95 %: {low:.3g} to {high:.3g})"


def _peak(fit: Fit) -> str:
    peak = fit.parameters.get("peak_ranks")
    if peak is None:
        return "no peak"
    return f"peak at {peak:.3g} ranks" + (" (extrapolated)" if fit.ranks and peak > max(fit.ranks) else "")


def format_prediction(one: Prediction) -> str:
    """`predicted 2x1: 53.5 s (41.1 to 66.4 s); measured 52.0 s, 3 % off`, and what it rests on."""
    text = f"predicted {one.variant}: {one.wall_s:.1f} s ({one.low_s:.1f} to {one.high_s:.1f} s)"
    if one.measured_s is not None:
        off = f", {abs(one.wall_s / one.measured_s - 1):.0%} off" if one.measured_s else ""
        text += f"; measured {one.measured_s:.1f} s{off}"
    return f"{text}; from {one.basis}"


def format_markdown(comparison: Comparison) -> str:
    """The report as Markdown."""
    figures = list_figures(comparison)
    lines = [f"# {_escape(comparison.study.name)}", ""]
    lines += [f"- {_escape(line[2:])}" for line in verdict_lines(comparison)]
    lines += ["", "| " + " | ".join(one.title for one in figures) + " |"]
    lines.append("|---" + "|---:" * (len(figures) - 1) + "|")
    for row in comparison.rows:
        lines.append("| " + " | ".join(_escape(one.text(row) or "-") for one in figures) + " |")
    lines += ["", *[f"{_escape(note)}  " for note in _table_notes(comparison, 0)]]
    for title, entries in _list_sections(comparison).items():
        lines += ["", f"## {title}", "", *[f"- {_escape(entry)}" for entry in entries]]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return "".join(f"\\{c}" if c in "\\`*_|[]<#" else c for c in printable(text))


_CSV_PLAIN = ("waiting_s", "bytes_per_step", "global_batch_size", "latency_s", "bandwidth_bytes_per_s")
_CSV_SPLIT = ("data_s", "compute_s", "communication_s", "other_s", "step_s")


def format_csv(comparison: Comparison) -> str:
    """A line per variant, base units; a figure with a spread has three columns, and unknown ones are empty.

    The last columns are what others printed, in their units.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    spreads = [f"{name}{end}" for name in SPREAD_FIGURES for end in ("", "_low", "_high")]
    split = [f"split_{name}" for name in _CSV_SPLIT]
    references = comparison.study.references
    printed = [_harmless(f"printed: {one.what}, {one.unit} ({one.source})") for one in references]
    writer.writerow(
        ["variant", "nodes", "ranks_asked", "ranks_worked", "runs", "jobs", *spreads, *split, *_CSV_PLAIN, *printed]
    )
    for row in comparison.rows:
        writer.writerow([*_csv_cells(row), *(one.figures.get(row.label, "") for one in references)])
    return written.getvalue()


def _csv_cells(row: VariantRow) -> list[object]:
    cells: list[object] = [_harmless(row.label), row.layout.nodes, row.ranks_asked, row.ranks_worked]
    cells += [sum(trial.state == "COMPLETED" for trial in row.trials), len(row.trials)]
    for name in SPREAD_FIGURES:
        one: Spread | None = getattr(row, name)
        cells += ["", "", ""] if one is None else [one.median, one.low, one.high]
    cells += [getattr(row.split, name) if row.split else "" for name in _CSV_SPLIT]
    cells += [getattr(row, name) for name in _CSV_PLAIN]
    return ["" if cell is None else cell for cell in cells]


def _harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
