"""Style of all figures, and their output as SVG, PNG or part of a page. Draws on Figure, not pyplot."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flops_fit_ray.errors import SpecError
from flops_fit_ray.formatting import count

INK = "#010203"  # replaced by the text colour of the page that holds the figure
MARKERS = "os^DvPX*<>"  # with the lightness of the colours, they tell series apart in grey print too
MIN_TICKS, MAX_TICKS = 3, 9
MAX_ELEMENTS = 300
FORMATS = (".svg", ".png", ".pdf")


def colours(number: int) -> list[tuple[float, float, float, float]]:
    """Return colours along one map, larger budgets lighter; readable on light and dark background and in grey."""
    return [tuple(colormaps["viridis"](x)) for x in np.linspace(0.2, 0.85, max(number, 1))][:number]


def too_many(points: int) -> bool:
    """Return True if points should be rasterized, to keep the SVG small."""
    return points > MAX_ELEMENTS


def style_axes(axes: Axes) -> None:
    """Style axes: two spines, a faint grid, everything in ink."""
    axes.tick_params(which="both", colors=INK, labelsize=8)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    axes.grid(True, which="major", color=INK, alpha=0.12, linewidth=0.6)


def readable_ticks(axes: Axes) -> bool:
    """Put ticks at 1, 2 and 5 of each decade of a logarithmic y axis; return False if that gives too few."""
    low, high = axes.get_ylim()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    if len(ticks) <= MAX_TICKS:
        axes.set_yticks(ticks, [count(tick) for tick in ticks])
    axes.yaxis.set_minor_formatter("")
    return len(ticks) >= MIN_TICKS


class Drawing(Figure):
    """A figure that notebooks show, whatever their matplotlib backend."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


def lay_out(figure: Figure) -> Figure:
    """Place the parts of a figure for good; saving it would place them again for each format."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)  # a draw without rendering does the same, and measures every text once more
        figure.set_layout_engine(None)
    return figure


def to_svg(figure: Figure) -> str:
    """Return the figure as SVG text, the same bytes for the same numbers."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "flops_fit_ray", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue().decode()


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG on white, 160 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def for_page(svg: str, name: str) -> str:
    """Return the `<svg>` element alone, in the page's text colour; `name` prefixes its ids, which keeps them unique."""
    element = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for mark in ('id="', 'href="#', "url(#"):
        element = element.replace(mark, f"{mark}{name}-")
    return element


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file, in the format of its suffix.

    Raises:
        SpecError: the format is unknown, or the file cannot be written.
    """
    if path.suffix not in FORMATS:
        raise SpecError(str(path), [f"unknown figure format {path.suffix!r}; give one of {', '.join(FORMATS)}"])
    try:
        figure.savefig(path, dpi=160, facecolor="white")
    except OSError as e:
        raise SpecError(str(path), [f"cannot be written: {e.strerror}; give another path"]) from e
