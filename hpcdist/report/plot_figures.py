"""The figures of a report: scaling, steps, accuracy, cost, and what a job used over time."""

import itertools
import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from hpcdist.records.usage_curve import UsageCurve
from hpcdist.report.model import Comparison, Fit, Spread, TrialRow, VariantRow, name_rank
from hpcdist.report.plot_style import (
    INK,
    LAYOUT_COLOURS,
    PAPER,
    PART_COLOURS,
    WIDTH_IN,
    choose_looks,
    draw_bars,
    draw_legend,
    draw_point,
    label,
    new_axes,
    new_slots,
    show_ranks,
    side_by_side,
)
from hpcdist.report.scaling import EFFICIENCY_LINE, scale
from hpcdist.studies.study import format_settings
from hpcdist.units import format_seconds

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
    figure, axes = new_axes(f"speedup over {label(name_baseline(comparison.rows) or '', 36)}")
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
    figure, axes = new_axes("parallel efficiency, %")
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


_USES = (("CPU", "cpu_efficiency", 0.8), ("memory", "memory_efficiency", 0.35), ("GPU", "gpu_efficiency", 0.5))
# Seconds per unit of a time axis, the largest that leaves at least two ticks first.
_TIMES = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def draw_step(comparison: Comparison) -> Figure | None:
    """The parts of each variant's step, one on the other, in milliseconds."""
    rows = comparison.rows
    if not any(row.split for row in rows):
        return None
    figure, axes = new_slots([row.label for row in rows], "time per step, ms")
    longest_s = max(row.split.step_s for row in rows if row.split)
    axes.set_xlim(0, 1e3 * longest_s * 1.2)
    seen = set()
    for place, row in enumerate(rows):
        if row.split is None:
            axes.text(0, place, " – not measured", va="center", alpha=0.7, size=9)
            continue
        start = 0.0
        for part, seconds in parts_of(row):
            seen.add(part)
            axes.barh(place, 1e3 * seconds, left=start, height=0.42, color=PART_COLOURS[part], zorder=2,
                      edgecolor=PAPER, linewidth=0.6)  # fmt: skip
            start += 1e3 * seconds
        axes.text(start + 20 * longest_s, place, format_seconds(row.split.step_s), va="center", size=9.5)
    names = {"communication": "communication (exposed)", "waiting": "waiting for the slowest rank"}
    handles = [Patch(color=PART_COLOURS[part], label=names.get(part, part)) for part in PART_COLOURS if part in seen]
    figure.legend(handles=handles, loc="outside lower left", ncols=2, borderaxespad=0.2)
    return figure


def parts_of(row: VariantRow) -> list[tuple[str, float]]:
    """The parts of a step in seconds, the waiting taken out of the communication where somebody measured it."""
    if row.split is None:
        return []
    waiting_s = min(row.waiting_s or 0.0, row.split.communication_s)
    parts = [
        ("data", row.split.data_s),
        ("compute", row.split.compute_s),
        ("communication", row.split.communication_s - waiting_s),
        ("waiting", waiting_s),
        ("other", row.split.other_s),
    ]
    return [(part, seconds) for part, seconds in parts if seconds > 0]


def draw_accuracy_over_time(comparison: Comparison) -> Figure | None:
    """Test accuracy against wall-clock: the tests on the way of each trial, and where the variants ended."""
    unit_s, unit = choose_time([row.wall_s.high for row in comparison.rows if row.wall_s and row.accuracy])
    return _draw_accuracy(comparison, attrgetter("wall_s"), lambda _: 1 / unit_s, 1 / unit_s, f"wall-clock, {unit}")


def draw_accuracy_over_gpu_hours(comparison: Comparison) -> Figure | None:
    """Test accuracy against what was taken for it."""

    def per_s(trial: TrialRow) -> float | None:
        return trial.gpu_hours / trial.wall_s if trial.gpu_hours is not None and trial.wall_s else None

    hours = f"{name_rank(comparison.rows)}-hours"
    return _draw_accuracy(comparison, attrgetter("gpu_hours"), per_s, 1.0, hours)


def _draw_accuracy(
    comparison: Comparison,
    read: Callable[[VariantRow], Spread | None],
    per_s: Callable[[TrialRow], float | None],
    per_unit: float,
    unit: str,
) -> Figure | None:
    rows = [row for row in comparison.rows if row.accuracy and read(row)]
    if not rows:
        return None
    looks = choose_looks(comparison.rows)
    figure, axes = new_axes("test accuracy, %", unit)
    for row in rows:
        for trial in row.trials:
            _draw_curve(axes, trial, per_s(trial), looks[row.label].colour)
    for row in rows:
        x, y = read(row), row.accuracy
        if x and y:
            draw_point(axes, scale(x, per_unit), scale(y, 100), looks[row.label])
    extra = []
    if comparison.study.target_accuracy is not None:
        goal = 100 * comparison.study.target_accuracy
        extra = [axes.axhline(goal, color=INK, linestyle="--", linewidth=1.2, alpha=0.75, label="target")]
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    # Points one on the other would be blown up to look apart: the axis spans at least a percent.
    spare = max(0.0, 1 - (high - low)) / 2
    axes.set_ylim(low - spare, high + spare)
    axes.ticklabel_format(useOffset=False)
    draw_legend(figure, [looks[row.label] for row in rows], extra)
    return figure


def _draw_curve(axes: Axes, trial: TrialRow, per_s: float | None, colour: str) -> None:
    if per_s is None or trial.started_at_s is None or not trial.tests:
        return
    times = [per_s * (test.at_s - trial.started_at_s) for test in trial.tests]
    axes.plot(times, [100 * test.accuracy for test in trial.tests], color=colour, linewidth=1.1, alpha=0.55)


def draw_cost(comparison: Comparison) -> Figure | None:
    """What each variant cost against how long it took; hours stand for money where the study has no prices."""
    priced = comparison.currency is not None
    read = attrgetter("cost" if priced else "gpu_hours")
    rows = [row for row in comparison.rows if row.wall_s and read(row)]
    if not rows:
        return None
    looks = choose_looks(comparison.rows)
    unit_s, unit = choose_time([row.wall_s.high for row in rows if row.wall_s])
    money = label(comparison.currency or f"{name_rank(rows)}-hours", 24)
    figure, axes = new_axes(f"cost of a run, {money}", f"wall-clock, {unit}")
    for row in rows:
        if row.wall_s:
            draw_point(axes, scale(row.wall_s, 1 / unit_s), read(row), looks[row.label])
    axes.set_xlim(0, 1.08 * max(row.wall_s.high for row in rows if row.wall_s) / unit_s or 1)
    axes.set_ylim(0, 1.12 * max(read(row).high for row in rows) or 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    draw_legend(figure, [looks[row.label] for row in rows])
    return figure


def draw_use(comparison: Comparison) -> Figure | None:
    """How much of the CPU, memory and GPU time that was asked for each variant used."""
    rows = comparison.rows
    uses = [use for use in _USES if any(getattr(row, use[1]) for row in rows)]
    if not uses:
        return None
    figure, axes = new_slots([row.label for row in rows], "used, % of what was requested")
    figure.set_figheight(0.95 + len(rows) * (0.24 + 0.2 * len(uses)) + 0.3)
    axes.set_ylim(len(rows) - 0.55, -0.7)
    height = 0.62 / len(uses)
    shades = (PART_COLOURS["compute"], PART_COLOURS["data"], PART_COLOURS["communication"])
    colours = dict(zip((name for name, _, _ in _USES), shades, strict=True))
    most = 100.0
    for place, row in enumerate(rows):
        for slot, (name, field, _) in enumerate(uses):
            spread: Spread | None = getattr(row, field)
            y = place - 0.2 + height * (slot + 0.5)
            if spread is None:
                axes.text(1, y, "–", va="center", size=9, alpha=0.7)
                continue
            axes.barh(y, 100 * spread.median, height=0.86 * height, color=colours[name], zorder=2)
            axes.text(100 * spread.median + 1.5, y, f"{100 * spread.median:.0f} %", va="center", size=9)
            most = max(most, 100 * spread.median)
    axes.set_xlim(0, most * 1.14)
    axes.xaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
    axes.axvline(100, color=INK, linewidth=1, alpha=0.6)
    handles = [Patch(color=colours[name], label=f"{name} (low under {100 * low:.0f} %)") for name, _, low in uses]
    figure.legend(handles=handles, loc="outside lower left", ncols=1, borderaxespad=0.2)
    return figure


def choose_time(seconds: Sequence[float]) -> tuple[float, str]:
    """The unit of a time axis that ends at the longest of these: its seconds, and its name."""
    longest_s = max(seconds, default=1.0)
    return next(((unit_s, unit) for unit_s, unit in _TIMES if longest_s >= 2 * unit_s), _TIMES[-1])


# As many as there are colours.
MOST_RANKS = len(LAYOUT_COLOURS)
_PANEL_IN = 0.82
_DASHES = ("-", ":")


class _Panel(NamedTuple):
    title: str
    figures: tuple[str, ...]
    unit: float


_PANELS = (
    _Panel("CPUs in use", ("cpu_cores",), 1.0),
    _Panel("CPUs of the whole node in use, %", ("node_cpu_utilization",), 0.01),
    _Panel("GPU in use, %", ("gpu_utilization",), 0.01),
    _Panel("memory, GiB", ("memory_bytes",), 2.0**30),
    _Panel("GPU memory, GiB", ("gpu_memory_bytes",), 2.0**30),
    _Panel("disk, MB/s: read –, written ···", ("disk_read_bytes_per_s", "disk_written_bytes_per_s"), 1e6),
    _Panel(
        "network of the node, MB/s: received –, sent ···",
        ("network_received_bytes_per_s", "network_sent_bytes_per_s"),
        1e6,
    ),
)


def draw_usage(curves: Sequence[UsageCurve]) -> Figure | None:
    """What each rank used, over the time since the first one's start; of what nobody measured there is no panel."""
    shown = [curve for curve in curves[:MOST_RANKS] if curve.at_s]
    panels = [panel for panel in _PANELS if any(_is_measured(curve, panel) for curve in shown)]
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH_IN, 0.55 + _PANEL_IN * len(panels)), layout="constrained")
    rows: list[Axes] = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
    started_s = min(curve.started_at_s for curve in shown)
    longest_s = max(curve.started_at_s - started_s + curve.at_s[-1] for curve in shown)
    unit_s, unit = choose_time([longest_s])
    for axes, panel in zip(rows, panels, strict=True):
        axes.set_title(panel.title, fontsize=9)
        for curve, colour in zip(shown, LAYOUT_COLOURS, strict=False):
            late_s = curve.started_at_s - started_s
            _draw_rank(axes, panel, curve, [(late_s + at_s) / unit_s for at_s in curve.at_s], colour)
        axes.set_ylim(bottom=0, top=None if axes.get_ylim()[1] > 0.01 else 1)
        axes.yaxis.set_major_locator(MaxNLocator(3))
    rows[-1].set_xlim(0, longest_s / unit_s or 1)
    rows[-1].set_xlabel(unit)
    if len(shown) > 1:
        handles = [
            Line2D([], [], color=colour, linewidth=1.3, label=f"rank {curve.rank}")
            for curve, colour in zip(shown, LAYOUT_COLOURS, strict=False)
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=4, borderaxespad=0.2)
    return figure


def _is_measured(curve: UsageCurve, panel: _Panel) -> bool:
    return any(value is not None for value in itertools.chain(*(getattr(curve, name) for name in panel.figures)))


def _draw_rank(axes: Axes, panel: _Panel, curve: UsageCurve, times: Sequence[float], colour: str) -> None:
    for name, dashes in zip(panel.figures, _DASHES, strict=False):
        values = [float("nan") if value is None else value / panel.unit for value in getattr(curve, name)]
        axes.plot(times[: len(values)], values, color=colour, linestyle=dashes, linewidth=1.2)
