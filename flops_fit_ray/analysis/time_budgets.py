"""The optimal model for a wall-clock budget: the fitted surface with measured seconds as the cost instead of FLOPs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._distance import distance, distances
from flops_fit_ray.analysis._law import Interval, central_interval
from flops_fit_ray.analysis._methods import Method, surface_method
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.diagnostics import extrapolation_warning
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.prediction import Prediction, misfits, run_interval
from flops_fit_ray.analysis.surface import CostLaw, fit_cost_law
from flops_fit_ray.errors import FitError

MIN_TIMED = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class IsoTime:
    """The measured cost law seconds = k · N^c · D, and the laws of N_opt, D_opt and L_opt over seconds."""

    cost: CostLaw
    method: Method
    timed: int  # number of runs with known seconds
    fit: SweepFit

    @property
    def points(self) -> Points:
        """Return all runs."""
        return self.fit.points


@dataclass(frozen=True, kw_only=True, repr=False)
class TimedPrediction(Prediction):
    """N, D and loss that are optimal for a wall-clock budget, with intervals.

    `budget` is the C that they cost, and `extrapolation` that of the time beyond the shortest or longest run.
    """

    seconds: float
    law: str  # of N_opt over seconds, in words

    _of = " in time"

    def _head(self) -> str:
        c = fmt.flops(self.budget)
        return f"{fmt.duration(self.seconds)} on one device as measured, C = {c} FLOPs ({self._percent} intervals)"

    def _more(self) -> list[str]:
        return [f"  {self.law}"]


def isotime(fit: SweepFit) -> IsoTime | None:
    """Derive the laws over seconds; None where fewer than 3 runs were timed or there is no surface."""
    surface, law = fit.surface.surface, time_law(fit.points)
    if law is None or surface is None or not surface.usable:
        return None
    cost, timed = law
    if cost.n_exponent <= 0:
        return None
    return IsoTime(cost=cost, method=surface_method(replace(surface, cost=cost)), timed=timed, fit=fit)


def time_law(points: Points) -> tuple[CostLaw, int] | None:
    """Fit seconds = k · N^c · D; return it with its number of runs, None with fewer than 3 timed runs or one size."""
    if points.seconds is None:
        return None
    timed = np.isfinite(points.seconds) & (points.seconds > 0)
    if timed.sum() < MIN_TIMED or len(np.unique(points.params[timed])) < 2:
        return None
    cost = fit_cost_law(points.params[timed], points.tokens[timed], points.seconds[timed])
    return cost, int(timed.sum())


def predict_for_time(timed: IsoTime, seconds: float, confidence: float) -> TimedPrediction:
    """Predict N, D and loss for a wall-clock budget.

    Raises:
        FitError: the time is not a positive number.
    """
    if not (np.isfinite(seconds) and seconds > 0):
        raise FitError(f"a wall-clock budget must be a positive number of seconds (got {seconds})")
    assert timed.method.laws is not None
    n, d, loss = timed.method.laws
    known = timed.points.seconds
    assert known is not None
    known = known[np.isfinite(known) & (known > 0)]
    low, high = float(known.min()), float(known.max())
    fit, params, tokens = timed.fit, n.at(seconds), d.at(seconds)
    far = distance("time", seconds, low, high), *distances(timed.points, params, tokens)
    surface = fit.surface.surface
    assert surface is not None and surface.cost is not None  # as `isotime` found
    return TimedPrediction(
        seconds=seconds,
        law=f"N_opt(T) = {n.coefficient:.4g} · T^{n.exponent:.4f}, T in seconds; a run takes "
        f"k·N^{timed.cost.n_exponent:.3f}·D seconds within {100 * timed.cost.scatter:.2g} % over {timed.timed} runs",
        budget=surface.cost.flops_per_token(params) * tokens,
        method=timed.method.name,
        params=params,
        tokens=tokens,
        loss=loss.at(seconds),
        params_interval=n.interval(seconds, confidence),
        tokens_interval=d.interval(seconds, confidence),
        loss_interval=loss.interval(seconds, confidence),
        run_interval=run_interval(fit, None if loss.draws is None else loss.draws.at(seconds)),
        extrapolation=far[0].factor,
        params_extrapolation=far[1].factor,
        tokens_extrapolation=far[2].factor,
        confidence=confidence,
        warnings=(*extrapolation_warning(*far), *misfits(fit, timed.method)),
    )


def seconds_of(cost: CostLaw, params: float, tokens: float) -> float:
    """Seconds to train N parameters on D tokens at the measured speed."""
    return float(np.exp(cost.log_k + cost.n_exponent * np.log(params)) * tokens)


def seconds_interval(cost: CostLaw, fit: SweepFit, budget: float) -> Interval | None:
    """Interval of the seconds at the optimum for C = `budget`, over the paired draws of N_opt and D_opt."""
    n, d = fit.params_opt, fit.tokens_opt
    if n is None or d is None or n.draws is None or d.draws is None:
        return None
    # ln seconds = ln k + c·ln N + ln D
    log = cost.log_k + cost.n_exponent * np.log(n.draws.at(budget)) + np.log(d.draws.at(budget))
    return central_interval(np.exp(log), fit.options.confidence)
