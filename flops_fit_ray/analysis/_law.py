"""Power laws y = k·C^a, fitted as straight lines in log-log space (linear space would weight the largest)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.random_effects import EffectSource, RandomEffects
from flops_fit_ray.errors import FitError

MIN_DRAWS = 0.5  # share of the draws that must have a value, else there is no interval


@dataclass(frozen=True)
class Interval:
    """A central interval."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Return True if `value` lies inside."""
        return self.low <= value <= self.high

    def overlaps(self, other: Interval) -> bool:
        """Return True if some value lies inside both."""
        return self.low <= other.high and other.low <= self.high

    def with_value(self, value: float) -> Interval:
        """Return the least interval that holds this one and `value`."""
        return Interval(min(self.low, value), max(self.high, value))

    @property
    def factor(self) -> float:
        """Ratio high / low."""
        return self.high / self.low

    def factor_about(self, value: float) -> float:
        """Return the least factor f whose range value/f to value·f holds the interval."""
        return float(max(self.high / value, value / self.low))


@dataclass(frozen=True, kw_only=True, eq=False)
class LawDraws:
    """The law of every bootstrap draw; arrays (draws,), NaN where a draw gave no law."""

    exponent: Floats
    log10_coefficient: Floats
    offset: Floats | float = 0.0
    bend: Floats | float = 0.0  # change of the exponent per decade of C, about the line of the fitted budgets
    parabola: tuple[float, float] = (0.0, 0.0)  # q(x) = x²/2 + parabola[1]·x + parabola[0], multiplied by `bend`

    def at(self, budget: float | Floats) -> Floats:
        """The values at C = `budget`, of all draws or of each (draws,)."""
        with np.errstate(over="ignore", under="ignore"):  # an extreme draw may overflow; it is infinite then
            line = self.log10_coefficient + self.exponent * np.log10(budget)
            return np.asarray(self.offset + 10 ** (line + self._bent(budget)))

    def _bent(self, budget: float | Floats) -> Floats:
        """Decades by which the law of every draw lies off its line at C = `budget`."""
        x = np.log10(budget)
        return np.asarray(self.bend * (0.5 * x * x + self.parabola[1] * x + self.parabola[0]))


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
    effects: RandomEffects | None = None  # of minima: how far they scatter about the law, and bend from it

    @classmethod
    def first_of(cls, laws: LawDraws, **more: Any) -> Self:
        """Return the first of many laws, with its constants."""
        return cls(
            exponent=float(laws.exponent[0]),
            log10_coefficient=float(laws.log10_coefficient[0]),
            offset=float(np.asarray(laws.offset).reshape(-1)[0]),
            **more,
        )

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

    def known_within(self, budget: float, confidence: float) -> float | None:
        """Return the factor within which y is known at C = `budget`; None without an interval."""
        within = self.interval(budget, confidence)
        return None if within is None else within.factor_about(self.at(budget))


def central_interval(values: Floats, confidence: float) -> Interval | None:
    """Central quantiles of the draws that have a value; None where fewer than half have one."""
    kept = values[~np.isnan(values)]
    if not len(values) or len(kept) < MIN_DRAWS * len(values):
        return None
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def fit_power_law(
    budget: Floats,
    value: Floats,
    weights: Floats | None = None,
    draws: Floats | None = None,
    effects: RandomEffects | None = None,
    source: EffectSource | None = None,
) -> Law:
    """Least squares of log10 value on log10 budget; arrays (points,), all positive.

    Args:
        weights: of the squared errors; None weighs all equally.
        draws: log10 values (draws, points) of the bootstrap, NaN where a draw has no value.
        effects: scatter between the budgets and a bend of the law, as far as they are possible; None: neither.
        source: random numbers to draw the effects with; None draws none.

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
        possible = None if effects is None or source is None else effects.draw(source)
        slopes, intercepts = fit_lines(x, draws if possible is None else draws + possible.scatter, w)
        drawn = LawDraws(exponent=slopes, log10_coefficient=intercepts)
        if possible is not None:
            slope, intercept = fit_lines(x, 0.5 * x[None, :] ** 2, w)
            drawn = replace(drawn, bend=possible.bend, parabola=(-float(intercept[0]), -float(slope[0])))
    return Law(exponent=float(exponent[0]), log10_coefficient=float(coefficient[0]), stderr_ols=stderr, draws=drawn,
               effects=effects)  # fmt: skip


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
