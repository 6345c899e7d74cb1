"""The law of the valleys' minima where FLOPs per token f(N) are no power of N: straight in a corrected N.

A minimum of L(N, C / f(N)) lies where N·L_N = s·D·L_D, s = d ln f / d ln N. With f = k·N^c nearby, and x = ln N,

    g(x) = ln f - ln k - c·x + ln(s / c) / beta,     beta = d ln(N·L_N / D·L_D) / d ln D

every power law of the loss has x + a·g(x) straight over ln C. beta is the exponent of D in an additive law, and no law
is needed to measure it, as on any smooth surface beta = a·L'' / (s·|dL_opt / d ln C|): the exponent of N_opt, the
curvature of a valley over ln N, and the slope of the loss from budget to budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flops_fit_ray.analysis._curved_law import CurvedLaw
from flops_fit_ray.analysis._law import Law, LawDraws, fit_lines
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.surface import CostLaw
from flops_fit_ray.analysis.valley import Valley

MOST_SCATTER = 0.02  # standard deviation of ln C/D about f(N), above which C is not known by N and D
BETA, BETA_SPREAD = 0.35, 0.35  # prior of beta: published laws have .28 to .45; its spread is of ln beta
MISFIT = 0.1  # relative error of a curvature, as a valley is no parabola
EXPONENTS = (0.05, 0.95)  # of N_opt, times c, between which a correction makes sense
LN10 = float(np.log(10))


@dataclass(frozen=True, kw_only=True, eq=False)
class Correction:
    """Maps log10 N to log10 of the corrected N, x + a·g(x), and back."""

    cost: CostLaw
    beta: float
    exponent: float = 1.0  # a

    def through(self, flops: Floats, log10_params: Floats) -> Correction | None:
        """Return the correction with which these minima (budgets,) lie nearest to a line; None if none is sensible.

        The slope a of x + a·g over ln C is that of x plus a times that of g, so a = slope(x) / (1 - slope(g)).
        """
        g = replace(self, exponent=1.0).straight(log10_params) - log10_params
        (of_x, of_g), _ = fit_lines(np.log10(flops), np.stack([log10_params, g]), np.ones(len(flops)))
        a = float(of_x / (1 - of_g)) if of_g < 1 else np.nan
        low, high = EXPONENTS
        return replace(self, exponent=a) if low < a * self.cost.n_exponent < high else None

    def straight(self, log10_params: Floats) -> Floats:
        """Return log10 of the corrected N."""
        x = log10_params * LN10
        value, slope, _ = self.cost.per_token(x)
        c = self.cost.n_exponent
        g = value - self.cost.log_k - c * x + np.log(slope / c) / self.beta
        return np.asarray(log10_params + self.exponent * g / LN10)

    def slope(self, log10_params: Floats) -> Floats:
        """Return the derivative of the corrected over the true N, both logarithmic."""
        _, slope, bend = self.cost.per_token(log10_params * LN10)
        return np.asarray(1 + self.exponent * (slope - self.cost.n_exponent + bend / slope / self.beta))

    def bent(self, log10_corrected: Floats) -> Floats:
        """Return log10 N of corrected ones; times beta / a it is the equation of an additive law's optimum."""
        beta, c, t = self.beta, self.cost.n_exponent, log10_corrected * LN10
        right = beta / self.exponent * t + beta * self.cost.log_k + np.log(c)
        return self.cost.optimum(t, right, beta / self.exponent - c * beta, beta) / LN10


@dataclass(frozen=True, kw_only=True, eq=False)
class BentDraws(LawDraws):
    """Curved laws of minima in many draws; exponent and coefficient are those of the lines through the minima."""

    straight: LawDraws  # of the corrected N
    correction: Correction
    tokens: bool = False  # D_opt = C / f(N_opt), else N_opt

    def at(self, budget: float | Floats) -> Floats:
        """Return the values at C = `budget`, of all draws or of each (draws,)."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            log10_n = self.correction.bent(np.log10(self.straight.at(budget)))
            if not self.tokens:
                return np.asarray(10**log10_n)
            return np.asarray(budget / np.exp(self.correction.cost.per_token(log10_n * LN10)[0]))


@dataclass(frozen=True, kw_only=True, eq=False)
class BentLaw(CurvedLaw):
    """The curved law of minima; its effects are those of the corrected N."""

    correction: Correction


def bent_law(line: Law, straight: Law, correction: Correction, flops: Floats) -> BentLaw:
    """Return the law of N_opt whose corrected N has a straight one.

    Args:
        line: through the minima as they are.
        straight: through the corrected ones.
        flops: C (budgets,) of the minima.
    """
    one = LawDraws(exponent=np.array([straight.exponent]), log10_coefficient=np.array([straight.log10_coefficient]))
    drawn = None
    if line.draws is not None and straight.draws is not None:
        drawn = _bent(line.draws, straight.draws, correction)
    return BentLaw(
        exponent=line.exponent,
        log10_coefficient=line.log10_coefficient,
        stderr_ols=line.stderr_ols,
        draws=drawn,
        effects=straight.effects,
        curve=_bent(one, one, correction),
        flops_range=(float(flops.min()), float(flops.max())),
        correction=correction,
    )


def bent_tokens(line: Law, params: BentLaw) -> BentLaw:
    """Return the law of D_opt = C / f(N_opt); `line` goes through the minima over D."""
    drawn = None
    if isinstance(params.draws, BentDraws) and line.draws is not None:
        drawn = _bent(line.draws, params.draws.straight, params.correction, tokens=True)
    assert isinstance(params.curve, BentDraws)
    return replace(
        params,
        exponent=line.exponent,
        log10_coefficient=line.log10_coefficient,
        stderr_ols=line.stderr_ols,
        draws=drawn,
        effects=line.effects,
        curve=replace(params.curve, tokens=True),
    )


def _bent(line: LawDraws, straight: LawDraws, correction: Correction, tokens: bool = False) -> BentDraws:
    return BentDraws(exponent=line.exponent, log10_coefficient=line.log10_coefficient, bend=line.bend,
                     parabola=line.parabola, straight=straight, correction=correction, tokens=tokens)  # fmt: skip


def cost_correction(cost: CostLaw | None, valleys: Sequence[Valley], params: Law, loss: Law) -> Correction | None:
    """Measure beta; None where the cost bends no law, or is not known by N and D alone.

    ln beta is the mean of what the valleys show and of the prior, each weighted by its precision.

    Args:
        valleys: those with an optimum.
        params: straight law of N_opt through them.
        loss: law of L_opt.
    """
    if cost is None or cost.curve is None or cost.scatter > MOST_SCATTER:
        return None
    curves = [(v, v.smooth) for v in valleys if v.smooth is not None]
    df = sum(len(curve.residuals) - curve.num_coefficients for _, curve in curves)
    total, log_beta = 0.0, 0.0
    if df > 0 and loss.exponent < 0 < params.exponent:
        sigma = np.sqrt(sum(float(curve.residuals @ curve.residuals) for _, curve in curves) / df)
        x = np.log([v.params_opt for v, _ in curves])
        bend = np.array([curve.curvature(at / LN10) for (_, curve), at in zip(curves, x, strict=True)])
        error = sigma * np.array([2 * np.linalg.norm(curve.solver[1]) for _, curve in curves]) / bend
        falls = -loss.exponent * np.array([loss.at(v.flops) - loss.offset for v, _ in curves])  # |dL_opt / d ln C|
        each = params.exponent * bend / LN10**2 / (cost.per_token(x)[1] * falls)
        known = each > 0
        if known.any():
            weights = 1 / (error[known] ** 2 + MISFIT**2)
            log_beta = float(np.average(np.log(each[known]), weights=weights))
            # The noise of the valleys is independent, their misfit is not
            total = 1 / (1 / float(np.sum(1 / np.maximum(error[known] ** 2, 1e-12))) + MISFIT**2)
    prior = 1 / BETA_SPREAD**2
    return Correction(cost=cost, beta=float(np.exp((total * log_beta + prior * np.log(BETA)) / (total + prior))))
