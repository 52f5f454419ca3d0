"""The plots of how a training scales: speedup, efficiency, throughput. Pure."""

import math
from collections.abc import Sequence
from operator import attrgetter

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from hpcdist.comparison import Comparison, Fit, Spread, VariantRow, name_rank
from hpcdist.drawing import INK, label, new_axes
from hpcdist.plot_marks import choose_looks, draw_bars, draw_legend, draw_point, show_ranks, side_by_side
from hpcdist.scaling import EFFICIENCY_LINE, scale
from hpcdist.studies.study import format_settings

# How far a fitted law is drawn beyond the last measured point.
_BEYOND = 2
_LAWS = {"amdahl": "Amdahl", "usl": "USL"}
_MOST_LAWS = 4


def draw_speedup(comparison: Comparison) -> Figure | None:
    """Speedup over ranks on two logarithmic axes, with the ideal line and the fitted laws."""
    rows = [row for row in comparison.rows if row.speedup is not None and row.speedup.low > 0]
    base = next((row for row in comparison.rows if row.is_baseline), None)
    if base is None or not _differ_in_ranks(rows):
        return None
    looks = choose_looks(comparison.rows)
    figure, axes = new_axes(3.5)
    axes.set_title(f"speedup over {label(name_baseline(comparison.rows) or '', 36)}")
    ranks = [row.ranks for row in rows]
    laws = [fit for fit in comparison.fits if fit.note is None and fit.law in _LAWS and fit.ranks][:_MOST_LAWS]
    ticks = sorted({*ranks, base.ranks, *[_BEYOND * max(fit.ranks) for fit in laws]})
    show_ranks(axes, ticks)
    axes.set_yscale("log", base=2)
    ends = [min(base.ranks, *ranks), max(ticks)]
    ideal = [end / base.ranks for end in ends]
    extra = axes.plot(ends, ideal, color=INK, linestyle=":", linewidth=1.4, alpha=0.75, label="ideal")
    for place, fit in enumerate(laws):
        extra.append(_draw_law(axes, fit, alpha=0.9 - 0.2 * place, width=1.1 + 0.8 * place))
    if laws:
        extra.append(Line2D([], [], color=INK, linestyle="--", linewidth=1.2, alpha=0.9, label="extrapolated"))
    for row, x in zip(rows, side_by_side(ranks), strict=True):
        if row.speedup:
            draw_point(axes, x, row.speedup, looks[row.label])
    low, high = axes.get_ylim()
    powers = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
    axes.yaxis.set_major_locator(FixedLocator([2.0**power for power in powers]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.set_ylim(low / 1.1, high * 1.1)
    draw_legend(figure, [looks[row.label] for row in rows], extra)
    return figure


def _differ_in_ranks(rows: Sequence[VariantRow]) -> bool:
    return len({row.ranks for row in rows}) > 1


def name_baseline(rows: Sequence[VariantRow]) -> str | None:
    """What speedups refer to: one variant, or a layout with each variant's own settings."""
    bases = [row for row in rows if row.is_baseline]
    if len(bases) > 1:
        return f"{bases[0].layout.name} with the same settings"
    return bases[0].label if bases else None


def _draw_law(axes: Axes, fit: Fit, *, alpha: float, width: float) -> Line2D:
    """A fitted law, dashed where no point supports it; its line in the legend."""
    name = _LAWS[fit.law] + (f" {format_settings(fit.settings)}" if fit.settings else "")
    last = max(fit.ranks)
    for (start, end), line in (((min(fit.ranks), last), "-"), ((last, _BEYOND * last), "--")):
        ranks = [start * (end / start) ** (step / 40) for step in range(41)]
        points = [(at, value) for at in ranks if (value := predict_speedup(fit, at)) is not None and value > 0]
        if points:
            axes.plot(*zip(*points, strict=True), color=INK, linestyle=line, linewidth=width, alpha=alpha)
    return Line2D([], [], color=INK, linestyle="-", linewidth=width, alpha=alpha, label=label(name, 32))


def predict_speedup(fit: Fit, ranks: float) -> float | None:
    """The speedup that a fitted law gives a number of ranks; None where a parameter is missing.

    Source: Amdahl 1967, 1/(f + (1-f)/p); Gunther's universal scalability law, γN/(1 + α(N-1) + βN(N-1)).
    """
    if fit.law == "amdahl" and (serial := fit.parameters.get("serial_fraction")) is not None:
        return 1 / (serial + (1 - serial) / ranks)
    if fit.law == "usl" and {"alpha", "beta"} <= fit.parameters.keys():
        alpha, beta = fit.parameters["alpha"], fit.parameters["beta"]
        return fit.parameters.get("gamma", 1.0) * ranks / (1 + alpha * (ranks - 1) + beta * ranks * (ranks - 1))
    return None


def draw_efficiency(comparison: Comparison) -> Figure | None:
    """Parallel efficiency over ranks from zero, with the line at which an allocation is thought worth it."""
    rows = [row for row in comparison.rows if row.efficiency is not None]
    if not _differ_in_ranks(rows):
        return None
    looks = choose_looks(comparison.rows)
    figure, axes = new_axes(3.5)
    axes.set_title("parallel efficiency, %")
    ranks = [row.ranks for row in rows]
    show_ranks(axes, ranks)
    line = axes.axhline(100 * EFFICIENCY_LINE, color=INK, linestyle="--", linewidth=1.2, alpha=0.75, label="75 % line")
    most = 0.0
    for row, x in zip(rows, side_by_side(ranks), strict=True):
        if row.efficiency:
            draw_point(axes, x, scale(row.efficiency, 100), looks[row.label])
            most = max(most, row.efficiency.high)
    axes.set_ylim(0, max(110, 105 * most))
    draw_legend(figure, [looks[row.label] for row in rows], [line])
    return figure


def draw_throughput(comparison: Comparison) -> Figure | None:
    """Images per second of each variant."""
    return draw_bars(comparison.rows, attrgetter("images_per_s"), "images/s")


def draw_throughput_per_rank(comparison: Comparison) -> Figure | None:
    """Images per second of each variant's single rank."""

    def per_rank(row: VariantRow) -> Spread | None:
        return row.images_per_s and scale(row.images_per_s, 1 / row.ranks)

    return draw_bars(comparison.rows, per_rank, f"images/s per {name_rank(comparison.rows)}")
