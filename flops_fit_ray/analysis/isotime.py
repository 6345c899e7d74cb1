"""The best model for a wall-clock budget, from the same runs: the surface again, with seconds as the cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flops_fit_ray.analysis.law import Interval, interval
from flops_fit_ray.analysis.methods import Method, surface_method
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.surface import CostLaw, fit_cost_law
from flops_fit_ray.analysis.sweep_fit import SweepFit
from flops_fit_ray.errors import FitError

MIN_TIMED = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class IsoTime:
    """seconds = k · N^c · D on one device as measured, and what follows: the laws are over seconds, not FLOPs."""

    cost: CostLaw
    method: Method
    timed: int  # runs whose seconds are known


@dataclass(frozen=True, kw_only=True)
class TimedAnswer:
    """What to train in so many seconds."""

    seconds: float
    params: float
    tokens: float
    loss: float
    params_interval: Interval | None
    tokens_interval: Interval | None


def isotime(fit: SweepFit) -> IsoTime | None:
    """The laws over seconds; None where fewer than 3 runs were timed or no surface could be fitted."""
    surface, found = fit.methods["surface_huber"].surface, time_law(fit.points)
    if found is None or surface is None or not surface.usable:
        return None
    cost, timed = found
    if cost.n_exponent <= 0:
        return None
    return IsoTime(cost=cost, method=surface_method(replace(surface, cost=cost)), timed=timed)


def time_law(points: Points) -> tuple[CostLaw, int] | None:
    """seconds = k · N^c · D and how many runs it rests on; None with fewer than 3 timed runs or one size."""
    if points.seconds is None:
        return None
    timed = np.isfinite(points.seconds) & (points.seconds > 0)
    if timed.sum() < MIN_TIMED or len(np.unique(points.params[timed])) < 2:
        return None
    cost = fit_cost_law(points.params[timed], points.tokens[timed], points.seconds[timed])
    return cost, int(timed.sum())


def answer_in(timed: IsoTime, seconds: float, confidence: float) -> TimedAnswer:
    """N, D and loss for a wall-clock budget.

    Raises:
        FitError: the time is not a positive number.
    """
    if not (np.isfinite(seconds) and seconds > 0):
        raise FitError(f"a wall-clock budget must be a positive number of seconds, and is {seconds}")
    assert timed.method.laws is not None
    n, d, loss = timed.method.laws
    return TimedAnswer(
        seconds=seconds,
        params=n.at(seconds),
        tokens=d.at(seconds),
        loss=loss.at(seconds),
        params_interval=n.interval(seconds, confidence),
        tokens_interval=d.interval(seconds, confidence),
    )


def seconds_of(cost: CostLaw, params: float, tokens: float) -> float:
    """How long N on D would take at the measured speed."""
    return float(np.exp(cost.log_k + cost.n_exponent * np.log(params)) * tokens)


def seconds_interval(cost: CostLaw, fit: SweepFit, budget: float) -> Interval | None:
    """Over the draws of N_opt and D_opt together."""
    n, d = fit.params_opt, fit.tokens_opt
    if n is None or d is None or n.draws is None or d.draws is None:
        return None
    log = cost.log_k + cost.n_exponent * np.log(n.draws.at(budget)) + np.log(d.draws.at(budget))
    return interval(np.exp(log), fit.options.confidence)
