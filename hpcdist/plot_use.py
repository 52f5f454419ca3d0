"""The plots of what a training took and gave: its steps' time, accuracy, cost, use of what it asked for. Pure."""

from collections.abc import Callable, Sequence
from operator import attrgetter

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator

from hpcdist.comparison import Comparison, Spread, TrialRow, VariantRow, name_rank
from hpcdist.drawing import INK, PAPER, PART_COLOURS, label, new_axes
from hpcdist.plot_marks import choose_looks, draw_legend, draw_point, new_slots
from hpcdist.scaling import scale
from hpcdist.units import format_seconds

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
    figure, axes = new_axes(3.5)
    axes.set_title("test accuracy, %")
    axes.set_xlabel(unit)
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
    figure, axes = new_axes(3.5)
    axes.set_title(f"cost of a run, {label(comparison.currency or f'{name_rank(rows)}-hours', 24)}")
    axes.set_xlabel(f"wall-clock, {unit}")
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
