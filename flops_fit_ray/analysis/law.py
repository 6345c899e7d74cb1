"""Power laws y = offset + k·C^a, fitted as straight lines in log-log space (linear space would weight the largest)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.errors import FitError

GAMMA = (0.01, 2.0)  # range of the exponent of a loss law
GRID_POINTS, GRID_ROUNDS = 21, 8  # each round narrows the bracket of gamma by a factor of ten
MIN_DRAWS = 0.5  # share of the draws that must have a value, else there is no interval


@dataclass(frozen=True)
class Interval:
    """A central interval."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Return True if `value` lies inside."""
        return self.low <= value <= self.high

    @property
    def factor(self) -> float:
        """Ratio high / low."""
        return self.high / self.low


@dataclass(frozen=True, kw_only=True, eq=False)
class LawDraws:
    """The law of every bootstrap draw; arrays (draws,), NaN where a draw gave no law."""

    exponent: Floats
    log10_coefficient: Floats
    offset: Floats | float = 0.0

    def at(self, budget: float) -> Floats:
        """The values at C = `budget`."""
        with np.errstate(over="ignore", under="ignore"):  # an extreme draw may overflow; it is infinite then
            return np.asarray(self.offset + 10 ** (self.log10_coefficient + self.exponent * np.log10(budget)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Law:
    """y = offset + 10^log10_coefficient · C^exponent, C in FLOPs; `draws` is None where the noise is unknown."""

    exponent: float
    log10_coefficient: float
    offset: float = 0.0
    stderr_ols: float | None = (
        None  # of the exponent, by ordinary least squares; far too small for a handful of budgets
    )
    draws: LawDraws | None = None

    @property
    def coefficient(self) -> float:
        """10^log10_coefficient; 0 or infinity where that is beyond a float."""
        with np.errstate(over="ignore", under="ignore"):
            return float(np.power(10.0, self.log10_coefficient))

    @property
    def formula(self) -> str:
        """The law as text, C in FLOPs."""
        offset = f"{self.offset:.4g} + " if self.offset else ""
        return f"{offset}{self.coefficient:.4g} · C^{self.exponent:.4f}"

    def at(self, budget: float) -> float:
        """y at C = `budget` FLOPs."""
        return float(self.offset + 10 ** (self.log10_coefficient + self.exponent * np.log10(budget)))

    def exponent_interval(self, confidence: float) -> Interval | None:
        """The central interval of the exponent, or None."""
        return None if self.draws is None else central_interval(self.draws.exponent, confidence)

    def coefficient_interval(self, confidence: float) -> Interval | None:
        """The central interval of the coefficient, or None."""
        if self.draws is None:
            return None
        with np.errstate(over="ignore", under="ignore"):
            return central_interval(np.power(10.0, self.draws.log10_coefficient), confidence)

    def interval(self, budget: float, confidence: float) -> Interval | None:
        """The central interval of the law at C = `budget`, or None."""
        return None if self.draws is None else central_interval(self.draws.at(budget), confidence)


def central_interval(values: Floats, confidence: float) -> Interval | None:
    """Central quantiles of the draws that have a value; None where fewer than half have one."""
    kept = values[~np.isnan(values)]
    if not len(values) or len(kept) < MIN_DRAWS * len(values):
        return None
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def fit_power_law(budget: Floats, value: Floats, weights: Floats | None = None, draws: Floats | None = None) -> Law:
    """Least squares of log10 value on log10 budget; arrays (points,), all positive.

    Args:
        weights: of the squared errors; None weighs all equally.
        draws: log10 values (draws, points) of the bootstrap, NaN where a draw has no value.

    Raises:
        FitError: fewer than two distinct budgets.
    """
    x, y = np.log10(budget), np.log10(value)
    w = np.ones(len(x)) if weights is None else weights
    exponent, coefficient = fit_lines(x, y[None, :], w)
    residuals = y - coefficient[0] - exponent[0] * x
    # Ordinary least squares: var(slope) = s² / sum w·(x - mean)², s² = sum w·r² / (n - 2)
    centred = x - np.average(x, weights=w)
    df = len(x) - 2
    stderr = None if df < 1 else float(np.sqrt(w @ residuals**2 / df / (w @ centred**2)))
    drawn = None
    if draws is not None:
        slopes, intercepts = fit_lines(x, draws, w)
        drawn = LawDraws(exponent=slopes, log10_coefficient=intercepts)
    return Law(exponent=float(exponent[0]), log10_coefficient=float(coefficient[0]), stderr_ols=stderr, draws=drawn)


def fit_lines(x: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Fit many lines over the same x (points,); return slopes and intercepts (draws,). y is (draws, points).

    slope = sum w·(x - mean)·y / sum w·(x - mean)², intercept = weighted mean of y - slope·mean.

    Raises:
        FitError: fewer than two distinct x.
    """
    if len(np.unique(x)) < 2:
        raise FitError(f"a power law needs optima at 2 or more different budgets (got {len(np.unique(x))})")
    mean = np.average(x, weights=weights)
    weighted = weights * (x - mean)
    slope = y @ weighted / (weighted @ (x - mean))
    return slope, y @ weights / weights.sum() - slope * mean


def fit_shifted_law(budget: Floats, value: Floats, draws: Floats | None = None) -> Law:
    """Least squares of value = E + K·C^-gamma with E >= 0 and gamma in (0.01, 2); arrays (points,), 4 points at least.

    E and K are linear for a given gamma, so only gamma is searched, on successively finer grids, for all draws at once.
    `draws` are values (draws, points); NaN where a draw has none.
    """
    # C relative to its geometric mean, so that C^-gamma stays near 1 for every gamma
    log_c = np.log(budget / np.exp(np.log(budget).mean()))
    rows = value[None, :] if draws is None else np.concatenate([value[None, :], draws])
    lost = np.isnan(rows).any(axis=1)
    fitted = np.full((3, len(rows)), np.nan)
    fitted[:, ~lost] = _fit_gamma(log_c, rows[~lost])
    gamma, e, k = fitted
    # K for C in FLOPs again: K·(C / mean)^-gamma = (K · mean^gamma)·C^-gamma
    log10_k = np.log10(k) + gamma * np.log(budget).mean() / np.log(10)
    drawn = None
    if draws is not None:
        drawn = LawDraws(exponent=-gamma[1:], log10_coefficient=log10_k[1:], offset=e[1:])
    return Law(exponent=float(-gamma[0]), log10_coefficient=float(log10_k[0]), offset=float(e[0]), draws=drawn)


def _fit_gamma(log_c: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Fit gamma, E and K (rows,) to many rows y (rows, points)."""
    low, high = np.full(len(y), np.log(GAMMA[0])), np.full(len(y), np.log(GAMMA[1]))
    row = np.arange(len(y))
    for _ in range(GRID_ROUNDS):
        grid = np.linspace(low, high, GRID_POINTS, axis=1)  # (rows, grid)
        best = _solve_linear(np.exp(grid), log_c, y)[2].argmin(axis=1)
        low, high = grid[row, np.maximum(best - 1, 0)], grid[row, np.minimum(best + 1, GRID_POINTS - 1)]
    gamma = np.exp((low + high) / 2)
    e, k, _ = _solve_linear(gamma[:, None], log_c, y)
    return gamma, e[:, 0], k[:, 0]


def _solve_linear(gamma: Floats, log_c: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Solve E and K for each row y (rows, points) at its gammas; return them and the squared error (rows, grid)."""
    # 1) y = E + K·x with x = C^-gamma is a line: K is its slope, E its intercept
    x = np.exp(-gamma[:, :, None] * log_c)  # (rows, grid, points)
    x_mean, y_mean = x.mean(axis=2), y.mean(axis=1, keepdims=True)
    centred = x - x_mean[:, :, None]
    k = np.einsum("rgp,rp->rg", centred, y) / np.einsum("rgp,rgp->rg", centred, centred)
    e = y_mean - k * x_mean
    # 2) where E would be negative it is 0, and K = x·y / x·x is the slope through the origin
    through_origin = np.einsum("rgp,rp->rg", x, y) / np.einsum("rgp,rgp->rg", x, x)
    k, e = np.where(e < 0, through_origin, k), np.maximum(e, 0)
    # 3) K <= 0 has no logarithm: a loss that rises with C is no such law
    k = np.where(k > 0, k, np.nan)
    error = np.square(y[:, None, :] - e[:, :, None] - k[:, :, None] * x).sum(axis=2)
    return e, k, np.where(np.isnan(error), np.inf, error)
