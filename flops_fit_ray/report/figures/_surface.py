"""Figures of the loss surface: contours over N and D with the runs, and residuals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from flops_fit_ray.analysis import SweepFit
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.formatting import count
from flops_fit_ray.report.figures._style import INK, Drawing, colours, style_axes, too_many

GRID = 61
LEVELS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Contours:
    """Surface on a grid around the runs, and the line of its optima."""

    params: Floats  # (GRID,)
    tokens: Floats  # (GRID,)
    loss: Floats  # (tokens, params)
    run_params: Floats
    run_tokens: Floats
    opt_params: Floats
    opt_tokens: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Residuals:
    """Relative residual of every run, in percent of the fitted loss, with N, D and the fitted loss."""

    params: Floats
    tokens: Floats
    fitted: Floats
    percent: Floats


def contours(fit: SweepFit) -> Contours | None:
    """Return the surface on a grid; None without a surface."""
    method = fit.surface
    surface = method.surface
    if surface is None or not surface.usable or surface.surface is None:
        return None
    points = fit.points_of(fit.surface.name)
    n = np.geomspace(points.params.min() / 1.5, points.params.max() * 1.5, GRID)
    d = np.geomspace(points.tokens.min() / 1.5, points.tokens.max() * 1.5, GRID)
    assert method.params_opt is not None and method.tokens_opt is not None
    budget = np.geomspace(points.flops.min() / 2, points.flops.max() * 2, GRID)
    opt_n = np.array([method.params_opt.at(c) for c in budget])
    opt_d = np.array([method.tokens_opt.at(c) for c in budget])
    inside = (opt_n > n[0]) & (opt_n < n[-1]) & (opt_d > d[0]) & (opt_d < d[-1])
    return Contours(
        params=n,
        tokens=d,
        loss=surface.surface.loss(n[None, :], d[:, None]),
        run_params=points.params,
        run_tokens=points.tokens,
        opt_params=opt_n[inside],
        opt_tokens=opt_d[inside],
    )


def residuals(fit: SweepFit) -> Residuals | None:
    """Return the residuals of all runs; None without a surface."""
    surface = fit.surface.surface
    if surface is None or not surface.usable or surface.surface is None:
        return None
    points = fit.points_of(fit.surface.name)
    fitted = surface.surface.loss(points.params, points.tokens)
    return Residuals(
        params=points.params, tokens=points.tokens, fitted=fitted, percent=100 * (points.loss / fitted - 1)
    )


def draw_contours(shown: Contours, loss_name: str = "loss") -> Figure:
    """Draw lines of equal loss over N and D; dots are runs, the dashed line is that of the optima."""
    figure = Drawing(figsize=(7.2, 4.3), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")  # before the contours, because their labels cut gaps of the size on the page
    axes.set_yscale("log")
    low, high = shown.loss.min(), shown.loss.max()
    levels = low + (high - low) * np.linspace(0.02, 0.95, LEVELS) ** 2  # closer where the surface is flat
    lines = axes.contour(shown.params, shown.tokens, shown.loss, levels=levels, colors=colours(LEVELS), linewidths=1.2)
    axes.clabel(lines, fontsize=7, fmt="%.3g", colors=INK)
    many = too_many(len(shown.run_params))
    ink = "0.5" if many else INK  # rasterized points cannot take the page's text colour
    axes.plot(shown.run_params, shown.run_tokens, "o", color=ink, markersize=3, alpha=0.7, rasterized=many)
    axes.plot(shown.opt_params, shown.opt_tokens, "--", color=INK, linewidth=1.4, label="optima of the surface")
    axes.set_xlabel("N (parameters)")
    axes.set_ylabel("D (tokens)")
    axes.set_title(f"{loss_name}, fitted", fontsize=10, color=INK)
    if len(shown.opt_params):
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    style_axes(axes)
    return figure


def draw_residuals(shown: Residuals) -> Figure:
    """Draw the residuals over N, D and the fitted loss; a pattern is a curvature that the surface cannot fit."""
    figure = Drawing(figsize=(7.2, 2.8), layout="constrained")
    sides = ((shown.params, "N (parameters)"), (shown.tokens, "D (tokens)"), (shown.fitted, "fitted loss"))
    for i, (axes, (x, label)) in enumerate(zip(figure.subplots(1, 3, sharey=True), sides, strict=True)):
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.plot(x, shown.percent, "o", color=colours(3)[1], markersize=3.5, rasterized=too_many(len(x)))
        axes.set_xscale("log")
        axes.set_xlabel(label)
        if i == 0:
            axes.set_ylabel("observed over fitted (%)")
        ends = [float(f"{v:.3g}") for v in np.geomspace(x.min(), x.max(), 3)]
        axes.set_xticks(ends, [count(v) for v in ends])
        axes.minorticks_off()
        style_axes(axes)
    return figure
