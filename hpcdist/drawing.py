"""What all plots share: canvas, fonts, colours and axes, and a finished figure as SVG or PNG. Pure.

Colours: Okabe and Ito's set for the colour-blind (jfly.uni-koeln.de/color, 2008), darkened where it would not be seen
on white. In an SVG each is a CSS variable with that colour behind it, so that a page in the dark can lighten them;
text and axes take the page's own colour.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from hpcdist.text import printable

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
    """The settings a figure is drawn and saved under, whatever a user's `matplotlibrc` says.

    Args:
        key: The plot's; what an SVG's ids are made from, so that the plots of a page have different ones.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**_SETTINGS, "svg.hashsalt": key})
        yield


def new_axes(height_in: float) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot()


def label(text: str, size: int = 40) -> str:
    """A name on one line and not too long; one that begins with `_` would be kept out of a legend."""
    text = printable(text)
    text = text if len(text) <= size else text[: size - 1] + "…"
    return f" {text}" if text.startswith("_") else text


def format_svg(figure: Figure, title: str) -> str:
    """The figure as an `<svg>` to stand inside a page: no background, no scripts, no references to the outside.

    Args:
        figure: Drawn under the `plot_style` that still holds.
        title: What it shows, for those who can't see it.
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
