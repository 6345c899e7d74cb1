"""Hold-out tests of extrapolation: fit the lower budgets, predict the upper ones, compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis._methods import interior
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.arrays import Bools
from flops_fit_ray.analysis.law import Interval, fit_power_law
from flops_fit_ray.analysis.surface import fit_surface

MIN_FITTED = 2
TOP_SHARE = 0.2  # of the points with the largest C, held out where the budgets are not labelled


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """N_opt at a budget that was held out of the fit."""

    fitted: int  # number of lowest budgets that were
    budget: float  # C of the held-out one
    extrapolation: float  # over the largest fitted
    predicted: float
    observed: float
    interval: Interval | None  # of the prediction

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
    flops = np.array([fit.valleys[i].flops for i in used])
    params = np.array([fit.valleys[i].params_opt for i in used])
    order = np.argsort(flops, kind="stable")
    flops, params = flops[order], params[order]
    draws = None if fit.minima is None else fit.minima.log10_params[:, np.array(used, dtype=int)[order]]
    for cut in range(MIN_FITTED, len(used)):
        if len(np.unique(flops[:cut])) < MIN_FITTED:
            continue
        law = fit_power_law(flops[:cut], params[:cut], None, None if draws is None else draws[:, :cut])
        for c, n in zip(flops[cut:], params[cut:], strict=True):
            yield HoldOut(
                fitted=cut,
                budget=float(c),
                extrapolation=float(c / flops[cut - 1]),
                predicted=law.at(float(c)),
                observed=float(n),
                interval=law.interval(float(c), fit.options.confidence),
            )


def loss_hold_out(fit: SweepFit) -> LossHoldOut | None:
    """Predict the losses at the largest C by a surface through the rest; None where the rest does not fix a surface."""
    points = fit.points
    top = _top(fit)
    if not top.any() or top.all():
        return None
    below = fit_surface(points.pick(~top), fit.options.surface("surface_huber"))
    if not below.usable or below.surface is None:
        return None
    # Predicted less observed, nats
    error = below.surface.loss(points.params[top], points.tokens[top]) - points.loss[top]
    return LossHoldOut(
        points=int(top.sum()),
        extrapolation=float(points.flops[top].max() / points.flops[~top].max()),
        rms=float(np.sqrt(np.mean(error**2))),
        bias=float(error.mean()),
    )


def _top(fit: SweepFit) -> Bools:
    points = fit.points
    if not len(points):
        return np.zeros(0, dtype=bool)
    if points.labelled:
        return np.asarray(points.budget == points.budget.max())
    return np.asarray(points.flops > np.quantile(points.flops, 1 - TOP_SHARE))
