"""How plots look: canvas, fonts, colours and axes, points, bars and legends; a finished figure as SVG or PNG.

Colours: Okabe and Ito's set for the colour-blind (jfly.uni-koeln.de/color, 2008), darkened where it would not be seen
on white. In an SVG each is a CSS variable with that colour behind it, so that a page in the dark can lighten them;
text and axes take the page's own colour.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from hpcdist.report.model import Spread, VariantRow
from hpcdist.studies.study import format_settings
from hpcdist.text import printable
from hpcdist.units import format_number

INK = "#22262b"
PAPER = "#fffffe"
LAYOUT_COLOURS = ("#0072b2", "#d55e00", "#00845f", "#b3508a", "#9a7200", "#00849c", "#6b4a2b", "#6f767d")
PART_COLOURS = {
    "data": "#c77d01",
    "compute": "#50667c",
    "communication": "#a8285a",
    "waiting": "#d883a6",
    "other": "#a9b0b8",
}
MARKERS = "os^DvPXp*h<>"
WIDTH_IN = 4.7

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"
_CSS_NAMES = {
    **{colour: f"--plot-{place}" for place, colour in enumerate(LAYOUT_COLOURS, 1)},
    **{colour: f"--plot-{part}" for part, colour in PART_COLOURS.items()},
    PAPER: "--plot-paper",
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    # A name between dollars is a name, not a formula.
    "text.parse_math": False,
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "figure.facecolor": "none",
    "hatch.linewidth": 0.8,
}
_PNG_DPI = 144


@contextlib.contextmanager
def plot_style(key: str) -> Iterator[None]:
    """Hold the settings a figure is drawn and saved under, whatever a user's `matplotlibrc` says.

    An SVG's ids are made from the plot's key, so that the plots of a page have different ones.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**_SETTINGS, "svg.hashsalt": key})
        yield


def new_axes(title: str, x: str = "", height_in: float = 3.5) -> tuple[Figure, Axes]:
    """Make a figure with one pair of axes, with its title and what runs along the x axis."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot(title=title, xlabel=x)


def label(text: str, size: int = 40) -> str:
    """A name on one line and not too long; one that begins with `_` would be kept out of a legend."""
    text = printable(text)
    text = text if len(text) <= size else text[: size - 1] + "…"
    return f" {text}" if text.startswith("_") else text


def format_svg(figure: Figure, title: str) -> str:
    """Format a figure as an `<svg>` to stand inside a page: no background, no scripts, no outside references.

    The `plot_style` that it was drawn under still holds; the title is for those who can't see it.
    """
    text = io.StringIO()
    # Not `savefig`, which draws everything twice; nothing here needs its first pass.
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(text, metadata=metadata)  # type: ignore[no-untyped-call]
    root = ElementTree.fromstring(text.getvalue())  # noqa: S314 matplotlib's own text, not one from outside
    for element in root.iter():
        _make_inline(element)
    # matplotlib's style sheet would hold for the whole page; its two rules go on the figure itself.
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in {"metadata", "style"} or (child.tag == "defs" and child.find("style") is not None):
                parent.remove(child)
    _drop_unused_ids(root)
    view = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib |= {
        "viewBox": view,
        "role": "img",
        "aria-label": printable(title),
        "style": f"font-family: {_FONTS}; stroke-linejoin: round; stroke-linecap: butt",
        "fill": "currentColor",
    }
    return ElementTree.tostring(root, encoding="unicode")


def format_png(figure: Figure) -> bytes:
    """The figure as a PNG on white; one that was drawn before keeps its layout."""
    data = io.BytesIO()
    figure.set_layout_engine("none")
    figure.set_dpi(_PNG_DPI)
    figure.set_facecolor("white")
    FigureCanvasAgg(figure).print_png(data, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return data.getvalue()


def _make_inline(element: ElementTree.Element) -> None:
    """Names without namespaces, as HTML has them; the page's colours and fonts; coordinates in hundredths."""
    element.tag = element.tag.rpartition("}")[2]
    for qualified in list(element.attrib):
        value = element.attrib.pop(qualified)
        name = qualified.rpartition("}")[2]
        if name == "style":
            value = _restyle(value)
        elif name in {"d", "x", "y", "transform", "points", "width", "height"}:
            value = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
            value = " ".join(value.split())
        element.attrib[name] = value
    if not (element.text or "").strip():
        element.text = None
    element.tail = None


def _restyle(style: str) -> str:
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    style = re.sub(r"font: (?:[a-z0-9]+ )*?([0-9.]+px) [^;]*", r"font-size: \1", style)
    style = style.replace(INK, "currentColor")
    for colour, name in _CSS_NAMES.items():
        style = style.replace(colour, f"var({name}, {colour})")
    return style


def _drop_unused_ids(root: ElementTree.Element) -> None:
    """Keeps the ids that something refers to; the others (`axes_1`) would be there once per plot of a page."""
    used = {
        match[1]
        for element in root.iter()
        for value in element.attrib.values()
        if (match := re.fullmatch(r"(?:url\()?#([^)]+)\)?", value))
    }
    used |= {found for element in root.iter() for found in re.findall(r"url\(#([^)]+)\)", element.get("style", ""))}
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)


_MOST_IN_LEGEND = 12


class Look(NamedTuple):
    """How one variant is drawn everywhere.

    Attributes:
        colour: Its layout's.
        marker: That of its settings, or of its layout where nothing is swept.
        name: The layout's.
        setting: The settings in words; empty where nothing is swept.
    """

    colour: str
    marker: str
    name: str
    setting: str


def choose_looks(rows: Sequence[VariantRow]) -> dict[str, Look]:
    """A look for each row, by its label: colours go to layouts, shapes to settings, both in the order they come in."""
    layouts = list(dict.fromkeys(row.layout.name for row in rows))
    settings = list(dict.fromkeys(format_settings(row.settings) for row in rows))
    looks = {}
    for row in rows:
        layout = row.layout.name
        place = settings.index(format_settings(row.settings)) if len(settings) > 1 else layouts.index(layout)
        colour = LAYOUT_COLOURS[layouts.index(layout) % len(LAYOUT_COLOURS)]
        setting = _name_settings(row) if len(settings) > 1 else ""
        looks[row.label] = Look(colour, MARKERS[place % len(MARKERS)], layout, setting)
    return looks


def _name_settings(row: VariantRow) -> str:
    """As its label does, which may have a name of the study's own for them, and is shorter then."""
    layout, _, name = row.label.partition(" ")
    return name if name and layout == row.layout.name else format_settings(row.settings)


def draw_point(axes: Axes, x: float | Spread, y: Spread, look: Look) -> None:
    """A median with bars from the least to the largest, in whichever directions were measured several times."""
    at = x if isinstance(x, Spread) else Spread(median=x, low=x, high=x, count=1)
    bars: dict[str, Any] = {}
    if at.high > at.low:
        bars["xerr"] = [[at.median - at.low], [at.high - at.median]]
    if y.high > y.low:
        bars["yerr"] = [[y.median - y.low], [y.high - y.median]]
    axes.errorbar(
        [at.median],
        [y.median],
        **bars,
        fmt=look.marker,
        color=look.colour,
        # A triangle of the same size looks smaller than a square.
        markersize=9 if look.marker in "^v" else 7.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        elinewidth=1.4,
        capsize=3,
        zorder=4,
    )


def draw_legend(figure: Figure, looks: Sequence[Look], extra: Sequence[Line2D] = ()) -> None:
    """Under the figure: layouts by colour, settings by shape, then what else was drawn."""
    shown = list(dict.fromkeys(looks))
    settings = list(dict.fromkeys((look.setting, look.marker) for look in shown if look.setting))
    handles: list[Line2D] = []
    for name, colour in dict.fromkeys((look.name, look.colour) for look in shown):
        marker = "s" if settings else next(look.marker for look in shown if look.name == name)
        handles.append(_dot(name, colour, marker))
    handles += [_dot(setting, INK, marker) for setting, marker in settings]
    if len(handles) > _MOST_IN_LEGEND:
        more = f"… and {len(handles) - _MOST_IN_LEGEND} more"
        handles = [*handles[:_MOST_IN_LEGEND], Line2D([], [], linestyle="none", label=more)]
    handles += extra
    # In one column a long name still fits the width.
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = max(1, min(len(handles), 4, 56 // (longest + 6)))
    # A long legend makes the figure higher, not the axes lower.
    lines = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, lines - 2))
    # matplotlib fills columns; people read rows.
    handles = [handle for column in range(columns) for handle in handles[column::columns]]
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, borderaxespad=0.2)


def _dot(name: str, colour: str, marker: str) -> Line2D:
    return Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=7, label=label(name))


def show_ranks(axes: Axes, ranks: Sequence[int]) -> None:
    """A doubling axis of ranks, with a tick at each number that there is, as far as they have room."""
    axes.set_xscale("log", base=2)
    ticks: list[int] = []
    room = max(1.25, (max(ranks) / min(ranks)) ** 0.1)
    for number in sorted(set(ranks)):
        if not ticks or number >= room * ticks[-1]:
            ticks.append(number)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlim(min(ranks) / 1.25, max(ranks) * 1.25)
    axes.set_xlabel("ranks that worked")


def side_by_side(numbers: Sequence[int]) -> list[float]:
    """The numbers moved apart, a few percent each, where several are the same: no point hides another."""
    places = []
    for at, number in enumerate(numbers):
        same, before = numbers.count(number), numbers[:at].count(number)
        step = min(0.06, 0.3 / same)
        places.append(number * (1 + step * (before - (same - 1) / 2)))
    return places


def draw_bars(rows: Sequence[VariantRow], read: Callable[[VariantRow], Spread | None], title: str) -> Figure | None:
    """A bar from zero per variant, its name above it and its figure at its end; None where no variant has one."""
    spreads, looks = [read(row) for row in rows], choose_looks(rows)
    most = max((spread.high for spread in spreads if spread), default=0.0)
    if most <= 0:
        return None
    figure, axes = new_slots([row.label for row in rows], title)
    axes.set_xlim(0, most * 1.2)
    for place, (spread, look) in enumerate(zip(spreads, looks.values(), strict=True)):
        if spread is None:
            axes.text(most * 0.01, place, "– not measured", va="center", alpha=0.7, size=9)
            continue
        axes.barh(place, spread.median, height=0.42, color=look.colour, zorder=2)
        if spread.high > spread.low:
            ends = [[spread.median - spread.low], [spread.high - spread.median]]
            axes.errorbar(spread.median, place, xerr=ends, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3, zorder=3)
        axes.text(spread.high + most * 0.02, place, format_number(spread.median), va="center", size=9.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    return figure


def new_slots(names: Sequence[str], title: str) -> tuple[Figure, Axes]:
    """A figure with a place per name from top to bottom, the name above the place where the bar goes."""
    figure, axes = new_axes(title, height_in=max(1.9, 0.95 + 0.5 * len(names)))
    axes.set_ylim(len(names) - 0.6, -0.75)
    axes.yaxis.set_major_locator(NullLocator())
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=5)
    for place, name in enumerate(names):
        axes.annotate(
            label(name), (0, place - 0.27), xycoords=("axes fraction", "data"), xytext=(3, 0),
            textcoords="offset points", va="bottom", size=9.5,
        )  # fmt: skip
    return figure, axes
