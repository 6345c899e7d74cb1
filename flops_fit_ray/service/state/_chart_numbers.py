"""Numbers of the charts on the pages, computed in the process that fits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flops_fit_ray.analysis import Comparison
    from flops_fit_ray.analysis.valley import Curve, Valley
    from flops_fit_ray.ledger import ExperimentResult
    from flops_fit_ray.report.figures import LawBand
    from flops_fit_ray.sweep.directory import Sweep

MAX_VALLEYS = 40  # as in the report
CURVE_POINTS = 61
OPTIMUM = (("params", "params_opt"), ("tokens", "tokens_opt"), ("loss", "loss_opt"))


def answer_numbers(sweep: Sweep) -> dict[str, Any]:
    """Return what a page says of a fit beside its figures: the answer, its laws, and how far to trust it."""
    from flops_fit_ray.analysis import prediction_to_json
    from flops_fit_ray.report.page import best_model
    from flops_fit_ray.sweep.validity import validity_card

    analysis, fit = sweep.analysis, sweep.fit
    confidence = fit.options.confidence
    found = best_model(analysis)
    card = [item.to_json() for item in validity_card(fit, sweep)]
    return {
        "at": None if found is None else found.to_json(),
        "confidence": confidence,
        "method": fit.answer.label if fit.laws else "",
        "law_rows": [
            {"name": name, "formula": law.formula, "exponent": law.exponent, "interval": _pair(law, confidence)}
            for name, law in fit.laws
        ],
        "validity": card,
        "valley_rows": _valley_rows(sweep),
        "predictions": [prediction_to_json(p, confidence) for p in analysis.predictions],
    }


def _pair(law: Any, confidence: float) -> list[float] | None:
    interval = law.exponent_interval(confidence)
    return None if interval is None else [interval.low, interval.high]


def _valley_rows(sweep: Sweep) -> list[dict[str, Any]]:
    fit = sweep.fit
    rows = []
    for valley, intervals in list(zip(fit.valleys, fit.intervals, strict=True))[:MAX_VALLEYS]:
        interior = valley.status == "interior"
        rows.append(
            {
                "budget": valley.budget,
                "runs": len(valley.loss),
                "reason": valley.reason,
                **{short: getattr(valley, name) if interior else None for short, name in OPTIMUM},
                **{
                    f"{short}_interval": _ends(getattr(intervals, name)) if intervals else None
                    for short, name in OPTIMUM
                },
            }
        )
    return rows


def _ends(interval: Any) -> list[float]:
    return [interval.low, interval.high]


def valley_chart(sweep: Sweep) -> bytes:
    """Return every valley: its runs with what is known of them, its curve, its minimum."""
    valleys = [
        {**row, "points": _points(sweep, valley), "curve": _curve(valley.over_params)}
        for row, valley in zip(_valley_rows(sweep), sweep.fit.valleys, strict=False)  # not more than `MAX_VALLEYS`
    ]
    return _encoded({"loss_name": sweep.loss_name, "confidence": sweep.fit.options.confidence, "valleys": valleys})


def _points(sweep: Sweep, valley: Valley) -> list[dict[str, Any]]:
    by_loss = {r.loss: r for r in sweep.results if r.budget == valley.budget and r.axis is None}
    points = []
    for n, d, loss, used in zip(valley.params, valley.tokens, valley.loss, valley.used, strict=True):
        status = "completed" if used else "outside the fitted window"
        points.append(_point(n, d, loss, by_loss.get(float(loss)), status))
    replaced = [r for r in sweep.replaced if r.budget == valley.budget]
    return [*points, *(_point(r.params, r.tokens_seen, r.loss, r, "replaced by a rerun") for r in replaced)]


def _point(params: float, tokens: float, loss: float, run: ExperimentResult | None, status: str) -> dict[str, Any]:
    known = {name: getattr(run, name, None) for name in ("key", "loss_stderr", "role", "seed")}
    return {**known, "params": params, "tokens": tokens, "loss": loss, "status": status}


def _curve(curve: Curve | None) -> dict[str, list[float]]:
    import numpy as np

    if curve is None:
        return {"params": [], "loss": []}
    x = np.linspace(*curve.x_range, CURVE_POINTS)
    return {"params": list(10**x), "loss": list(curve.at(x))}


def law_chart(sweep: Sweep) -> bytes:
    """Return N_opt and D_opt over C: minima, line, band."""
    from flops_fit_ray.report.figures import law_bands

    return _encoded(
        {"confidence": sweep.fit.options.confidence, "laws": [_band(band) for band in law_bands(sweep.fit)]}
    )


def _band(band: LawBand) -> dict[str, Any]:
    return {
        "name": band.name,
        "budget": list(band.budget),
        "value": list(band.value),
        "low": list(band.low),
        "high": list(band.high),
        "line": {"budget": list(band.line_budget), "value": list(band.line)},
        "band": {"low": list(band.band_low), "high": list(band.band_high)},
        "fitted_to": band.fitted_to,
    }


def comparison(first: Sweep, second: Sweep, names: tuple[str, str], budget: str) -> bytes:
    """Return the differences of two sweeps at one C, by default the largest that both reach, and their laws.

    Raises:
        FitError: one of them has no law.
    """
    from flops_fit_ray.analysis import comparison_to_json

    found, bands = _compared(first, second, names, budget)
    titles = ("N_opt (parameters)", "D_opt (tokens)")
    laws = [{"name": title, "sweeps": [_band(of[i]) for of in bands]} for i, title in enumerate(titles)]
    return _encoded({"names": list(names), **comparison_to_json(found), "laws": laws})


def drawn_comparison(first: Sweep, second: Sweep, names: tuple[str, str], budget: str) -> str:
    """Return the laws of both as SVG.

    Raises:
        FitError: one of them has no law.
    """
    from flops_fit_ray.report.figures import draw_comparison, to_svg

    found, bands = _compared(first, second, names, budget)
    return to_svg(draw_comparison(bands, found.speedup))


def _compared(
    first: Sweep, second: Sweep, names: tuple[str, str], budget: str
) -> tuple[Comparison, list[list[LawBand]]]:
    from flops_fit_ray.analysis import compare
    from flops_fit_ray.errors import FitError
    from flops_fit_ray.report.figures import comparison_bands
    from flops_fit_ray.sweep.comparability import comparability

    fits = (first.fit, second.fit)
    for name, fit in zip(names, fits, strict=True):
        if fit.problem:
            raise FitError(f"{name}: there is no law: {fit.problem}")
    at = float(budget) if budget else min(fit.fitted_range[1] for fit in fits)
    found = compare(*fits, at, known=comparability(first, second))
    return found, comparison_bands(fits, names, found)


def _encoded(content: Any) -> bytes:
    from flops_fit_ray.analysis import json_value

    return json.dumps(json_value(content)).encode()
