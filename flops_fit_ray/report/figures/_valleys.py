"""Figure of the valleys: loss over N, one curve per budget, its minimum and interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from flops_fit_ray.analysis import SweepFit
from flops_fit_ray.analysis.arrays import Bools, Floats
from flops_fit_ray.analysis.valley import MIN_DISTINCT_SIZES
from flops_fit_ray.formatting import flops
from flops_fit_ray.report.figures._style import INK, MARKERS, Drawing, colours, style_axes, too_many

CURVE_POINTS = 121
MAX_NAMED = 20  # budgets; of more, every so many
MAX_INSIDE = 7  # budgets; the legend of more stands beside the figure


@dataclass(frozen=True, kw_only=True)
class ValleyCurve:
    """Points and fitted curve of one budget, and its minimum if there is one."""

    label: str
    params: Floats
    loss: Floats
    used: Bools  # inside the window that was fitted
    replaced: Sequence[tuple[float, float]]  # N and loss of runs replaced by a rerun
    curve_params: Floats  # empty if no curve could be fitted
    curve_loss: Floats
    minimum: tuple[float, float] | None  # N_opt, L_opt
    interval: tuple[float, float] | None  # of N_opt


def valley_curves(fit: SweepFit, replaced: Sequence[tuple[float, float, float]] = ()) -> list[ValleyCurve]:
    """Return points, curve and minimum of every budget; `replaced`: budget, N and loss of runs replaced by a rerun."""
    curves = []
    for valley, intervals in zip(fit.valleys, fit.intervals, strict=True):
        if not fit.points.labelled and len(valley.loss) < MIN_DISTINCT_SIZES["parabola"]:
            continue  # without budgets, a lone run is no valley
        curve = valley.over_params
        x = np.linspace(*curve.x_range, CURVE_POINTS) if curve else np.empty(0)
        interior = valley.status == "interior"
        curves.append(
            ValleyCurve(
                label=flops(valley.budget),
                params=valley.params,
                loss=valley.loss,
                used=valley.used,
                replaced=[(n, loss) for budget, n, loss in replaced if budget == valley.budget],
                curve_params=10**x,
                curve_loss=curve.at(x) if curve else np.empty(0),
                minimum=(valley.params_opt, valley.loss_opt) if interior else None,
                interval=(intervals.params_opt.low, intervals.params_opt.high) if intervals else None,
            )
        )
    return curves


def draw_valleys(curves: list[ValleyCurve], loss_name: str = "held-out loss") -> Figure:
    """Draw loss over N, one valley per budget; a ring marks each minimum, a bar its interval.

    Hollow points are outside the fitted window; crosses are runs replaced by a rerun.
    """
    figure = Drawing(figsize=(7.2, 4.3), layout="constrained")
    axes = figure.add_subplot()
    many_points = too_many(sum(len(curve.params) for curve in curves))
    for i, (curve, colour) in enumerate(zip(curves, colours(len(curves)), strict=True)):
        named = i % -(-len(curves) // MAX_NAMED) == 0
        label, marker = (f"C = {curve.label}" if named else None), MARKERS[i % len(MARKERS)]
        used = curve.used
        axes.plot(
            curve.params[used],
            curve.loss[used],
            marker,
            color=colour,
            markersize=4.5,
            label=label,
            rasterized=many_points,
        )
        if not used.all():
            rest = (curve.params[~used], curve.loss[~used])
            axes.plot(*rest, marker, markersize=4.5, markerfacecolor="none", markeredgecolor=colour)
        if curve.replaced:
            axes.plot(*zip(*curve.replaced, strict=True), "x", color=colour, markersize=6)
        axes.plot(curve.curve_params, curve.curve_loss, "-", color=colour, linewidth=1.4)
        if curve.minimum is not None:
            n, loss = curve.minimum
            if curve.interval is not None:
                axes.plot(
                    curve.interval, (loss, loss), "-", color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt"
                )
            axes.plot([n], [loss], "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.4)
    if any(len(curve.params) for curve in curves):  # matplotlib warns of a log axis without data
        axes.set_xscale("log")
    axes.set_xlabel("N (parameters)")
    axes.set_ylabel(loss_name)
    if curves:
        many = len(curves) > MAX_INSIDE
        legend = axes.legend(frameon=False, labelcolor=INK, fontsize=7 if many else 8)
        if many:
            legend.set_loc("upper left")
            legend.set_bbox_to_anchor((1, 1))
    style_axes(axes)
    return figure
