"""The plot of what a job's ranks used over time: processors, memory, disk and network, one below the other. Pure."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hpcdist.drawing import LAYOUT_COLOURS, WIDTH_IN
from hpcdist.plot_use import choose_time
from hpcdist.records.usage_curve import UsageCurve

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
