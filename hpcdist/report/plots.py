"""The plots of a study's report, as SVG for a page and as PNG for TensorBoard.

Which ones: what readers of a scaling study expect. The same comparison gives the same bytes. Importing this loads
matplotlib, so commands do it only where they draw.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import msgspec
from matplotlib.figure import Figure

from hpcdist.report.model import Comparison
from hpcdist.report.plot_figures import (
    MOST_RANKS,
    draw_accuracy_over_gpu_hours,
    draw_accuracy_over_time,
    draw_cost,
    draw_efficiency,
    draw_speedup,
    draw_step,
    draw_throughput,
    draw_throughput_per_rank,
    draw_usage,
    draw_use,
)
from hpcdist.report.plot_style import format_png, format_svg, plot_style

# More variants than this are no picture any more; the tables have all of them.
MOST_VARIANTS = 32


class Plot(NamedTuple):
    """A plot of a report.

    Attributes:
        key: Stays the same between releases.
        title: What it shows.
        caption: How to read it.
        missing: What nobody measured, where there is nothing to show.
        svg: An `<svg>` element for a page; None where there is nothing to show.
        png: The same picture on white; None likewise, and where it is not wanted.
    """

    key: str
    title: str
    caption: str
    missing: str
    svg: str | None
    png: bytes | None


class _Kind(NamedTuple):
    key: str
    title: str
    caption: str
    missing: str
    draw: Callable[[Comparison], Figure | None]


_KINDS = (
    _Kind(
        "speedup",
        "Speedup",
        "Over the baseline; both axes double at each step. A fitted law is dashed where no measured point supports "
        "it; four laws at most are drawn.",
        "no speedup at another number of ranks than the baseline's was measured",
        draw_speedup,
    ),
    _Kind(
        "efficiency",
        "Parallel efficiency",
        "Speedup per rank. Below the 75 % line an allocation is rarely thought worth it.",
        "no efficiency at another number of ranks than the baseline's was measured",
        draw_efficiency,
    ),
    _Kind("throughput", "Throughput", "Steady state, over all ranks.", "no throughput was measured", draw_throughput),
    _Kind(
        "throughput-per-rank",
        "Throughput per rank",
        "Equal bars would be ideal scaling.",
        "no throughput was measured",
        draw_throughput_per_rank,
    ),
    _Kind(
        "step",
        "Where a step goes",
        "Mean over ranks, median of repeats. Communication is what the all-reduce adds to the backward pass.",
        "no step was split into its parts",
        draw_step,
    ),
    _Kind(
        "accuracy-time",
        "Accuracy against time",
        "Points: where the repeats ended. Thin lines: tests on the way.",
        "no accuracy was measured with a wall-clock time",
        draw_accuracy_over_time,
    ),
    _Kind(
        "accuracy-hours",
        "Accuracy against what was taken",
        "The same against allocated hours.",
        "no accuracy was measured with GPU-hours",
        draw_accuracy_over_gpu_hours,
    ),
    _Kind("cost", "Cost against time", "Down and to the left is better.", "no cost is known", draw_cost),
    _Kind(
        "use",
        "Requested and used",
        "Medians. Under the bound named in the legend a request is usually thought too large; CPU does not count for "
        "jobs that train on GPUs.",
        "no use of what was requested was measured",
        draw_use,
    ),
)


def draw_plots(comparison: Comparison, *, png: bool = False) -> tuple[Plot, ...]:
    """Draw all plots in the report's order, as PNG too if wanted; those with nothing to show have no picture."""
    few = _limit(comparison)
    shown, all_rows = len(few.rows), len(comparison.rows)
    note = f" {shown} of {all_rows} variants are drawn." if shown < all_rows else ""
    return tuple(
        _draw(kind.key, kind.title, kind.caption + note, kind.missing, partial(kind.draw, few), png=png)
        for kind in _KINDS
    )


def _draw(
    key: str, title: str, caption: str, missing: str, draw: Callable[[], Figure | None], *, png: bool = False
) -> Plot:
    """A plot drawn once, in each of its forms."""
    with plot_style(key):
        figure = draw()
        svg = format_svg(figure, title) if figure else None
        return Plot(key, title, caption, missing, svg, format_png(figure) if figure and png else None)


def draw_usage_plots(comparison: Comparison) -> tuple[Plot, ...]:
    """What the ranks of one job of each variant used over time, in the variants' order."""
    plots = []
    for number, row in enumerate(_limit(comparison).rows, 1):
        usage = comparison.usage.get(row.label)
        if usage is None:
            continue
        every_s = max(curve.every_s for curve in usage.curves)
        caption = f"Run {usage.run}, repeat {usage.repeat}; a point is the mean of {every_s:g} s, of memory the peak."
        if len(usage.curves) > MOST_RANKS:
            caption += f" {MOST_RANKS} of {len(usage.curves)} ranks are drawn."
        missing, draw = "the job was over before the first sample", partial(draw_usage, usage.curves)
        plots.append(_draw(f"usage-{number}", f"{row.label}: use over time", caption, missing, draw))
    return tuple(plots)


def _limit(comparison: Comparison) -> Comparison:
    """The comparison with as many variants as a picture has room for: the baseline, and the first of the others."""
    rows = sorted(enumerate(comparison.rows), key=lambda place: not place[1].is_baseline)[:MOST_VARIANTS]
    kept = tuple(row for _, row in sorted(rows, key=lambda place: place[0]))
    return comparison if len(kept) == len(comparison.rows) else msgspec.structs.replace(comparison, rows=kept)
