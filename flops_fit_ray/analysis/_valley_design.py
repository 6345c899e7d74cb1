"""The valleys' law as a linear model of its losses: every budget a parabola whose minimum scatters about the law.

    L = m + h·(z - v)²,   v = k + a·x + bend·x²/2 + u,   u ~ N(0, tau²),   z = log10 N,  x = log10 C - mean

Unknown are k, a and the bend, and m, h and u of each budget. A budget tells something of the law once three sizes fix
its parabola, and those beside the minimum tell most. The parabola is not the true form: a loss is off by
rho·h·(z - v)³, rho the skew that the valleys have in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flops_fit_ray.analysis._design import LinearLaw, coarse_cells
from flops_fit_ray.analysis._law import Law
from flops_fit_ray.analysis._skew import common_skew
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis._valley_minima import fitted
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.random_effects import BENDS, SCATTERS
from flops_fit_ray.analysis.valley import Polynomial

LEAST_SCATTER, LEAST_BEND = 1e-3, 1e-3  # of minima, in decades; change of the exponent per decade of C
VAGUE = 10.0  # standard deviation of what is not known beforehand: decades, nats, and times the curvature
COMMON, OF_BUDGET = 3, 3  # parameters of the law, and of each budget


def valley_design(fit: SweepFit, target: float, budgets: Floats, params: Floats) -> LinearLaw | None:
    """Return the law of N_opt by valleys, in ln N at C = `target`, with candidates (C, N); None without an interval.

    Args:
        budgets: C of the candidates (candidates,); those at a budget of the sweep have its nominal C exactly.
        params: N of them.
    """
    law = fit.methods["valley"].params_opt
    groups = [(i, smooth, members) for i, smooth, members in fitted(fit.valleys) if fit.valleys[i].status == "interior"]
    if law is None or law.draws is None or law.effects is None or fit.noise is None or len(groups) < 2:
        return None
    order = [i for i, _, _ in fitted(fit.valleys)]
    sigma = {fit.valleys[i].budget: float(fit.noise.sigma[order.index(i)]) for i, _, _ in groups}
    known = np.array([fit.valleys[i].budget for i, _, _ in groups])
    every = np.unique(np.concatenate([known, budgets]))
    middle = float(np.mean(np.log10(known)))
    model = _Valleys(fit, law, every, middle, _curvatures(fit, groups, every))
    members = np.concatenate([index for _, _, index in groups])
    of_runs = np.repeat(known, [len(index) for _, _, index in groups])
    runs = model.rows(of_runs, np.log10(fit.points.params[members]))
    candidates = model.rows(budgets, np.log10(params))
    skew = _skew(fit, groups, sigma)
    pooled = fit.noise.pooled
    variance = np.array([sigma.get(c, pooled) ** 2 for c in of_runs]) / fit.points.weights[members]
    at = np.isin(budgets, known)
    p, scatter, bend = coarse_cells(law.effects.probability, SCATTERS, BENDS)
    size = COMMON + OF_BUDGET * len(every)
    prior = np.empty((len(p), size))
    prior[:, :2] = VAGUE**-2
    prior[:, 2] = 1 / (bend + LEAST_BEND**2)
    prior[:, COMMON::OF_BUDGET] = VAGUE**-2
    prior[:, COMMON + 1 :: OF_BUDGET] = VAGUE**-2
    prior[:, COMMON + 2 :: OF_BUDGET] = 1 / (scatter + LEAST_SCATTER**2)[:, None]
    x = np.log10(target) - middle
    wanted = np.zeros(size)
    wanted[:COMMON] = np.log(10) * np.array([1.0, x, 0.5 * x * x])
    return LinearLaw(
        probability=p,
        prior=prior,
        wanted=wanted,
        runs=runs,
        noise=variance,
        bias=model.cubes(of_runs, np.log10(fit.points.params[members])),
        candidates=candidates,
        candidate_noise=np.array([sigma.get(c, pooled) ** 2 for c in budgets]),
        candidate_bias=model.cubes(budgets, np.log10(params)),
        skew=skew,
        df=float(fit.noise.pooled_df),
        informs=at.astype(np.float64),
        confidence=fit.options.confidence,
    )


class _Valleys:
    """Derivatives of the losses to the parameters of the model."""

    def __init__(self, fit: SweepFit, law: Law, budgets: Floats, middle: float, curvature: Floats) -> None:
        minima = {v.budget: v.params_opt for v, _ in fit.optima}
        self._budgets, self._middle, self._curvature = budgets, middle, curvature
        self._minimum = np.log10([minima[c] if c in minima else law.at(float(c)) for c in budgets])

    def rows(self, budgets: Floats, log_n: Floats) -> Floats:
        """Derivatives (points, parameters) at log10 N; h is in units of each budget's curvature."""
        i = np.searchsorted(self._budgets, budgets)
        h, off = self._curvature[i], log_n - self._minimum[i]
        moved = -2 * h * off
        x = np.log10(budgets) - self._middle
        rows = np.zeros((len(log_n), COMMON + OF_BUDGET * len(self._budgets)))
        rows[:, :COMMON] = moved[:, None] * np.stack([np.ones_like(x), x, 0.5 * x * x], axis=1)
        point, first = np.arange(len(log_n)), COMMON + OF_BUDGET * i
        rows[point, first], rows[point, first + 1], rows[point, first + 2] = 1.0, h * off**2, moved
        return rows

    def cubes(self, budgets: Floats, log_n: Floats) -> Floats:
        """h·(z - v)³ (points,): what a skew of 1 adds to a loss."""
        i = np.searchsorted(self._budgets, budgets)
        return np.asarray(self._curvature[i] * (log_n - self._minimum[i]) ** 3)


def _curvatures(fit: SweepFit, groups: Sequence[tuple[int, Polynomial, object]], budgets: Floats) -> Floats:
    """Curvature h (budgets,): of each valley its own, elsewhere by a line of ln h over ln C through all of them."""
    step = 0.05
    known = []
    for i, smooth, _ in groups:
        at = np.log10(fit.valleys[i].params_opt) + step * np.array([-1.0, 0.0, 1.0])
        low, middle, high = smooth.at(at)
        known.append(max(0.5 * (low - 2 * middle + high) / step**2, 1e-12))
    x, y = np.log([fit.valleys[i].budget for i, _, _ in groups]), np.log(known)
    slope = float((x - x.mean()) @ y / max((x - x.mean()) @ (x - x.mean()), 1e-12)) if len(x) > 2 else 0.0
    line = dict(zip((fit.valleys[i].budget for i, _, _ in groups), known, strict=True))
    return np.array([line.get(c, float(np.exp(y.mean() + slope * (np.log(c) - x.mean())))) for c in budgets])


def _skew(fit: SweepFit, groups: Sequence[tuple[int, Polynomial, object]], sigma: dict[float, float]) -> float:
    """Mean square of the skew rho that the valleys leave possible; 0 where no parabola can show one."""
    curves = [fit.valleys[i].smooth for i, _, _ in groups]
    weights = [fit.points.weights[fit.valleys[i].index[fit.valleys[i].used]] for i, _, _ in groups]
    skew = common_skew(
        [c for c in curves if c is not None], [sigma[fit.valleys[i].budget] for i, _, _ in groups], weights
    )
    return 0.0 if skew is None else skew.mean_square
