"""Runs that lie off their valley: leave-one-out residuals in standard deviations of their own.

A deviation counts by how rare it is: with few degrees of freedom a residual of four standard deviations is nothing
unusual, so the limit is the four of the normal distribution or Student's, whichever is wider.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.valley import Polynomial, Valley, fit_polynomial

OUTLIER = 4.0  # standard deviations, the run itself left out
RARE = 1e-3  # two-sided chance of a deviation that is called an outlier where degrees of freedom are few
EXACT = 1e-9  # scatter over loss, below which there is none
THROUGH = 1e-6  # of leverage left: a curve that goes through a point says nothing of it


def deviations(curve: Polynomial, sigma: float, df: float) -> Floats:
    """The leave-one-out residual of each point about its curve, in standard deviations without it; NaN where unknown.

    `sigma` and `df` are the noise of the curve's group, this curve's own residuals included.
    """
    left = np.maximum(1 - curve.leverage, 1e-9)
    scaled = curve.residuals / np.sqrt(left)
    rest = np.maximum((df * sigma**2 - scaled**2) / max(df - 1, 1), 1e-300)
    return np.asarray(np.where(left > THROUGH, scaled / np.sqrt(rest), np.nan))


def limit(df: float) -> float:
    """How many standard deviations are too many, with so many degrees of freedom after leaving the run out."""
    from scipy.special import stdtrit

    return max(OUTLIER, float(stdtrit(max(df, 1.0), 1 - RARE / 2)))


def farthest_outlier(params: Floats, loss: Floats, others: Sequence[Valley]) -> tuple[int, float] | None:
    """The index and deviation of the run farthest off the parabola of its budget, if it is an outlier.

    `others` are valleys whose scatter is taken for the same: they add degrees of freedom.
    """
    if len(np.unique(params)) <= 3:
        return None
    curve = fit_polynomial(params, loss, np.ones(len(loss)))
    known = [(v.smooth.residuals, len(v.smooth.residuals) - v.smooth.num_coefficients) for v in others if v.smooth]
    squares = float(curve.residuals @ curve.residuals) + sum(float(r @ r) for r, _ in known)
    df = len(loss) - curve.num_coefficients + sum(n for _, n in known)
    if df < 2 or np.sqrt(squares / df) < EXACT * float(np.mean(np.abs(loss))):
        return None
    found = deviations(curve, float(np.sqrt(squares / df)), df)
    if not np.isfinite(found).any():
        return None
    index = int(np.nanargmax(np.abs(found)))
    return (index, float(found[index])) if abs(found[index]) > limit(df - 1) else None
