"""Choice of the valleys' curve by how it predicts sizes that are left out, one after the other, of every budget.

Held-out minima cannot tell: a curve that misplaces all of them alike predicts them well. Held-out losses can, as far as
noise lets them: where they do not, the parabola stays, whose minima scatter the least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from flops_fit_ray.analysis._law_choice import Choice, choose
from flops_fit_ray.analysis._skew import same_skew
from flops_fit_ray.analysis._valley_minima import shared_skew
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.valley import MIN_DISTINCT_SIZES, Valley, fit_curve
from flops_fit_ray.fit_options import CurveName

# Ratios of errors: one number for all budgets, shrunk by its prior, is hardly a risk; Akima's minima scatter the most
CLEARLY = {"skewed": 0.95, "akima": 0.5}
ALIKE = 0.05  # p-value below which the valleys' skews differ


def choose_curve(valleys: Sequence[Valley], points: Points) -> Choice:
    """Choose the curve, given the valleys with parabolas; smallest and largest sizes are not left out.

    The skew of the other budgets is that which a budget is predicted with, if their skews may be the same.
    """
    names: tuple[CurveName, ...] = get_args(CurveName)
    curves = [v.smooth for v in valleys if v.status == "interior" and v.smooth is not None]
    alike = same_skew(curves) >= ALIKE
    errors: dict[str, list[float]] = {name: [] for name in names}
    for i, valley in enumerate(valleys):
        if len(np.unique(valley.params[valley.used])) <= MIN_DISTINCT_SIZES["parabola"]:
            continue
        others = [v for j, v in enumerate(valleys) if j != i]
        skew = shared_skew(others, points) if alike and len(others) else np.nan
        for name in names:
            errors[name].append(_left_out(valley, points, name, skew if name == "skewed" else 0.0))
    return choose(
        "curve",
        {name: np.array(values) for name, values in errors.items()},
        "parabola",
        held_out="sizes",
        clearly=CLEARLY,
    )


def _left_out(valley: Valley, points: Points, name: CurveName, skew: float) -> float:
    """Mean squared error of the losses of the sizes that are left out in turn; NaN where the curve cannot be fitted."""
    n, loss, w = valley.params[valley.used], valley.loss[valley.used], points.weights[valley.index[valley.used]]
    sizes = np.unique(n)
    if np.isnan(skew) or len(sizes) - 1 < MIN_DISTINCT_SIZES[name]:
        return np.nan
    errors: Floats = np.zeros_like(loss)
    for size in sizes[1:-1]:
        rest = n != size
        curve = fit_curve(name, n[rest], loss[rest], w[rest], skew)
        errors[~rest] = loss[~rest] - curve.at(np.log10(n[~rest]))
    inner = (n > sizes[0]) & (n < sizes[-1])
    return float(np.average(errors[inner] ** 2, weights=w[inner]))
