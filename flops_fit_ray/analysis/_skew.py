"""Skew that the valleys of a sweep have in common, and that their parabolas cannot follow.

A valley of a real surface is steeper on one side, so the vertex of a parabola lies off its minimum, at every budget
alike, and no interval of the noise holds that (Open-Athena, arXiv 2603.22339). One valley cannot tell its skew from
noise; all of them together can:

    loss = parabola(z) + rho · b · r(z),   z = log10 N,   b the parabola's curvature, r(z) = z³ less its own parabola

rho is common to the budgets (on a power-law surface it is (beta - alpha)/3 per unit of ln N). Its prior is a
half-Cauchy without a mass at 0: no valley is symmetric. Draws are centred halfway between the parabola and the
estimate, with a spread that holds both: the skew of the outermost sizes need not be that of the valley's bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.random_effects import draw_cells
from flops_fit_ray.analysis.valley import Polynomial

SKEW = 0.1  # scale of the prior of rho, per decade of N: |beta - alpha| = 0.13
SKEWS = np.geomspace(0.01, 1.0, 13)  # standard deviations of rho
BEYOND = 0.6  # spread of draws about half the estimate, as a share of it: 0.5 ends at the parabola and at the estimate


@dataclass(frozen=True, kw_only=True, eq=False)
class Skew:
    """The posterior of rho on the grid `SKEWS`: arrays (SKEWS,)."""

    probability: Floats
    mean: Floats
    variance: Floats

    def draw(self, choice: Floats, normal: Floats) -> Floats:
        """Draw rho (draws,) from uniform and standard normal numbers (draws,)."""
        (cell,) = draw_cells(self.probability, choice)
        mean = self.mean[cell]
        return np.asarray(0.5 * mean + np.sqrt(self.variance[cell] + (BEYOND * mean) ** 2) * normal)

    @property
    def estimate(self) -> float:
        """Posterior mean of rho."""
        return float(self.probability @ self.mean)

    @property
    def spread(self) -> float:
        """Standard deviation of rho."""
        return float(np.sqrt(self.probability @ (self.variance + self.mean**2) - self.estimate**2))

    @property
    def mean_square(self) -> float:
        """Mean square of what is drawn."""
        return float(self.probability @ (self.variance + (0.5**2 + BEYOND**2) * self.mean**2))


def common_skew(curves: Sequence[Polynomial], sigmas: Sequence[float], weights: Sequence[Floats]) -> Skew | None:
    """Compute the posterior of rho; None where no curve has points enough to show one.

    1) each curve alone: rho_i = sum w·r·residual / (b·sum w·r²), with the variance sigma² / (b²·sum w·r²)
    2) all: the mean weighted by precision; its variance is scaled by how far they differ, where that is more than noise

    Args:
        curves: the parabolas of the budgets with an optimum.
        sigmas: noise of each.
        weights: of the points of each.
    """
    found = []
    for curve, sigma, w in zip(curves, sigmas, weights, strict=True):
        bend = curve.coefficients[1]
        power = float(w @ curve.cubic**2)
        if curve.num_coefficients == 3 and bend > 0 and power > 1e-9 and sigma > 0:
            found.append((float((w * curve.cubic) @ curve.residuals) / power / bend, sigma**2 / power / bend**2))
    if not found:
        return None
    each, variances = np.array(found).T
    precision = 1 / variances
    rho, variance = float(precision @ each / precision.sum()), float(1 / precision.sum())
    if len(each) > 1:
        variance *= max(1.0, float(precision @ (each - rho) ** 2) / (len(each) - 1))
    total = variance + SKEWS**2
    log = -0.5 * (np.log(total) + rho**2 / total)
    posterior = np.exp(log - log.max()) * SKEWS / (1 + (SKEWS / SKEW) ** 2)  # half-Cauchy, per log
    shrunk = SKEWS**2 / total
    return Skew(probability=posterior / posterior.sum(), mean=shrunk * rho, variance=shrunk * variance)


def noise_about_cubics(curves: Sequence[Polynomial]) -> float | None:
    """Return the standard deviation of losses about parabolas that have each their own skew; None if none is left."""
    df = sum(len(c.residuals) - 4 for c in curves)
    if df < 1:
        return None
    left = sum(float(c.residuals @ c.residuals - (c.cubic @ c.residuals) ** 2 / (c.cubic @ c.cubic)) for c in curves)
    return float(np.sqrt(max(left, 0.0) / df))


def same_skew(curves: Sequence[Polynomial]) -> float:
    """Return the p-value of the skews of parabolas being the same, by the noise about cubics; 1 where none can differ.

    chi² = sum (rho_i - mean)² / variance_i of each curve's own rho, as in `common_skew`, is F over their number less 1.
    """
    from scipy.special import fdtrc

    shown = [c for c in curves if c.coefficients[1] > 0 and float(c.cubic @ c.cubic) > 1e-9]
    sigma = noise_about_cubics(shown)
    if len(shown) < 2 or sigma is None:
        return 1.0
    power = np.array([float(c.cubic @ c.cubic) for c in shown])
    bend = np.array([float(c.coefficients[1]) for c in shown])
    each = np.array([float(c.cubic @ c.residuals) for c in shown]) / power / bend
    precision = power * bend**2 / max(sigma**2, 1e-300)
    square = float(precision @ (each - precision @ each / precision.sum()) ** 2)
    return float(fdtrc(len(shown) - 1, sum(len(c.residuals) - 4 for c in shown), square / (len(shown) - 1)))
