"""One object with all results of a fit: predictions, sensitivity, hold-outs, wall-clock laws and warnings."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from flops_fit_ray.analysis._extrapolation import HoldOut, LossHoldOut, hold_outs, loss_hold_out
from flops_fit_ray.analysis._metric_laws import MetricKind, MetricOptions, MetricPrediction, predict_metric
from flops_fit_ray.analysis._published_answer import PublishedDistance, published_distance
from flops_fit_ray.analysis._rate_part import RatePart, rate_part
from flops_fit_ray.analysis._sensitivity import Sensitivity, SensitivityRow, method_agreement, sensitivity, valley_bias
from flops_fit_ray.analysis._served import ServedPrediction, if_served
from flops_fit_ray.analysis._summary import (
    cost_to_json,
    fit_to_json,
    interval_to_json,
    json_value,
    laws_to_json,
    prediction_to_json,
)
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.prediction import Prediction, check_budget, predict
from flops_fit_ray.analysis.time_budgets import IsoTime, isotime
from flops_fit_ray.errors import FitError
from flops_fit_ray.flags import Flag

TARGET = 10.0  # times the largest fitted C: the target where none is named


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """A fit with its predictions and checks at C = `target`; only the fit where there is no law."""

    fit: SweepFit
    target: float | None
    predictions: tuple[Prediction, ...]  # at the requested budgets
    sensitivity: Sensitivity | None
    agreement: Flag | None  # of N_opt by valleys and by the surface
    bias: Flag | None  # of the valleys' curves, against the surface
    rate_part: RatePart | None  # of the interval of N_opt; None where learning rates were not probed
    hold_outs: tuple[HoldOut, ...]
    loss_hold_out: LossHoldOut | None
    isotime: IsoTime | None
    published: PublishedDistance | None  # from the law of Chinchilla's runs, at the largest fitted C

    @property
    def top_hold_outs(self) -> list[HoldOut]:
        """Predictions of each budget, from the third on, by the law through all budgets below it."""
        seen: dict[float, HoldOut] = {}
        for one in self.hold_outs:
            if one.budget not in seen or one.fitted > seen[one.budget].fitted:
                seen[one.budget] = one
        return list(seen.values())

    @property
    def doubts(self) -> list[Flag]:
        """Doubts about N_opt at the target: methods that disagree, curves that are biased, rates that were probed."""
        rates = None if self.rate_part is None else self.rate_part.flag
        return [flag for flag in (self.agreement, self.bias, rates) if flag is not None]

    @cached_property
    def served(self) -> tuple[ServedPrediction, ...]:
        """Predictions as good as C = `target` where 1, 10 and 100 times its D are served; empty without a surface."""
        return () if self.target is None else if_served(self.fit, self.target)

    @cached_property
    def metrics(self) -> tuple[MetricPrediction, ...]:
        """Every metric of the runs at the first prediction, as far as they tell its law."""
        found = []
        for name in self.fit.points.metrics if self.predictions else ():
            with contextlib.suppress(FitError):  # too few runs have it, or it needs to be told its bounds
                found.append(predict_metric(self.fit, self.predictions[0], name))
        return tuple(found)

    def predict_metric(
        self,
        name: str,
        budget: float,
        *,
        kind: MetricKind | None = None,
        bounds: tuple[float, float] | None = None,
        chance: float | None = None,
    ) -> MetricPrediction:
        """Predict another metric at the optimum of C = `budget` FLOPs, in two steps: C to loss, and loss to metric.

        Args:
            name: of a metric that the runs have.
            kind: "share" (accuracy, rate of errors), "loss" or "perplexity"; None: a share where all values lie within
                its bounds, and a perplexity by its name.
            bounds: of a share, by default 0 and 1.
            chance: value of a share by guessing; None: it is fitted.

        Raises:
            FitError: there is no law, or too few runs have that metric.
        """
        options = MetricOptions(kind=kind, bounds=bounds, chance=chance)
        return predict_metric(self.fit, predict(self.fit, budget), name, options)

    @property
    def warnings(self) -> tuple[Flag, ...]:
        """Warnings of the fit, of the agreement of the methods, and of the predictions, each once."""
        flags = [*self.fit.warnings, *self.doubts]
        if self.target is not None and self.fit.surface_choice is not None:
            flags.append(self.fit.surface_choice.flag)
        flags += [flag for prediction in self.predictions for flag in prediction.warnings]
        return tuple(dict.fromkeys(flags))


def analyse(fit: SweepFit, at: Sequence[float] = ()) -> Analysis:
    """Analyse a fit at the budgets `at`; the first, by default 10 times the largest C, is the target of its checks.

    Raises:
        FitError: a budget is not a positive number.
    """
    target = None
    if fit.params_opt is not None:
        target = at[0] if at else TARGET * fit.fitted_range[1]
    for c in at:
        check_budget(c)
    predictions = () if target is None else tuple(predict(fit, c) for c in (at or [target]))
    return Analysis(
        fit=fit,
        target=target,
        predictions=predictions,
        sensitivity=None if target is None else sensitivity(fit, target),
        agreement=None if target is None else method_agreement(fit, target),
        bias=None if target is None else valley_bias(fit, target),
        rate_part=None if target is None else rate_part(fit, target),
        hold_outs=tuple(hold_outs(fit)),
        loss_hold_out=loss_hold_out(fit),
        isotime=isotime(fit),
        published=published_distance(fit),
    )


def analysis_to_json(analysis: Analysis) -> dict[str, Any]:
    """Return the content of `analysis.json` and of `fit --json`."""
    fit, timed = analysis.fit, analysis.isotime
    predictions = [prediction_to_json(p, fit.options.confidence) for p in analysis.predictions]
    content = {
        **fit_to_json(fit),
        "predictions": predictions,
        "sensitivity": None if analysis.sensitivity is None else _sensitivity_to_json(analysis.sensitivity),
        "verdict": None if analysis.agreement is None else analysis.agreement.to_json(),
        "learning_rates": None if analysis.rate_part is None else analysis.rate_part.to_json(),
        "hold_out": {
            "budgets": [_hold_out_to_json(one) for one in analysis.hold_outs],
            "losses": None if analysis.loss_hold_out is None else asdict(analysis.loss_hold_out),
        },
        "isotime": None
        if timed is None
        else {"timed_runs": timed.timed, "cost": cost_to_json(timed.cost), **laws_to_json(timed.method, fit)},
        "published": None if analysis.published is None else analysis.published.to_json(),
        "warnings": [flag.to_json() for flag in analysis.warnings],
    }
    return {key: json_value(value) for key, value in content.items()}


def _sensitivity_to_json(panel: Sensitivity) -> dict[str, Any]:
    low, high = panel.bounds
    return {
        "budget": panel.budget,
        "sentence": panel.sentence,
        "params_low": low,
        "params_high": high,
        "levers": [{"lever": lever, "factor": factor} for lever, factor in panel.levers],
        "rows": [_row_to_json(row, panel.rows[0]) for row in panel.rows],
    }


def _row_to_json(row: SensitivityRow, base: SensitivityRow) -> dict[str, Any]:
    known = row.params is not None and base.params is not None
    return {**asdict(row), "ratio": row.params / base.params if known and row.params and base.params else None}


def _hold_out_to_json(one: HoldOut) -> dict[str, Any]:
    return {
        "fitted_budgets": one.fitted,
        "budget": one.budget,
        "extrapolation": one.extrapolation,
        "params_predicted": one.predicted,
        "params_observed": one.observed,
        "factor": one.factor,
        "params_interval": interval_to_json(one.interval),
        "inside": one.inside,
    }
