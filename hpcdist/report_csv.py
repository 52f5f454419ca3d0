"""A comparison as CSV: a line per variant. Pure."""

import csv
import io
from collections.abc import Sequence

from hpcdist.comparison import SPREAD_FIGURES, Comparison, Spread, VariantRow
from hpcdist.studies.study import Reference
from hpcdist.text import printable

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
        writer.writerow([*_csv_cells(row), *_csv_printed(row, references)])
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


def _csv_printed(row: VariantRow, references: Sequence[Reference]) -> list[object]:
    return [one.figures.get(row.label, "") for one in references]


def _harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
