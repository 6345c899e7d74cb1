"""Power laws y = k·C^a, fitted as straight lines in log-log space (never in linear space, which weighs the top)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.valley import Floats
from flops_fit_ray.errors import FitError


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """y = 10^log10_coefficient · C^exponent."""

    exponent: float
    log10_coefficient: float

    @property
    def formula(self) -> str:
        """The law as people read it, C in FLOPs."""
        return f"{10**self.log10_coefficient:.4g} · C^{self.exponent:.4f}"

    def at(self, budget: float) -> float:
        """y at C = `budget` FLOPs."""
        return float(10 ** (self.log10_coefficient + self.exponent * np.log10(budget)))


def fit_power_law(budget: Floats, value: Floats) -> PowerLaw:
    """Ordinary least squares of log10 value on log10 budget; both (points,), all positive.

    Raises:
        FitError: fewer than two distinct budgets.
    """
    exponent, coefficient = fit_lines(np.log10(budget), np.log10(value)[None, :])
    return PowerLaw(exponent=float(exponent[0]), log10_coefficient=float(coefficient[0]))


def fit_lines(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Slopes (draws,) and intercepts (draws,) of many lines over the same x (points,); y is (draws, points).

    Raises:
        FitError: fewer than two distinct x.
    """
    if len(np.unique(x)) < 2:
        raise FitError(f"a power law needs optima at 2 budgets at least, and there are {len(np.unique(x))}")
    centred = x - x.mean()
    slope = y @ centred / (centred @ centred)
    return slope, y.mean(axis=1) - slope * x.mean()
