"""Hold-out tests of extrapolation: fit the lower budgets, predict the upper ones, compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis._law import Interval, Law, central_interval
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis._valley_minima import LawSource, interior, minima_law

MIN_FITTED = 2


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """N_opt at a budget that was held out of the fit."""

    fitted: int  # number of lowest budgets that were
    budget: float  # C of the held-out one
    extrapolation: float  # over the largest fitted
    predicted: float
    observed: float
    interval: Interval | None  # of the minimum that is found there: that of the law, and its own error

    @property
    def inside(self) -> bool | None:
        """True if the interval holds what was observed; None without an interval."""
        return None if self.interval is None else self.interval.holds(self.observed)

    @property
    def factor(self) -> float:
        """Ratio of predicted and observed N_opt, at least 1; 1 is exact."""
        return max(self.predicted / self.observed, self.observed / self.predicted)


@dataclass(frozen=True, kw_only=True)
class LossHoldOut:
    """Errors of the losses at the largest C, predicted by a surface through the other points."""

    points: int
    extrapolation: float
    rms: float  # nats
    bias: float  # mean of predicted less observed, nats


def hold_outs(fit: SweepFit) -> list[HoldOut]:
    """Predict each budget from laws through the lower ones, for every split of the budgets that have an optimum."""
    return list(_hold_outs(fit))


def _hold_outs(fit: SweepFit) -> Iterator[HoldOut]:
    used = interior(fit.valleys)
    used.sort(key=lambda i: fit.valleys[i].flops)
    flops = np.array([fit.valleys[i].flops for i in used])
    params = np.array([fit.valleys[i].params_opt for i in used])
    own = None if fit.errors is None else fit.errors.of(used).log10_params
    drawn = None if fit.minima is None else fit.minima.of(used).params
    correction = fit.methods["valley"].correction
    for cut in range(MIN_FITTED, len(used)):
        if len(np.unique(flops[:cut])) < MIN_FITTED:
            continue
        first = list(range(cut))
        source = None if drawn is None else LawSource(values=drawn.values[:, :cut], source=drawn.source.of(first))
        covariance = None if own is None else own[:cut, :cut]
        law = minima_law(flops[:cut], params[:cut], covariance, source, fit.options.law_weights, correction)
        for i in range(cut, len(used)):
            variance = 0.0 if own is None else float(own[i, i])
            # Of all draws of this minimum from the one of the losses as they are: half the skew, costs of its rates
            shift = 0.0 if drawn is None else float(np.median(drawn.values[:, i]) - np.log10(params[i]))
            yield HoldOut(
                fitted=cut,
                budget=float(flops[i]),
                extrapolation=float(flops[i] / flops[cut - 1]),
                predicted=law.at(float(flops[i])),
                observed=float(params[i]),
                interval=_of_a_minimum(law, float(flops[i]), variance, shift if np.isfinite(shift) else 0.0, fit),
            )


def _of_a_minimum(law: Law, budget: float, variance: float, shift: float, fit: SweepFit) -> Interval | None:
    """Interval of the minimum found at C = `budget`: of the law, of the scatter between budgets and of its own error.

    Args:
        variance: of log10 of the minimum, by the noise of its losses.
        shift: of log10 of its draws, which the law's draws have, too, and what is observed has not.
    """
    if law.draws is None:
        return None
    rng = np.random.default_rng([fit.options.seed, 3])
    tau = 0.0 if law.effects is None else law.effects.tau
    scatter = np.sqrt(variance + tau**2) * rng.standard_normal(len(law.draws.exponent))
    found = law.draws.at(budget) * 10 ** (scatter - shift)
    return central_interval(found, fit.options.confidence)


def loss_hold_out(fit: SweepFit) -> LossHoldOut | None:
    """Predict the losses at the largest C by a surface through the rest; None where the rest does not fix a surface."""
    top = fit.top
    if top is None:
        return None
    # Predicted less observed, nats
    error = top.surface.loss(top.high.params, top.high.tokens) - top.high.loss
    return LossHoldOut(
        points=len(top.high),
        extrapolation=top.extrapolation,
        rms=float(np.sqrt(np.mean(error**2))),
        bias=float(error.mean()),
    )
