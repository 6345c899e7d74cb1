"""Figure of the power laws: N_opt and D_opt over C with their bands, of one sweep or of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flops_fit_ray.analysis import Comparison, Law, PublishedLaw, Speedup, SweepFit
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.report.figures._style import INK, MARKERS, Drawing, colours, readable_ticks, style_axes

BAND_POINTS = 61


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
    fitted_to: float  # C from which on the line is extrapolation; NaN without a law


def law_bands(fit: SweepFit) -> list[LawBand]:
    """Return N_opt and D_opt over C with their bands."""
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
    name: str,
    fit: SweepFit,
    law: Law | None,
    budget: Floats,
    value: Floats,
    bounds: list[tuple[float, float]],
    span: tuple[float, float] | None = None,
) -> LawBand:
    empty = np.empty(0)
    if law is not None and span is None:
        low, high = fit.fitted_range
        span = (low / 2, high * 10)
    line_budget = np.geomspace(*span, BAND_POINTS) if law is not None and span is not None else empty
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
        fitted_to=fit.fitted_range[1] if law is not None else float("nan"),
    )


def draw_laws(bands: list[LawBand]) -> Figure:
    """Draw N_opt(C) and D_opt(C) on log axes with their bands, up to ten times beyond the data."""
    figure = Drawing(figsize=(7.2, 3.4), layout="constrained")
    for axes, band in zip(figure.subplots(1, len(bands)), bands, strict=True):
        colour = colours(3)[1]
        if len(band.band_low):
            axes.fill_between(band.line_budget, band.band_low, band.band_high, color=colour, alpha=0.2, linewidth=0)
        if len(band.line):
            axes.plot(band.line_budget, band.line, "-", color=colour, linewidth=1.4)
            axes.axvspan(band.fitted_to, band.line_budget.max(), color=INK, alpha=0.05, linewidth=0)
        known = ~np.isnan(band.low)
        axes.vlines(band.budget[known], band.low[known], band.high[known], color=INK, linewidth=1.2)
        axes.plot(band.budget, band.value, "o", color=INK, markersize=5)
        if len(band.budget) or len(band.line):
            axes.set_xscale("log")
            axes.set_yscale("log")
            readable_ticks(axes)
        axes.set_xlabel("C (FLOPs)")
        axes.set_title(band.name, fontsize=10, color=INK)
        style_axes(axes)
    return figure


def comparison_bands(
    of: Sequence[SweepFit | PublishedLaw], names: Sequence[str], comparison: Comparison
) -> list[list[LawBand]]:
    """Return N_opt and D_opt of both by the compared method, over the range of all fits and the compared C."""
    spans = [one.fitted_range if isinstance(one, SweepFit) else one.budgets for one in of]
    fitted = [span for one, span in zip(of, spans, strict=True) if span is not None and isinstance(one, SweepFit)]
    known = fitted or [span for span in spans if span is not None]  # a law's own range may be far from a sweep's
    low = min([comparison.budget / 10, *(span[0] for span in known)])
    high = max([comparison.budget, *(span[1] for span in known)])
    return [_both_bands(one, name, comparison, (low, high)) for one, name in zip(of, names, strict=True)]


def _both_bands(
    of: SweepFit | PublishedLaw, name: str, comparison: Comparison, span: tuple[float, float]
) -> list[LawBand]:
    if isinstance(of, PublishedLaw):
        return [_line(name, law, span) for law in of.laws[:2] if law is not None]
    assert comparison.method != "published"
    method = of.methods[comparison.method]
    optima = [v for v, _ in of.optima] if comparison.method == "valley" else []
    budget = np.array([v.flops for v in optima])
    params, tokens = (np.array([getattr(v, value) for v in optima]) for value in ("params_opt", "tokens_opt"))
    none = [(np.nan, np.nan)] * len(budget)
    return [
        _band(name, of, method.params_opt, budget, params, none, span),
        _band(name, of, method.tokens_opt, budget, tokens, none, span),
    ]


def _line(name: str, law: Law, span: tuple[float, float]) -> LawBand:
    """Return a law without runs and without a band."""
    empty, line_budget = np.empty(0), np.geomspace(*span, BAND_POINTS)
    return LawBand(name=name, budget=empty, value=empty, low=empty, high=empty, line_budget=line_budget,
                   line=np.array([law.at(c) for c in line_budget]), band_low=empty, band_high=empty,
                   fitted_to=float("nan"))  # fmt: skip


def draw_comparison(bands: list[list[LawBand]], speedup: Speedup | None = None) -> Figure:
    """Draw the laws of both sweeps in the same axes, and the speedup of the second over C beside them."""
    titles = ("N_opt (parameters)", "D_opt (tokens)")
    panels = len(titles) + (speedup is not None)
    figure = Drawing(figsize=(3.6 * panels, 3.6), layout="constrained")
    every = figure.subplots(1, panels)
    if speedup is not None:
        _draw_speedup(every[-1], speedup)
    for column, (axes, title) in enumerate(zip(every, titles, strict=False)):
        for i, (sweep, colour) in enumerate(zip(bands, colours(len(bands)), strict=True)):
            band = sweep[column]
            if len(band.band_low):
                axes.fill_between(
                    band.line_budget, band.band_low, band.band_high, color=colour, alpha=0.25, linewidth=0
                )
            axes.plot(band.line_budget, band.line, ("-", "--")[i % 2], color=colour, linewidth=1.4, label=band.name)
            axes.plot(band.budget, band.value, MARKERS[i], color=colour, markersize=5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        readable_ticks(axes)
        axes.set_xlabel("C (FLOPs)")
        axes.set_title(title, fontsize=10, color=INK)
        style_axes(axes)
        if column == 0:
            axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure


def _draw_speedup(axes: Axes, speedup: Speedup) -> None:
    """Draw s(C) with its band, infinite factors left out, and the compared C."""
    shown = [one for one in speedup.curve if np.isfinite(one.factor)]
    axes.set_xlim(speedup.curve[0].budget / 1.5, speedup.curve[-1].budget * 1.5)
    if not shown:
        axes.text(0.5, 0.5, "infinite: incomparable", transform=axes.transAxes, ha="center", color=INK)
    budget = np.array([one.budget for one in shown])
    colour = colours(3)[1]
    if shown and all(one.interval is not None for one in shown):
        low, high = (np.array([getattr(one.interval, end) for one in shown]) for end in ("low", "high"))
        top = max(2.0, 3 * float(max(one.factor for one in shown)))
        axes.fill_between(budget, low, np.minimum(high, top), color=colour, alpha=0.2, linewidth=0)
    axes.plot(budget, [one.factor for one in shown], "-", color=colour, linewidth=1.4)
    if np.isfinite(speedup.at.factor):
        axes.plot([speedup.at.budget], [speedup.at.factor], "o", color=INK, markersize=5)
    axes.axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("C (FLOPs)")
    axes.set_title("speedup of the second", fontsize=10, color=INK)
    style_axes(axes)
