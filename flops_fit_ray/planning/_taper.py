"""The sizes of every budget but the first: many over a wide window where runs are cheap, few where they are dear.

A budget's minimum by a parabola through sizes within ±R of it, in log N, has an error of two parts, and R trades them:

1) noise: sd(loss) / (curvature · sqrt(sum z²)) falls as 1/R
2) skew: a valley with the cubic term rho·curvature/2·z³ shifts the vertex by rho/2 · (sum z⁴ / sum z²), growing as R²

Both are known from the first valleys, which are wide and cheap. One R serves all budgets: then 2) is the same at all of
them, and the exponent of N_opt is free of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.valley import Polynomial, Valley, fit_polynomial
from flops_fit_ray.analysis.window import within_reach
from flops_fit_ray.planning._adaptive import MIN_SIZES, nearest
from flops_fit_ray.planning._sizes import even_sizes, even_window, spacing
from flops_fit_ray.planning.experiment import ModelSize
from flops_fit_ray.spec import GridSection

SHARE = 0.4  # of the sum of the budgets: what the sizes of one budget may cost where they are more than three
MOST = 7  # sizes where runs are cheap
CORE = 3  # sizes of the next budget that start before the one below is complete
MANY = 5  # sizes of a budget that tapers, from which some do: one too many where they are dear costs more than waiting
STEPS = (2, 3)  # half windows, in steps of the ladder: 4 and 8 times the expected optimum
FEW_DF = 3  # degrees of freedom, below which noise and skew are not known, and the first of `STEPS` is taken
SKEW_SD = 0.05  # prior of rho, per decade of N: that of a surface with |beta - alpha| = 0.065
FAR = 2.0  # variance of N_opt at ten times the largest budget over that of one minimum


class Sizing:
    """Choice of the sizes of every budget but the first.

    Args:
        total_budget: of which a budget has a share; None for a grid that does not taper, whatever the spec says.
    """

    def __init__(self, grid: GridSection, total_budget: float | None) -> None:
        self._grid, self._total, self._step = grid, total_budget, spacing(grid)
        self._half: int | None = None  # window, in steps of the ladder, once it is decided

    @property
    def tapers(self) -> bool:
        """True if dear budgets have fewer sizes."""
        return self._grid.sizes == "auto" and self._total is not None

    @property
    def window(self) -> float | None:
        """Factor of N around the expected optimum; None before it is decided."""
        return None if self._half is None else float(self._step**self._half)

    @property
    def reach(self) -> float | None:
        """Factor of N within which all valleys are read, half a step beyond the window; None before it is decided."""
        return None if self._half is None else self._beyond(self._half)

    def sizes(
        self, ladder: Sequence[ModelSize], budget: float, centre: float, valleys: Sequence[Valley]
    ) -> list[ModelSize]:
        """Choose the sizes of a budget, from a ladder of those that it can have.

        Args:
            centre: expected N_opt.
            valleys: of the smaller budgets, by which the window is decided once.
        """
        count = self._count(budget)
        if not self.tapers:
            return nearest(ladder, centre, count, even_window(self._grid) * math.sqrt(self._step))
        if count == MOST:
            return nearest(ladder, centre, count, self._beyond(MOST // 2))
        if self._half is None:
            self._half = STEPS[0]  # of a window that is given, `spacing` is the square root
            if self._grid.window == "auto":
                self._half = half_window(valleys, self._step)
        return spread_evenly(nearest(ladder, centre, 2 * self._half + 1, self._beyond(self._half)), centre, count)

    def early(self, budget: float) -> int:
        """Return the number of sizes of a budget that start before the one below is complete."""
        count = self._count(budget)
        return 0 if self.tapers and count < MANY else min(CORE, count)

    def _count(self, budget: float) -> int:
        """Return the number of sizes: odd, and so many that they cost `SHARE` of all budgets, 3 to `MOST`."""
        if self._grid.sizes != "auto" or self._total is None:
            return even_sizes(self._grid)
        count = int(SHARE * self._total / budget)
        return min(max(count - 1 + count % 2, MIN_SIZES), MOST)

    def _beyond(self, steps: int) -> float:
        return float(self._step ** (steps + 0.5))


def spread_evenly(window: Sequence[ModelSize], centre: float, count: int) -> list[ModelSize]:
    """Return `count` of these sizes, an odd number: both ends, the one nearest to `centre`, and others evenly between.

    `window` is sorted by N.
    """
    if len(window) <= count:
        return list(window)
    distance = [abs(math.log(s.params / centre)) for s in window]
    middle = min(range(1, len(window) - 1), key=distance.__getitem__)
    below, above = np.linspace(0, middle, count // 2 + 1), np.linspace(middle, len(window) - 1, count // 2 + 1)
    return [window[i] for i in sorted({*np.rint(below).astype(int).tolist(), *np.rint(above).astype(int).tolist()})]


def half_window(valleys: Sequence[Valley], step: float) -> int:
    """Return the half window, in steps of the ladder, with the least expected error of N_opt far out.

    error² = (rho/2 · K)² + FAR · sigma² / (2b)² / S,   K = sum z⁴ / sum z², S = sum z² of three sizes at ±R and 0

    b is half the curvature, and sigma is measured about parabolas within R: what they cannot follow widens an interval
    as noise does. It is no less than the noise about polynomials of degree 4 through all sizes.
    """
    return _best_half(tuple(valleys), step)


@lru_cache(maxsize=1000)  # every replay of a plan decides it again, by the same valleys
def _best_half(valleys: tuple[Valley, ...], step: float) -> int:
    wide = [v for v in valleys if v.status == "interior" and len(np.unique(v.params)) > 5]
    left = [(_left_over(v), len(v.loss) - 5) for v in wide]
    df = sum(n for _, n in left)
    if df < FEW_DF:
        return STEPS[0]
    noise = math.sqrt(sum(float(r @ r) for r, _ in left) / df)
    bent = _skew([fit_polynomial(v.params, v.loss, np.ones(len(v.loss)), degree=3) for v in wide], noise)
    if bent is None:
        return STEPS[0]
    square, b = bent
    errors = []
    for steps in STEPS:
        decades = steps * math.log10(step)
        curves = [_parabola(v, step ** (steps + 0.5)) for v in wide]
        more = sum(len(c.residuals) - c.num_coefficients for c in curves)
        about = math.sqrt(sum(float(c.residuals @ c.residuals) for c in curves) / more) if more else 0.0
        sigma = max(noise, about)
        errors.append(square / 4 * decades**4 + FAR * (sigma / (2 * b)) ** 2 / (2 * decades**2))
    return STEPS[int(np.argmin(errors))]


def _parabola(valley: Valley, reach: float) -> Polynomial:
    ones = np.ones(len(valley.loss))
    used = within_reach(valley.params, valley.loss, ones, reach)
    return fit_polynomial(valley.params[used], valley.loss[used], ones[used])


def _left_over(valley: Valley) -> Floats:
    """Return what a polynomial of degree 4 in log N leaves of the losses."""
    z = np.log10(valley.params / np.median(valley.params))
    design = np.vander(z, 5)
    fitted: Floats = design @ np.linalg.lstsq(design, valley.loss, rcond=None)[0]
    return valley.loss - fitted


def _skew(curves: Sequence[Polynomial], noise: float) -> tuple[float, float] | None:
    """Return the expected square of rho, and the least b, of loss = b·(z² + rho·z³) about minima; None without one.

    1) a cubic a·z³ + b·z² about its centre has b + 3a·z0 about its minimum z0, rho_i = a / b with the variance v_i
    2) precision mean m of the rho_i and its variance v; with the prior 0 ± SKEW_SD and s = SKEW_SD² / (SKEW_SD² + v)
       the expected square is (s·m)² + s·v
    """
    found = []
    for curve in curves:
        a, b = curve.coefficients[:2]
        bend = b + 3 * a * (curve.vertex - curve.centre)
        if bend > 0:
            found.append((a / bend, (noise / bend) ** 2 * float(curve.solver[0] @ curve.solver[0]), bend))
    if not found:
        return None
    each, variances, bends = np.array(found, dtype=np.float64).T
    precision = 1 / np.maximum(variances, 1e-30)
    mean, variance = float(precision @ each / precision.sum()), float(1 / precision.sum())
    shrunk = SKEW_SD**2 / (SKEW_SD**2 + variance)
    return (shrunk * mean) ** 2 + shrunk * variance, float(bends.min())
