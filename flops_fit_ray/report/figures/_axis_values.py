"""A second axis: the difference of each value's loss at its best N, per budget."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import AxisFit, shown_value
from flops_fit_ray.report.figures._style import INK, MARKERS, Drawing, colours, style_axes

APART = 0.08  # of the distance of two kinds, between budgets
BESIDE = 0.02  # the same of numbers, of their range


def draw_axis(axis: AxisFit) -> Figure:
    """Draw the differences with their intervals, a line for each budget."""
    figure = Drawing(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.subplots()
    known = sorted({one.value for b in axis.budgets for one in b.values}, key=lambda x: (isinstance(x, str), x))
    axes.axhline(0, color=INK, linewidth=0.6)
    for i, (budget, colour) in enumerate(zip(axis.budgets, colours(len(axis.budgets)), strict=True)):
        y = np.array([one.difference for one in budget.values])
        bounds = [one.interval for one in budget.values]
        low = np.array([v if b is None else b.low for v, b in zip(y, bounds, strict=True)])
        high = np.array([v if b is None else b.high for v, b in zip(y, bounds, strict=True)])
        aside = i - (len(axis.budgets) - 1) / 2
        if axis.scale == "kinds":
            x = np.array([known.index(one.value) + APART * aside for one in budget.values])
        else:
            x = np.array([float(one.value) for one in budget.values])
            x = x * np.exp(BESIDE * aside) if axis.scale == "log" else x + BESIDE * aside * np.ptp(x)
        errors = [np.maximum(y - low, 0), np.maximum(high - y, 0)]
        axes.errorbar(x, y, errors, fmt=MARKERS[i % len(MARKERS)], color=colour, markersize=5, linewidth=1.2,
                      capsize=2, label=f"C = {fmt.flops(budget.budget)}",
                      linestyle="none" if axis.scale == "kinds" else "-")  # fmt: skip
    if axis.scale == "kinds":
        axes.set_xticks(range(len(known)), [shown_value(value) for value in known])
    elif axis.scale == "log":
        axes.set_xscale("log")
        axes.set_xticks([float(value) for value in known], [shown_value(value) for value in known])
        axes.minorticks_off()
    axes.set_xlabel(axis.name)
    percent = f"{100 * axis.confidence:g} %"
    axes.set_title(f"loss at equal C, against {shown_value(axis.reference)} (nats, {percent})", fontsize=10, color=INK)
    style_axes(axes)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure
