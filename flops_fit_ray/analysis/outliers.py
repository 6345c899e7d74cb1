"""Outliers of a valley by their externally studentised residuals.

With r_i the residual, h_i the leverage and s² the variance about the curve with df degrees of freedom,

    t_i = r_i / (s_(i)·sqrt(1 - h_i)),   s_(i)² = (df·s² - r_i² / (1 - h_i)) / (df - 1)

where s_(i) leaves point i out. t_i has Student's distribution with df - 1 degrees of freedom: with few of them four
standard deviations are not unusual, so the limit is 4 or Student's quantile, whichever is larger.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.valley import Polynomial, Valley, fit_polynomial

OUTLIER = 4.0  # standard deviations, the run itself left out
RARE = 1e-3  # two-sided probability beyond Student's quantile
EXACT = 1e-9  # noise over loss below which the curve fits exactly
MIN_LEFT = 1e-6  # of 1 - h, below which the curve passes through the point and has no residual there


def deviations(curve: Polynomial, sigma: float, df: float) -> Floats:
    """Return t_i of each point (points,); NaN where the curve passes through the point.

    `sigma` and `df` are the noise of the group of curves, with the residuals of this one included.
    """
    left = np.maximum(1 - curve.leverage, 1e-9)
    scaled = curve.residuals / np.sqrt(left)
    rest = np.maximum((df * sigma**2 - scaled**2) / max(df - 1, 1), 1e-300)
    return np.asarray(np.where(left > MIN_LEFT, scaled / np.sqrt(rest), np.nan))


def limit(df: float) -> float:
    """Smallest |t_i| of an outlier, with `df` degrees of freedom after leaving the point out."""
    from scipy.special import stdtrit

    return max(OUTLIER, float(stdtrit(max(df, 1.0), 1 - RARE / 2)))


def farthest_outlier(params: Floats, loss: Floats, others: Sequence[Valley]) -> tuple[int, float] | None:
    """Index and t_i of the point with the largest residual about the parabola of its budget; None if it is no outlier.

    `others` are valleys whose noise is taken for the same: they add degrees of freedom.
    """
    if len(np.unique(params)) <= 3:
        return None
    curve = fit_polynomial(params, loss, np.ones(len(loss)))
    known = [(v.smooth.residuals, len(v.smooth.residuals) - v.smooth.num_coefficients) for v in others if v.smooth]
    squares = float(curve.residuals @ curve.residuals) + sum(float(r @ r) for r, _ in known)
    df = len(loss) - curve.num_coefficients + sum(n for _, n in known)
    if df < 2 or np.sqrt(squares / df) < EXACT * float(np.mean(np.abs(loss))):
        return None
    t = deviations(curve, float(np.sqrt(squares / df)), df)
    if not np.isfinite(t).any():
        return None
    index = int(np.nanargmax(np.abs(t)))
    return (index, float(t[index])) if abs(t[index]) > limit(df - 1) else None
