"""Matplotlib figures as inline SVG with the colours of the page, so that they follow light and dark mode.

Matplotlib draws with placeholder colours; each is then replaced by a CSS variable. A fixed hash salt, no dates and no
embedded fonts: the same numbers give the same bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator


INK, SOFT, GRID, CARD = "#010101", "#020202", "#030303", "#040404"
BLUE, AMBER = "#050505", "#060606"
_VARIABLES = {INK: "ink", SOFT: "soft", GRID: "rule", CARD: "card", BLUE: "blue", AMBER: "amber"}
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "metareward",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.labelsize": 11,
    "ytick.labelsize": 10,
}


@dataclass(slots=True)
class Drawing:
    """A chart: draw on ``axes`` inside the context, read ``svg`` after it."""

    axes: Axes
    svg: Markup = field(default_factory=Markup)


def ticks(most: int, **options: Any) -> MaxNLocator:
    """A locator of round numbers with at most ``most`` intervals between ticks."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, **options)


@contextmanager
def drawing(
    name: str,
    caption: str,
    width: float = 330,
    height: float = 180,
    margins: tuple[float, float, float, float] = (40, 12, 8, 24),
) -> Iterator[Drawing]:
    """A chart of ``width`` × ``height`` CSS pixels; ``margins`` are left, right, top, bottom.

    ``name`` makes its ids unique on the page; ``caption`` is the text for screen readers.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    left, right, top, bottom = margins
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's matplotlibrc must not change the report
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)  # becomes the figure's canvas
        box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
        chart = Drawing(figure.add_axes(box))
        yield chart
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
        chart.svg = _inline(buffer.getvalue(), name, caption, width)


def _inline(text: str, name: str, caption: str, width: float) -> Markup:
    """The ``<svg>`` element alone: no prologue, no page-wide style, unique ids, colours as CSS variables."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
    for placeholder, variable in _VARIABLES.items():
        body = body.replace(placeholder, f"var(--{variable})")
    opening = f'<svg role="img" aria-label="{html.escape(caption)}" style="max-width:{width:g}px"'
    attributes = r'<svg\b((?:\s+(?!viewBox)[\w:]+="[^"]*")*)\s+(viewBox="[^"]*")[^>]*>'
    body = re.sub(attributes, rf"{opening} \2>", body, count=1)
    return Markup(re.sub(r"\s*\n\s*", "\n", body).strip())  # matplotlib escapes every label
