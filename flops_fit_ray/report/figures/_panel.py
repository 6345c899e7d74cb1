"""Figure of the sensitivity panel: N_opt under each choice, by lever."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from flops_fit_ray.analysis import Interval, Sensitivity
from flops_fit_ray.formatting import count, flops
from flops_fit_ray.report.figures._style import INK, MARKERS, Drawing, colours, style_axes


@dataclass(frozen=True, kw_only=True)
class Spread:
    """N_opt under the choices of one lever."""

    lever: str
    params: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PanelNumbers:
    """Numbers of the figure."""

    budget: float
    answer: float
    interval: Interval | None
    spreads: tuple[Spread, ...]  # largest spread first


def panel_numbers(panel: Sensitivity, interval: Interval | None) -> PanelNumbers:
    """Group the panel by lever; `interval` is that of the answer."""
    answer = panel.rows[0].params
    assert answer is not None
    spreads = [
        Spread(lever=lever, params=tuple(r.params for r in panel.rows if r.lever == lever and r.params is not None))
        for lever, _ in panel.levers
    ]
    return PanelNumbers(budget=panel.budget, answer=answer, interval=interval, spreads=tuple(spreads))


def draw_panel(shown: PanelNumbers) -> Figure:
    """Draw one line per lever and a mark per choice; the vertical line is the answer, the shade its interval."""
    figure = Drawing(figsize=(7.2, 1.2 + 0.34 * len(shown.spreads)), layout="constrained")
    axes = figure.add_subplot()
    if shown.interval is not None:
        axes.axvspan(shown.interval.low, shown.interval.high, color=INK, alpha=0.08, linewidth=0)
    axes.axvline(shown.answer, color=INK, linewidth=1.2)
    for y, (spread, colour) in enumerate(zip(shown.spreads, colours(len(shown.spreads)), strict=True)):
        values = [*spread.params, shown.answer]
        axes.plot([min(values), max(values)], [y, y], "-", color=colour, linewidth=2.5)
        axes.plot(spread.params, [y] * len(spread.params), MARKERS[y % len(MARKERS)], color=colour, markersize=5)
    axes.set_xscale("log")
    values = [shown.answer, *(p for s in shown.spreads for p in s.params)]
    if shown.interval is not None:
        values += [shown.interval.low, shown.interval.high]
    ends = [float(f"{v:.2g}") for v in np.geomspace(min(values), max(values), 5)]
    axes.set_xticks(ends, [count(v) for v in ends])
    axes.minorticks_off()
    axes.set_yticks(range(len(shown.spreads)), [s.lever for s in shown.spreads])
    axes.invert_yaxis()
    axes.set_xlabel(f"N_opt({flops(shown.budget)})")
    style_axes(axes)
    return figure
