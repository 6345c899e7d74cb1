"""Checks whether runs determine a surface: before a fit by where they lie, after it by what came out."""

from __future__ import annotations

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.surface._cost import CostLaw
from flops_fit_ray.analysis.surface._value import Surfaces
from flops_fit_ray.fit_options import SurfaceOptions

ENOUGH = 3  # different values of N, and of D
SAME_SIZE = 1.1  # ratio within which sizes (or token counts) are one, as far as an exponent is concerned
LEAST_RANGE = 2.0  # largest over smallest N (or D), below which an exponent rests on the last digits of the losses
ONE_LINE = 1e-3  # rms of ln D about a line in ln N below which the points lie on it
COLLINEAR = 0.98  # correlation of ln N and ln D from which their terms trade off
STEEPEST = 2.0  # exponent of N or D beyond which a fit has lost its way; published ones are 0.05 to 1


def cannot_be_fitted(points: Points, options: SurfaceOptions) -> str:
    """Return the reason why the points do not determine a surface; empty if they may."""
    free = options.parameters
    if len(points) <= free:
        return f"{len(points)} points for {free} parameters; at least {free + 1} are needed"
    x, y = np.log(points.params), np.log(points.tokens)
    for name, values, other in (("N", x, "sizes"), ("D", y, "token counts")):
        distinct, apart = len(np.unique(np.round(values, 6))), _apart(values)
        if apart < ENOUGH:
            near = "" if apart == distinct else f" ({distinct} within x{np.exp(np.ptp(values)):.3g})"
            return (
                f"{apart} different values of {name}{near}; at least {ENOUGH} {other} are needed, {SAME_SIZE:g}x apart"
            )
    # A line of slope 1 in (ln N, ln D) is a fixed D/N, of slope -1 one budget; A/N^alpha and B/D^beta are confounded
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    scatter = float(np.sqrt(np.mean((y - slope * x) ** 2)))
    if scatter < ONE_LINE:
        return f"all points lie on one line in (log N, log D): {_line(slope)}; vary N and D independently"
    return ""


def weak_design(points: Points) -> str:
    """Return the reason why an interval of a surface through these points would be too narrow; empty without one."""
    x, y = np.log(points.params), np.log(points.tokens)
    correlation = float(np.corrcoef(x, y)[0, 1])
    if abs(correlation) > COLLINEAR:
        cause = "D/N hardly varies" if correlation > 0 else "the budgets hardly differ"
        return (
            f"N and D are nearly collinear (correlation {correlation:.4f} of ln N and ln D: {cause}), so their terms "
            f"trade off; vary {'D/N' if correlation > 0 else 'the budgets'} more"
        )
    for name, values in (("N", x), ("D", y)):
        span = float(np.exp(np.ptp(values)))
        if span < LEAST_RANGE * (1 - 1e-9):
            return (
                f"{name} varies by x{span:.3g} only, too little for an exponent; widen it to x{LEAST_RANGE:g} or more"
            )
    return ""


def weak_optimum(points: Points, surface: Surfaces, cost: CostLaw) -> str:
    """Return the reason why the optimum of a surface is an extrapolation at the middle of its budgets; else empty."""
    middle = float(np.exp(np.log(points.flops).mean()))
    log_n, log_d, _ = surface.optimum(middle, cost)
    for name, value, run in (("N", log_n, points.params), ("D", log_d, points.tokens)):
        best = float(np.exp(value[0]))
        if not run.min() <= best <= run.max():
            side = "larger" if best > run.max() else "smaller"
            return (
                f"at C = {fmt.flops(middle)}, the middle of the runs, {name}_opt = {fmt.count(best)} is {side} than "
                f"any {name} that was run ({fmt.count(run.min())} to {fmt.count(run.max())}); add runs there"
            )
    return ""


def _apart(values: Floats) -> int:
    """Count different values by their logarithms, up to `ENOUGH`; a group within `SAME_SIZE` of its smallest is one."""
    count, start = 0, -np.inf
    for value in np.unique(values):
        if value > start + np.log(SAME_SIZE) - 1e-9:
            count, start = count + 1, float(value)
            if count == ENOUGH:
                break
    return count


def _line(slope: float) -> str:
    if abs(slope - 1) < 0.01:
        return "D/N is fixed"
    return "one budget" if abs(slope + 1) < 0.01 else "D follows from N"
