"""First the numbers of a figure, then the drawing. No pyplot, no files, no fitting."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flops_fit_ray.analysis import Law, SweepFit
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.text import flops

INK = "#010203"  # replaced by the page's own text colour where a figure stands in a page
CURVE_POINTS = 121
BAND_POINTS = 61


@dataclass(frozen=True, kw_only=True)
class ValleyCurve:
    """One budget's points, its parabola, and the minimum where there is one."""

    label: str
    params: Floats
    loss: Floats
    curve_params: Floats  # empty where no parabola could be fitted
    curve_loss: Floats
    minimum: tuple[float, float] | None  # N_opt, L_opt
    interval: tuple[float, float] | None  # of N_opt


@dataclass(frozen=True, kw_only=True)
class LawBand:
    """N_opt or D_opt over C: the minima, the line through them, and its band."""

    name: str
    budget: Floats
    value: Floats
    low: Floats  # NaN where a minimum has no interval
    high: Floats
    line_budget: Floats  # empty without a law
    line: Floats
    band_low: Floats  # empty without intervals
    band_high: Floats


def valley_curves(fit: SweepFit) -> list[ValleyCurve]:
    """What the valleys figure shows."""
    curves = []
    for valley, intervals in zip(fit.valleys, fit.intervals, strict=True):
        parabola = valley.over_params
        x = np.linspace(*parabola.x_range, CURVE_POINTS) if parabola else np.empty(0)
        interior = valley.status == "interior"
        curves.append(
            ValleyCurve(
                label=flops(valley.budget),
                params=valley.params,
                loss=valley.loss,
                curve_params=10**x,
                curve_loss=parabola.at(x) if parabola else np.empty(0),
                minimum=(valley.params_opt, valley.loss_opt) if interior else None,
                interval=(intervals.params_opt.low, intervals.params_opt.high) if intervals else None,
            )
        )
    return curves


def law_bands(fit: SweepFit) -> list[LawBand]:
    """What the laws figure shows: N_opt and D_opt."""
    used = fit.optima
    budget = np.array([v.flops for v, _ in used])
    nan = (np.nan, np.nan)
    params = [(i.params_opt.low, i.params_opt.high) if i else nan for _, i in used]
    tokens = [(i.tokens_opt.low, i.tokens_opt.high) if i else nan for _, i in used]
    return [
        _band("N_opt (parameters)", fit, fit.params_opt, budget, np.array([v.params_opt for v, _ in used]), params),
        _band("D_opt (tokens)", fit, fit.tokens_opt, budget, np.array([v.tokens_opt for v, _ in used]), tokens),
    ]


def _band(
    name: str, fit: SweepFit, law: Law | None, budget: Floats, value: Floats, bounds: list[tuple[float, float]]
) -> LawBand:
    empty = np.empty(0)
    line_budget = np.geomspace(budget.min() / 2, budget.max() * 10, BAND_POINTS) if law else empty
    band_low = band_high = empty
    band = [law.interval(c, fit.options.confidence) for c in line_budget] if law else []
    if known := [interval for interval in band if interval is not None]:  # the draws decide it: all or none
        band_low, band_high = np.array([i.low for i in known]), np.array([i.high for i in known])
    ends = np.array(bounds).reshape(-1, 2)
    return LawBand(
        name=name,
        budget=budget,
        value=value,
        low=ends[:, 0],
        high=ends[:, 1],
        line_budget=line_budget,
        line=np.array([law.at(c) for c in line_budget]) if law else empty,
        band_low=band_low,
        band_high=band_high,
    )


def draw_valleys(curves: list[ValleyCurve], loss_name: str = "held-out loss") -> Figure:
    """Loss over N, one valley per budget; a ring marks each minimum, the bar its interval."""
    figure = Figure(figsize=(7.2, 4.3), layout="constrained")
    axes = figure.add_subplot()
    for curve, colour in zip(curves, _colours(len(curves)), strict=True):
        axes.plot(curve.params, curve.loss, "o", color=colour, markersize=4.5)
        axes.plot(curve.curve_params, curve.curve_loss, "-", color=colour, linewidth=1.4, label=f"C = {curve.label}")
        if curve.minimum is not None:
            n, loss = curve.minimum
            if curve.interval is not None:
                axes.plot(
                    curve.interval, (loss, loss), "-", color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt"
                )
            axes.plot([n], [loss], "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.4)
    if any(len(curve.params) for curve in curves):  # an axis without data has no logarithm
        axes.set_xscale("log")
    axes.set_xlabel("N (parameters)")
    axes.set_ylabel(loss_name)
    if curves:
        axes.legend(frameon=False, labelcolor=INK)
    _plain(axes)
    return figure


def draw_laws(bands: list[LawBand]) -> Figure:
    """N_opt(C) and D_opt(C) on log axes with their bands, ten times beyond the data."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    for axes, band in zip(figure.subplots(1, len(bands)), bands, strict=True):
        colour = _colours(3)[1]
        if len(band.band_low):
            axes.fill_between(band.line_budget, band.band_low, band.band_high, color=colour, alpha=0.2, linewidth=0)
        if len(band.line):
            axes.plot(band.line_budget, band.line, "-", color=colour, linewidth=1.4)
            axes.axvspan(band.budget.max(), band.line_budget.max(), color=INK, alpha=0.05, linewidth=0)
        known = ~np.isnan(band.low)
        axes.vlines(band.budget[known], band.low[known], band.high[known], color=INK, linewidth=1.2)
        axes.plot(band.budget, band.value, "o", color=INK, markersize=5)
        if len(band.budget):
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlabel("C (FLOPs)")
        axes.set_title(band.name, fontsize=10, color=INK)
        _plain(axes)
    return figure


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


def for_page(svg: str) -> str:
    """The `<svg>` element alone, in the page's own text colour."""
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def _colours(number: int) -> list[tuple[float, float, float, float]]:
    """Along one colour map, so that a larger budget is a lighter line; readable on both grounds."""
    return [tuple(colormaps["viridis"](x)) for x in np.linspace(0.25, 0.8, max(number, 1))][:number]


def _plain(axes: Axes) -> None:
    axes.tick_params(which="both", colors=INK, labelsize=8)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    axes.grid(True, which="major", color=INK, alpha=0.12, linewidth=0.6)
