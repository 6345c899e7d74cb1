"""A weighted line through few values that may scatter beyond their noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Straight:
    """y = a + b·x by weighted least squares; arrays (points,)."""

    x: Floats
    noise: Floats  # variances of y by its noise
    scatter: float  # variance of y about the line beyond it
    df: float  # degrees of freedom of the noise

    def at(self, x: float) -> tuple[Floats, float, float]:
        """Return the weights (points,) that the values have in the line at x, its standard deviation, and its df.

        The degrees of freedom are Satterthwaite's, of the noise and of the scatter, which points - 2 differences tell.
        """
        total = self.noise + self.scatter
        design = np.stack([np.ones_like(self.x), self.x], axis=1)
        normal = design.T @ (design / total[:, None])
        weights = np.array([1.0, x]) @ np.linalg.solve(normal, design.T / total)
        by_noise, by_scatter = float(weights**2 @ self.noise), float(weights @ weights) * self.scatter
        variance = by_noise + by_scatter
        parts = by_noise**2 / self.df + by_scatter**2 / max(len(self.x) - 2, 1)
        return weights, float(np.sqrt(variance)), float(variance**2 / parts) if parts > 0 else np.inf


def weighted_line(x: Floats, y: Floats, variance: Floats, df: float) -> Straight:
    """Fit a line to y (points,) with variances (points,), and the scatter beyond them by DerSimonian and Laird 1986.

    Q = sum w·r² is (points - 2) on average without scatter; scatter = (Q - (points - 2)) / (tr W - tr H·W).
    """
    w = 1 / variance
    design = np.stack([np.ones_like(x), x], axis=1)
    inverse = np.linalg.inv(design.T @ (design * w[:, None]))
    residuals = y - design @ (inverse @ (design.T @ (w * y)))
    q, free = float(w @ residuals**2), len(x) - 2
    leverage = np.einsum("pi,ij,pj->p", design, inverse, design) * w
    scatter = max(0.0, (q - free) / float(w.sum() - w @ leverage)) if free > 0 else 0.0
    return Straight(x=x, noise=variance, scatter=scatter, df=df)
