"""The law of the loss at the minima, L_opt = E + K·C^-gamma, and what is known of it.

Losses of one budget share errors (a schedule, a batch of learning rates) that the noise about its valley does not show,
so they scatter about the law as minima do (`random_effects`). And few budgets hardly tell E from a smaller gamma: E is
drawn from its posterior on a grid between 0 and the lowest loss, flat before the data. With two budgets that is all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flops_fit_ray.analysis._law import Law, LawDraws, fit_power_law
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.random_effects import EffectSource, draw_cells, spike_and_cauchy

MIN_FOR_SHIFT = 4  # budgets from which E is fitted: one more than the law has parameters
GAMMA = (0.01, 2.0)  # range of gamma
GRID_POINTS, GRID_ROUNDS = 21, 8  # each round narrows the bracket of gamma by a factor of ten
SHARES, LARGEST_SHARE = 80, 0.985  # E over the lowest loss: places of the grid, and its end
ROUNDS, WIDE = 8, 20  # the grid is narrowed to where E can be until so many of its places can be
POSSIBLE = 1e-6  # of the largest probability
SCATTER = 0.001  # scale of the prior of the scatter between budgets, as a share of the loss
SCATTERS = np.concatenate([[0.0], np.geomspace(1e-4, 0.05, 16)])
EXACTLY = 1e-6  # nats
IMPOSSIBLE = -1e9  # log-likelihood of a law that rises


@dataclass(frozen=True, kw_only=True, eq=False)
class _LossEffects:
    """The posterior of E over the lowest loss and of the scatter."""

    shares: Floats  # (SHARES,), evenly spaced
    probability: Floats  # (SHARES, SCATTERS)

    @property
    def share(self) -> float:
        """Mean of E over the lowest loss."""
        return float(self.probability.sum(axis=1) @ self.shares)

    def draw(self, source: EffectSource) -> tuple[Floats, Floats]:
        """Draw the share of E and the scatter, as a share of the loss, (draws,) each."""
        i, j = draw_cells(self.probability, source.choice)
        return self.shares[i], SCATTERS[j]


def fit_loss_law(
    budget: Floats, value: Floats, errors: Floats, draws: Floats | None = None, source: EffectSource | None = None
) -> Law:
    """Fit L = E + K·C^-gamma to the losses at the minima; a loss that rises with C has the power law without E.

    Args:
        budget: C (budgets,), two distinct at least.
        value: losses (budgets,), positive.
        errors: standard deviations of the losses (budgets,) by the noise of the runs; 0 where unknown.
        draws: losses of every draw of the bootstrap (draws, budgets); NaN where a draw has none.
        source: random numbers of the effects of every draw.
    """
    plain = fit_power_law(budget, value)
    if plain.exponent >= 0:
        return plain if draws is None else fit_power_law(budget, value, draws=np.log10(draws))
    effects = _loss_effects(np.log(budget), value, errors)
    if len(budget) >= MIN_FOR_SHIFT:
        law = fit_shifted_law(budget, value)
    else:
        e = effects.share * float(value.min())
        law = replace(fit_power_law(budget, value - e), offset=e, stderr_ols=None)
    if draws is None or source is None:
        return law
    share, scatter = effects.draw(source)
    scatter *= float(value.mean())
    losses = draws + scatter[:, None] * source.scatter
    e = share * np.minimum(losses.min(axis=1), value.min())
    drawn = _drawn_laws(np.log(budget), losses, e, errors, scatter)
    return replace(law, draws=drawn)


def _loss_effects(x: Floats, value: Floats, errors: Floats) -> _LossEffects:
    """Compute the posterior of E and of the scatter.

    For every E and scatter, ln(L - E) is a line in x = ln C with the weights w = (L - E)²/v, v = errors² + scatter²:
    ln p = -1/2·(sum w·r² + (k - 3)/k·sum ln v), k budgets, restricted because the law has three parameters.
    """
    shares = np.linspace(0, LARGEST_SHARE, SHARES)
    for _ in range(ROUNDS):
        posterior = _posterior(x, value, errors, shares)
        possible = np.flatnonzero(posterior.sum(axis=1) > POSSIBLE * posterior.sum(axis=1).max())
        if len(possible) >= WIDE:
            break
        step = shares[1] - shares[0]
        low, high = max(shares[possible[0]] - step, 0), min(shares[possible[-1]] + step, LARGEST_SHARE)
        shares = np.linspace(low, high, SHARES)
    return _LossEffects(shares=shares, probability=posterior / posterior.sum())


def _posterior(x: Floats, value: Floats, errors: Floats, shares: Floats) -> Floats:
    k = len(x)
    excess = value - shares[:, None, None] * value.min()  # (SHARES, 1, budgets)
    v = errors**2 + (SCATTERS[:, None] * value.mean()) ** 2 + EXACTLY**2  # (SCATTERS, budgets)
    w, y = excess**2 / v, np.log(excess)
    slope, intercept = _lines(x, y, w)
    r = y - intercept[..., None] - slope[..., None] * x
    log = -0.5 * ((w * r * r).sum(axis=-1) + max(k - 3, 0) / k * np.log(v).sum(axis=-1))
    log = np.where(slope < 0, log, IMPOSSIBLE)
    return np.asarray(np.exp(log - log.max()) * spike_and_cauchy(SCATTERS, SCATTER))


def _drawn_laws(x: Floats, losses: Floats, e: Floats, errors: Floats, scatter: Floats) -> LawDraws:
    """The law of every draw, given its E; `losses` (draws, budgets), `e` and `scatter` (draws,)."""
    excess = np.maximum(losses - e[:, None], 1e-300)
    y = np.log(excess)
    slope, intercept = _lines(x, y, excess**2 / (errors**2 + scatter[:, None] ** 2 + EXACTLY**2))
    falls = slope < 0
    mean = y.mean(axis=1)  # a draw that rises is constant: no more compute makes a loss worse
    slope, intercept = np.where(falls, slope, 0.0), np.where(falls, intercept, mean)
    lost = np.isnan(losses).any(axis=1)
    slope[lost] = np.nan
    return LawDraws(exponent=slope, log10_coefficient=intercept / np.log(10), offset=e)


def _lines(x: Floats, y: Floats, w: Floats) -> tuple[Floats, Floats]:
    """Weighted least squares of y (..., budgets) on x (budgets,): slopes and intercepts (...)."""
    total = w.sum(axis=-1)
    x_mean = (w * x).sum(axis=-1) / total
    y_mean = (w * y).sum(axis=-1) / total
    centred = x - x_mean[..., None]
    slope = (w * centred * y).sum(axis=-1) / (w * centred**2).sum(axis=-1)
    return slope, y_mean - slope * x_mean


def fit_shifted_law(budget: Floats, value: Floats) -> Law:
    """Least squares of value = E + K·C^-gamma with E >= 0 and gamma in (0.01, 2); arrays (points,), 4 points at least.

    E and K are linear for a given gamma, so only gamma is searched, on successively finer grids.
    """
    # C relative to its geometric mean, so that C^-gamma stays near 1 for every gamma
    log_c = np.log(budget / np.exp(np.log(budget).mean()))
    low, high = np.log(GAMMA)
    for _ in range(GRID_ROUNDS):
        grid = np.linspace(low, high, GRID_POINTS)
        best = int(_solve_linear(np.exp(grid), log_c, value)[2].argmin())
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, GRID_POINTS - 1)]
    gamma = float(np.exp((low + high) / 2))
    e, k = (float(a[0]) for a in _solve_linear(np.array([gamma]), log_c, value)[:2])
    # K for C in FLOPs again: K·(C / mean)^-gamma = (K · mean^gamma)·C^-gamma
    log10_k = np.log10(k) + gamma * np.log(budget).mean() / np.log(10)
    return Law(exponent=-gamma, log10_coefficient=float(log10_k), offset=e)


def _solve_linear(gamma: Floats, log_c: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Solve E and K for y (points,) at each gamma (grid,); return them and the squared error (grid,)."""
    # 1) y = E + K·x with x = C^-gamma is a line: K is its slope, E its intercept
    x = np.exp(-gamma[:, None] * log_c)  # (grid, points)
    x_mean = x.mean(axis=1)
    centred = x - x_mean[:, None]
    k = np.einsum("gp,p->g", centred, y) / np.einsum("gp,gp->g", centred, centred)
    e = y.mean() - k * x_mean
    # 2) where E would be negative it is 0, and K = x·y / x·x is the slope through the origin
    through_origin = np.einsum("gp,p->g", x, y) / np.einsum("gp,gp->g", x, x)
    k, e = np.where(e < 0, through_origin, k), np.maximum(e, 0)
    # 3) K <= 0 has no logarithm: a loss that rises with C is no such law
    k = np.where(k > 0, k, np.nan)
    error = np.square(y - e[:, None] - k[:, None] * x).sum(axis=1)
    return e, k, np.where(np.isnan(error), np.inf, error)
