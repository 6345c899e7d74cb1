"""Prediction for C FLOPs where N may not be larger than a cap: a model that has to fit a memory, or a latency."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._distance import distance, distances, ratio_distance
from flops_fit_ray.analysis._law import Interval
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.diagnostics import extrapolation_warning, ratio_warning
from flops_fit_ray.analysis.prediction import Prediction, losses_added, misfits, predict, widened, with_interval
from flops_fit_ray.errors import FitError


@dataclass(frozen=True, kw_only=True, repr=False)
class CappedPrediction(Prediction):
    """N at its cap, the D that C pays for, and their loss; `free` is the optimum without the cap."""

    free: Prediction
    loss_added: float  # nats, by the cap
    loss_added_interval: Interval | None

    def _more(self) -> list[str]:
        added = f"{self.loss_added:.4f}"
        if (within := self.loss_added_interval) is not None:
            added += f" [{within.low:.4f}, {within.high:.4f}]"
        best = with_interval(self.free.params, self.free.params_interval)
        return [f"  N is as large as it may be; {best} would be best, and L lower by {added}"]


def predict_capped(fit: SweepFit, budget: float, cap: float) -> Prediction:
    """Predict N up to `cap`, D and loss at C = `budget` FLOPs: the optimum, or N at its cap where that is less.

    L at the cap is that of the optimum and what the surface adds, with both errors (`losses_added`).

    Raises:
        FitError: there is no law, no surface to tell the loss off the optimum, or a number is out of range.
    """
    if not (math.isfinite(cap) and cap >= 1):
        raise FitError(f"the largest N must be a positive number of parameters, 1 at least (got {cap:g})")
    free = predict(fit, budget)
    if free.params <= cap:
        return free
    found, told = fit.surface.surface, losses_added(fit, budget, np.array([cap]))
    if told is None or found is None or found.cost is None:
        raise FitError(
            f"N_opt = {fmt.count(free.params)} is larger than {fmt.count(cap)}, and only a surface tells what less "
            f"costs: {fit.surface.reason or 'there is none'}"
        )
    ((added, within),) = told
    tokens = budget / found.cost.flops_per_token(cap)
    points = fit.points_of(fit.surface.name)
    ratio = ratio_distance(points, tokens / cap)
    far = distance("C", budget, *fit.range_of(free.method)), *distances(points, cap, tokens), ratio

    def of(level: Interval | None) -> Interval | None:
        return None if level is None else widened(level, free.loss, added, within)

    return CappedPrediction(
        budget=budget,
        method=free.method,
        params=cap,
        tokens=tokens,
        loss=free.loss + added,
        params_interval=None,
        tokens_interval=None,
        loss_interval=of(free.loss_interval),
        run_interval=of(free.run_interval),
        extrapolation=far[0].factor,
        params_extrapolation=far[1].factor,
        tokens_extrapolation=far[2].factor,
        confidence=free.confidence,
        warnings=(*extrapolation_warning(*far), *ratio_warning(ratio), *misfits(fit, fit.surface)),
        free=free,
        loss_added=added,
        loss_added_interval=None if free.loss_interval is None else within,
    )
