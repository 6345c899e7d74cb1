"""How every figure looks, and how it becomes SVG, PNG or a part of a page. No pyplot, no files but those asked for."""

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

INK = "#010203"  # replaced by the page's own text colour where a figure stands in a page
MARKERS = "os^DvPX*<>"  # with the colours' lightness they tell series apart in grey print as well
MIN_TICKS, MAX_TICKS = 3, 9
MAX_ELEMENTS = 300
FORMATS = (".svg", ".png", ".pdf")


def colours(number: int) -> list[tuple[float, float, float, float]]:
    """Along one colour map, so that a larger budget is a lighter line; readable on both grounds and in grey."""
    return [tuple(colormaps["viridis"](x)) for x in np.linspace(0.2, 0.85, max(number, 1))][:number]


def too_many(points: int) -> bool:
    """Whether dots are better one picture than so many elements: a page must stay small."""
    return points > MAX_ELEMENTS


def plain(axes: Axes) -> None:
    """Two spines, a faint grid, everything in ink."""
    axes.tick_params(which="both", colors=INK, labelsize=8)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    axes.grid(True, which="major", color=INK, alpha=0.12, linewidth=0.6)


def readable_ticks(axes: Axes) -> bool:
    """On a logarithmic y axis of few decades: 1, 2 and 5 of each, as people read them. Whether there are some."""
    low, high = axes.get_ylim()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    if len(ticks) <= MAX_TICKS:
        axes.set_yticks(ticks, [count(tick) for tick in ticks])
    axes.yaxis.set_minor_formatter("")
    return len(ticks) >= MIN_TICKS


class Drawing(Figure):
    """A figure that a notebook shows whatever its backend is."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


def to_svg(figure: Figure) -> str:
    """The figure as SVG text, the same bytes for the same numbers."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "flops_fit_ray", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue().decode()


def to_png(figure: Figure) -> bytes:
    """The figure as PNG on white, 160 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def for_page(svg: str, name: str) -> str:
    """The `<svg>` element alone, in the page's own text colour; `name` begins its ids, so that none meets another."""
    element = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for mark in ('id="', 'href="#', "url(#"):
        element = element.replace(mark, f"{mark}{name}-")
    return element


def save(figure: Figure, path: Path) -> None:
    """Write a figure where the user wants it.

    Raises:
        SpecError: the format is unknown, or the file cannot be written.
    """
    if path.suffix not in FORMATS:
        raise SpecError(str(path), [f"is no figure that can be drawn; give one of {', '.join(FORMATS)}"])
    try:
        figure.savefig(path, dpi=160, facecolor="white")
    except OSError as e:
        raise SpecError(str(path), [f"cannot be written: {e.strerror}"]) from e
