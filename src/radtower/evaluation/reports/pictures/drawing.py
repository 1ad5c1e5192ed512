"""What all pictures share: colors, a figure off screen, PNG without metadata, SVG for a page.

Needs the extra ``plots``.
"""

import re
from contextlib import AbstractContextManager
from io import BytesIO, StringIO
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from radtower.evaluation.reports.wording import shortened

# Okabe and Ito, without yellow: told apart with any kind of color vision, and in gray by their lightness.
SERIES_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
LINE_STYLES = ("-", "--", "-.", ":")
INK, MUTED, RULE = "#1f2328", "#636c76", "#d1d9e0"
PRESENT, ABSENT = "#d55e00", "#7a9cc0"
DPI = 110
TITLE_WIDTH = 26  # letters of a name above a small panel
# An SVG takes these from the page, which knows whether it is dark.
_FROM_PAGE = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    **{color: f"--series-{number}" for number, color in enumerate(SERIES_COLORS)},
}
_PAINT = re.compile(r"\b(fill|stroke): (#[0-9a-f]{6})")
_STYLE: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "mathtext.default": "regular",
}


def series_color(number: int) -> str:
    """Return the color of a model; after six they repeat, with another line style."""
    return SERIES_COLORS[number % len(SERIES_COLORS)]


def series_style(number: int) -> str:
    """Return the line style of a model, the second way to tell it apart."""
    return LINE_STYLES[number % len(LINE_STYLES)]


def new_figure(width: float, height: float, facecolor: str = "white") -> Figure:
    """Return an empty figure, in inches, that no window belongs to."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=facecolor)
    FigureCanvasAgg(figure)
    return figure


def house_style() -> AbstractContextManager[None]:
    """Return the context in which every picture is drawn, whatever the settings of the caller."""
    return rc_context(_STYLE)


def write_png(figure: Figure, path: str | Path) -> Path:
    """Write a PNG without metadata: two runs write the same bytes."""
    Path(path).write_bytes(png_bytes(figure))
    return Path(path)


def png_bytes(figure: Figure) -> bytes:
    """Return the PNG of a figure, without metadata."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def svg_text(figure: Figure, name: str) -> str:
    """Return a figure as the text of an ``<svg>`` element that takes ink and colors from the page.

    Letters stay letters: they can be searched, read aloud, and are drawn in the font of the page.

    Args:
        figure: What to write.
        name: Unique on the page; ids in the drawing follow from it.
    """
    buffer = StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The style element of the drawing would hold for the whole page.
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)
    # Names of its groups come again in the next drawing; nothing points to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    # Its own size is in points; the page says how wide it is.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return _PAINT.sub(_paint, text)


def panel_title(name: str) -> str:
    """Break a name into at most two lines for a small panel."""
    lines = wrap(name, TITLE_WIDTH) or [""]
    return "\n".join(lines if len(lines) <= 2 else [lines[0], shortened(" ".join(lines[1:]), TITLE_WIDTH)])


def tidy(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Put a faint grid behind what is drawn."""
    axes.set_axisbelow(True)
    axes.grid(axis=grid)


def _paint(match: re.Match[str]) -> str:
    variable = _FROM_PAGE.get(match[2])
    return match[0] if variable is None else f"{match[1]}: var({variable}, {match[2]})"
