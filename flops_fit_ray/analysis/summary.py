"""A fit as plain values: what `analysis.json` and `fit --json` hold. Documented in the README, versioned."""

from __future__ import annotations

from typing import Any

from flops_fit_ray.analysis.sweep import Interval, Law, Prediction, SweepFit, ValleyIntervals
from flops_fit_ray.analysis.valley import Valley
from flops_fit_ray.layout import SCHEMA_VERSION


def fit_to_json(fit: SweepFit) -> dict[str, Any]:
    """The fit; null where there is no number, with the reason beside it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "valleys": [_valley(v, i) for v, i in zip(fit.valleys, fit.intervals, strict=True)],
        "laws": {
            "params_opt": _law(fit.params_opt),
            "tokens_opt": _law(fit.tokens_opt),
            "loss_opt": _law(fit.loss_opt),
        },
        "problem": fit.problem,
        "warnings": list(fit.warnings),
        "noise": {"standard_deviation": fit.noise, "degrees_of_freedom": fit.noise_df},
        "bootstrap": {
            "draws": fit.options.draws,
            "lost_draws": fit.lost_draws,
            "confidence": fit.options.confidence,
            "seed": fit.options.seed,
        },
    }


def n_opt_to_json(fit: SweepFit) -> list[dict[str, Any]]:
    """N_opt of every budget, or its verdict: what `run --json` ends with."""
    return [
        {
            "budget": v.budget,
            "status": v.status,
            "params": v.params_opt if v.status == "interior" else None,
            "interval": _pair(i.params_opt if i else None),
        }
        for v, i in zip(fit.valleys, fit.intervals, strict=True)
    ]


def prediction_to_json(prediction: Prediction, confidence: float) -> dict[str, Any]:
    """The answer at one budget."""
    return {
        "schema_version": SCHEMA_VERSION,
        "budget": prediction.budget,
        "params": prediction.params,
        "params_interval": _pair(prediction.params_interval),
        "tokens": prediction.tokens,
        "tokens_interval": _pair(prediction.tokens_interval),
        "loss": prediction.loss,
        "loss_interval": _pair(prediction.loss_interval),
        "confidence": confidence,
        "extrapolation": prediction.extrapolation,
        "warnings": list(prediction.warnings),
    }


def _valley(valley: Valley, intervals: ValleyIntervals | None) -> dict[str, Any]:
    interior = valley.status == "interior"
    return {
        "budget": valley.budget,
        "flops": valley.flops,
        "experiments": len(valley.loss),
        "status": valley.status,
        "reason": valley.reason,
        "params_opt": valley.params_opt if interior else None,
        "params_opt_interval": _pair(intervals.params_opt if intervals else None),
        "tokens_opt": valley.tokens_opt if interior else None,
        "tokens_opt_interval": _pair(intervals.tokens_opt if intervals else None),
        "loss_opt": valley.loss_opt if interior else None,
        "loss_opt_interval": _pair(intervals.loss_opt if intervals else None),
    }


def _law(law: Law | None) -> dict[str, Any] | None:
    if law is None:
        return None
    return {
        "exponent": law.law.exponent,
        "exponent_interval": _pair(law.exponent_interval),
        "log10_coefficient": law.law.log10_coefficient,
    }


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
