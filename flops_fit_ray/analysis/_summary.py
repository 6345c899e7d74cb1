"""Results of a fit as JSON, in full precision: the content of `analysis.json` and `fit --json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from types import NoneType
from typing import Any

import numpy as np

from flops_fit_ray.analysis._capped import CappedPrediction
from flops_fit_ray.analysis._comparison import Comparison
from flops_fit_ray.analysis._curved_law import CurvedLaw
from flops_fit_ray.analysis._law import Interval, Law, central_interval
from flops_fit_ray.analysis._limited_data import LimitedPrediction
from flops_fit_ray.analysis._methods import Method
from flops_fit_ray.analysis._metric_laws import MetricPrediction
from flops_fit_ray.analysis._published_answer import PublishedAnswer
from flops_fit_ray.analysis._served import ServedPrediction
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis._valley_minima import ValleyIntervals
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.prediction import Prediction
from flops_fit_ray.analysis.surface import CostLaw, SurfaceFit
from flops_fit_ray.analysis.time_budgets import IsoTime, TimedPrediction
from flops_fit_ray.analysis.valley import Valley
from flops_fit_ray.flags import Flag
from flops_fit_ray.storage.paths import SCHEMA_VERSION

LAWS = (("n_opt", "params_opt"), ("d_opt", "tokens_opt"), ("l_opt", "loss_opt"))


def fit_to_json(fit: SweepFit) -> dict[str, Any]:
    """Return the fit as a JSON object; a missing number is null, with its reason beside it."""
    return _object(
        {
            "schema_version": SCHEMA_VERSION,
            "default_method": fit.default,
            **laws_to_json(fit.answer, fit),
            "methods": {name: _method_to_json(method, fit) for name, method in fit.methods.items()},
            "choices": [asdict(choice) for choice in fit.all_choices],
            "valleys": [_valley_to_json(v, i) for v, i in zip(fit.valleys, fit.intervals, strict=True)],
            "budgets_found_by_nearness": not fit.points.labelled,
            "points": len(fit.points),
            "runs": fit.points.num_runs,
            "problem": fit.problem,
            "noise": _noise_to_json(fit),
            "bootstrap": {
                "draws": fit.options.draws,
                "lost_draws": fit.answer.lost_draws,
                "confidence": fit.options.confidence,
                "seed": fit.options.seed,
            },
            "valley_skew": None if fit.skew is None else fit.skew.to_json(),
            "repetition": None if fit.repetition is None else fit.repetition.to_json(),
            "lack_of_fit": [test.to_json() for test in fit.lack_of_fit],
            "warnings": [flag.to_json() for flag in fit.warnings],
        }
    )


def n_opt_to_json(fit: SweepFit) -> list[dict[str, Any]]:
    """Return N_opt and status of every budget, the last part of `run --json`."""
    return [
        {
            "budget": v.budget,
            "status": v.status,
            "params": v.params_opt if v.status == "interior" else None,
            "interval": interval_to_json(i.params_opt if i else None),
        }
        for v, i in zip(fit.valleys, fit.intervals, strict=True)
    ]


def prediction_to_json(prediction: Prediction, confidence: float) -> dict[str, Any]:
    """Return the prediction at one budget."""
    more: dict[str, Any] = {}
    if prediction.unique is not None:
        more = {"unique_tokens": prediction.unique, "epochs": prediction.epochs}
    if isinstance(prediction, LimitedPrediction):
        data = prediction.more_data
        more["twice_the_data"] = {**asdict(data), "gain_interval": interval_to_json(data.gain_interval)}
    if prediction.budget_interval is not None:
        more["budget_interval"] = interval_to_json(prediction.budget_interval)
    if isinstance(prediction, CappedPrediction):
        more["cap"] = {
            "params_free": prediction.free.params,
            "params_free_interval": interval_to_json(prediction.free.params_interval),
            "loss_added": prediction.loss_added,
            "loss_added_interval": interval_to_json(prediction.loss_added_interval),
        }
    if isinstance(prediction, ServedPrediction):
        more["serving"] = _serving_to_json(prediction)
    return _object(
        {
            "schema_version": SCHEMA_VERSION,
            "budget": prediction.budget,
            "method": prediction.method,
            "params": prediction.params,
            "params_interval": interval_to_json(prediction.params_interval),
            "tokens": prediction.tokens,
            "tokens_interval": interval_to_json(prediction.tokens_interval),
            "loss": prediction.loss,
            "loss_interval": interval_to_json(prediction.loss_interval),
            "loss_interval_of_one_run": interval_to_json(prediction.run_interval),
            "confidence": confidence,
            "extrapolation": prediction.extrapolation,
            "params_extrapolation": prediction.params_extrapolation,
            "tokens_extrapolation": prediction.tokens_extrapolation,
            "warnings": [flag.to_json() for flag in prediction.warnings],
            **more,
        }
    )


def metric_to_json(metric: MetricPrediction) -> dict[str, Any]:
    """Return the prediction of a metric; null where the runs do not tell it."""
    return _object(
        {
            "name": metric.name,
            "kind": metric.kind,
            "bounds": metric.bounds,
            "value": metric.value,
            "interval": interval_to_json(metric.interval),
            "interval_of_one_run": interval_to_json(metric.run_interval),
            "law": metric.formula,
            "runs": metric.runs,
            "rms": metric.rms,
            "loss_below_runs": metric.below,
            "warnings": [flag.to_json() for flag in metric.warnings],
        }
    )


def _serving_to_json(answer: ServedPrediction) -> dict[str, Any]:
    """Return what serving adds to a prediction; costs in FLOPs of training, null where no D reaches the loss."""
    return {
        "tokens": answer.serving.tokens,
        "price": answer.serving.price,
        "cost": answer.serving_cost,
        "total": answer.total,
        "total_interval": interval_to_json(answer.total_interval),
        "ratio_extrapolation": answer.ratio_extrapolation,
        "training_alone": {**asdict(answer.alone), "factor_interval": interval_to_json(answer.alone_interval)},
        "choices": [asdict(choice) for choice in answer.choices],
    }


def published_to_json(answer: PublishedAnswer) -> dict[str, Any]:
    """Return the content of `predict --json` of a published law; what is not published is null."""
    factors = {one.quantity: one.factor for one in answer.distances}
    return _object(
        {
            "schema_version": SCHEMA_VERSION,
            "law": answer.law.to_json(),
            "budget": answer.budget,
            "method": "published",
            "params": answer.params,
            "params_interval": None,
            "tokens": answer.tokens,
            "tokens_interval": None,
            "loss": answer.loss,
            "loss_interval": None,
            "loss_interval_of_one_run": None,
            "confidence": None,
            "extrapolation": factors.get("C"),
            "params_extrapolation": factors.get("N"),
            "tokens_extrapolation": factors.get("D"),
            "warnings": [flag.to_json() for flag in answer.warnings],
        }
    )


def _object(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: json_value(value) for key, value in content.items()}


def comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison of two sweeps at one budget."""
    return _object(
        {
            "schema_version": SCHEMA_VERSION,
            "method": comparison.method,
            "budget": comparison.budget,
            "confidence": comparison.confidence,
            "extrapolation": list(comparison.extrapolation),
            "warnings": [flag.to_json() for flag in comparison.warnings],
            "differences": [
                {
                    "name": d.name,
                    "first": d.a,
                    "second": d.b,
                    "kind": "ratio" if d.neutral == 1 else "difference",
                    "value": d.difference,
                    "interval": interval_to_json(d.interval),
                    "differs": d.differs,
                }
                for d in comparison.differences
            ],
            "speedup": None if comparison.speedup is None else comparison.speedup.to_json(),
        }
    )


def timed_to_json(answer: TimedPrediction, timed: IsoTime) -> dict[str, Any]:
    """Return the prediction for a wall-clock budget."""
    return {
        **prediction_to_json(answer, timed.fit.options.confidence),
        **_object({"seconds": answer.seconds, "timed_runs": timed.timed, "cost": cost_to_json(timed.cost)}),
    }


def cost_to_json(cost: CostLaw) -> dict[str, float]:
    """Return the power law of a cost."""
    return {"log_k": cost.log_k, "n_exponent": cost.n_exponent, "scatter": cost.scatter}


def json_value(value: Any) -> Any:
    """Convert to what JSON can hold: Python numbers, and null for numbers that are not finite."""
    kind = type(value)
    if kind is float:  # the commonest kinds first: asking for a Mapping takes ten times as long
        return value if math.isfinite(value) else None
    if kind in (str, int, bool, NoneType):
        return value
    if isinstance(value, Mapping):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, Flag):
        return value.to_json()
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def interval_to_json(interval: Interval | None) -> list[float] | None:
    """Return an interval as [low, high]."""
    return None if interval is None else [interval.low, interval.high]


def laws_to_json(method: Method, fit: SweepFit) -> dict[str, Any]:
    """Return `n_opt`, `d_opt` and `l_opt` of one method."""
    return {name: _law_to_json(getattr(method, field), method, fit) for name, field in LAWS}


def _law_to_json(law: Law | None, method: Method, fit: SweepFit) -> dict[str, Any]:
    if law is None:
        return {"method": method.name, "exponent": None, "coefficient": None, "exponent_ci95": None,
                "reason": method.reason}  # fmt: skip
    confidence = fit.options.confidence
    return {
        "method": method.name,
        "exponent": law.exponent,
        "coefficient": law.coefficient,
        "log10_coefficient": law.log10_coefficient,
        "offset": law.offset,
        "curved": isinstance(law, CurvedLaw),  # coefficient and exponent are of a power law near it then
        "exponent_ci95": interval_to_json(law.exponent_interval(0.95)),
        "exponent_interval": interval_to_json(law.exponent_interval(confidence)),
        "coefficient_ci95": interval_to_json(law.coefficient_interval(0.95)),
        "exponent_stderr": None if law.draws is None else _spread(law.draws.exponent),
        "exponent_stderr_ols": law.stderr_ols,
    }


def _spread(draws: Floats) -> float | None:
    """Return the standard deviation of the draws that have a value; None where none has."""
    return float(np.nanstd(draws)) if np.isfinite(draws).any() else None


def _method_to_json(method: Method, fit: SweepFit) -> dict[str, Any]:
    content = {
        **laws_to_json(method, fit),
        "status": method.status,
        "reason": method.reason,
        "draws": method.draws,
        "lost_draws": method.lost_draws,
    }
    return content if method.surface is None else {**content, **_surface_to_json(method.surface)}


def _surface_to_json(fit: SurfaceFit) -> dict[str, Any]:
    """Return the surface; E in nats, A and B for N in parameters and D in tokens."""
    names = {"E": "log_e", "A": "log_a", "B": "log_b", "alpha": "alpha", "beta": "beta"}
    if fit.form == "coupled":
        names["k"] = "k"
    content: dict[str, Any] = dict.fromkeys(names) | {"objective": fit.objective}
    ci: dict[str, Any] = {}
    stderr: dict[str, Any] = {}
    for name, field in names.items():
        if fit.surface is None:
            continue
        log = field.startswith("log_")
        value = float(getattr(fit.surface, field)[0])
        content[name] = math.exp(value) if log else value
        if fit.draws is not None:
            draws = getattr(fit.draws, field)
            draws = np.exp(draws) if log else draws
            ci[name] = interval_to_json(central_interval(draws, 0.95))
            stderr[name] = float(np.nanstd(draws))
    content |= {"ci95": ci or None, "stderr": stderr or None, "resampled": fit.resampled or None}
    if fit.starts is not None:
        s = fit.starts
        content["starts"] = {
            "total": s.total,
            "arrived": s.arrived,
            "exponent_range": [s.exponent_low, s.exponent_high],
        }
    if fit.cost is not None:
        c = fit.cost
        content["cost"] = {"k": math.exp(c.log_k), "n_exponent": c.n_exponent, "scatter": c.scatter,
                           "curved": c.curve is not None}  # fmt: skip
    return content


def _noise_to_json(fit: SweepFit) -> dict[str, Any]:
    noise, seeds = fit.noise, fit.seeds
    return {
        "standard_deviation": None if noise is None else noise.pooled,
        "degrees_of_freedom": 0 if noise is None else noise.pooled_df,
        "by_budget": None if noise is None else [float(s) for s in noise.sigma],
        "shared_within_runs": None if noise is None else noise.shared,
        "seeds": None if seeds is None else {"standard_deviation": seeds.sigma, "degrees_of_freedom": seeds.df},
    }


def _valley_to_json(valley: Valley, intervals: ValleyIntervals | None) -> dict[str, Any]:
    interior = valley.status == "interior"
    return {
        "budget": valley.budget,
        "flops": valley.flops,
        "experiments": len(valley.loss),
        "used": int(valley.used.sum()),
        "curve": valley.curve,
        "status": valley.status,
        "reason": valley.reason,
        "params_opt": valley.params_opt if interior else None,
        "params_opt_interval": interval_to_json(intervals.params_opt if intervals else None),
        "tokens_opt": valley.tokens_opt if interior else None,
        "tokens_opt_interval": interval_to_json(intervals.tokens_opt if intervals else None),
        "loss_opt": valley.loss_opt if interior else None,
        "loss_opt_interval": interval_to_json(intervals.loss_opt if intervals else None),
    }
