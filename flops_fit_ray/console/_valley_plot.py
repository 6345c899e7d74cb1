"""Character plot of the valleys, loss over N, from the results so far. Returns cells; nothing is printed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import Valley, ValleyFit, ValleyIntervals
from flops_fit_ray.analysis.arrays import Floats

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CURVE, MINIMUM = "·", "◆"
NO_OPTIMUM = {"edge": "the lowest loss is at the edge", "concave": "no minimum inside", "too_few": "too few results"}
MIN_RANGE = 0.02  # of ln loss, on the vertical axis


@dataclass(frozen=True, kw_only=True)
class PlotCell:
    """One character of the plot."""

    glyph: str
    budget: int  # index of the budget, by increasing C


@dataclass(frozen=True, kw_only=True)
class ValleyPlot:
    """Rows of cells from the top, None where empty, and the values at the edges."""

    rows: Sequence[Sequence[PlotCell | None]]
    params: tuple[float, float]  # N at the left and at the right edge
    loss: tuple[float, float]  # at the bottom and at the top


def letter(budget: int) -> str:
    """Return the letter that marks the results of a budget."""
    return LETTERS[budget % len(LETTERS)]


def plot_valleys(fit: ValleyFit, width: int, height: int) -> ValleyPlot | None:
    """Plot results as a letter per budget, the fitted curve as dots, the minimum as a diamond; both axes in log.

    None if there is nothing to draw yet.
    """
    valleys = [valley for valley in fit.valleys if len(valley.loss)]
    if not valleys or width < 2 or height < 2:
        return None
    params = np.concatenate([v.params for v in valleys])
    loss = np.concatenate([v.loss for v in valleys])
    if not (np.isfinite(loss).all() and (loss > 0).all()):
        return None
    x_low, x_high = _range(np.log(params), 0.1)
    y_low, y_high = _range(np.log(loss), MIN_RANGE)
    rows: list[list[PlotCell | None]] = [[None] * width for _ in range(height)]

    def put(n: Floats, values: Floats, glyph: str, budget: int) -> None:
        good = np.isfinite(n) & np.isfinite(values) & (n > 0) & (values > 0)  # of a curve, or a minimum below zero
        n, values = n[good], values[good]
        columns = np.rint((np.log(n) - x_low) / (x_high - x_low) * (width - 1)).astype(int)
        lines = np.rint((y_high - np.log(values)) / (y_high - y_low) * (height - 1)).astype(int)
        for column, line in zip(columns, lines, strict=True):
            if 0 <= column < width and 0 <= line < height:
                rows[line][column] = PlotCell(glyph=glyph, budget=budget)

    for number, valley in enumerate(valleys):  # minima are drawn last, over results and curves
        put(*_curve(valley, 2 * width), CURVE, number)
    for number, valley in enumerate(valleys):
        put(valley.params, valley.loss, letter(number), number)
    for number, valley in enumerate(valleys):
        if valley.status == "interior":
            put(np.array([valley.params_opt]), np.array([valley.loss_opt]), MINIMUM, number)
    edges = (float(np.exp(x_low)), float(np.exp(x_high))), (float(np.exp(y_low)), float(np.exp(y_high)))
    return ValleyPlot(rows=rows, params=edges[0], loss=edges[1])


def _range(values: Floats, min_range: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    missing = max(0.0, min_range - (high - low)) / 2
    return low - missing, high + missing


def _curve(valley: Valley, points: int) -> tuple[Floats, Floats]:
    if valley.over_params is None:
        return np.empty(0), np.empty(0)
    x = np.linspace(*valley.over_params.x_range, points)
    loss = valley.over_params.at(x)
    return np.asarray(10**x), loss


def optimum_text(valley: Valley, intervals: ValleyIntervals | None) -> str:
    """Return N_opt of one budget with its interval, or the reason why there is none."""
    if valley.status != "interior":
        return f"{len(valley.loss)} of 3 results" if valley.status == "too_few" else NO_OPTIMUM[valley.status]
    within = f" {fmt.interval(intervals.params_opt.low, intervals.params_opt.high)}" if intervals else ""
    return f"N_opt {fmt.count(valley.params_opt)}{within}"


def law_text(fit: ValleyFit) -> str:
    """Return the law of N_opt over C with the interval of its exponent, or the reason why there is none."""
    law = fit.method.params_opt
    if law is None:
        found = sum(valley.status == "interior" for valley in fit.valleys)
        return f"no law yet: {found} of {len(fit.valleys)} budgets have an optimum; 2 are needed"
    interval = law.exponent_interval(fit.options.confidence)
    within = f" [{interval.low:.2f}, {interval.high:.2f}]" if interval else ""
    return f"N_opt ~ C^{law.exponent:.3f}{within}"
