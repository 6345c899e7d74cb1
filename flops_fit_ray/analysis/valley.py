"""One budget's loss curve over log size (Hoffmann et al. 2022, section 3.2), and whether it has a minimum.

A minimum outside the measured sizes is no optimum. It is named, and never used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats, Ints
from flops_fit_ray.errors import FitError

ValleyStatus = Literal["interior", "edge", "concave", "too_few"]
CurveName = Literal["parabola", "cubic", "akima"]

FEWEST: dict[CurveName, int] = {"parabola": 3, "cubic": 4, "akima": 5}  # distinct sizes
AKIMA_GRID = 513
FLAT = 1e-9  # relative spread of losses, below which they are one number


class Curve(Protocol):
    """A loss curve over x = log10 size."""

    @property
    def x_range(self) -> tuple[float, float]:
        """The smallest and the largest measured x."""
        ...

    def at(self, x: Floats) -> Floats:
        """Loss at x."""
        ...

    def minima(self, scatter: Floats) -> tuple[Floats, Floats]:
        """x and loss of the minimum (draws,) after adding `scatter` (draws, points) to the losses; NaN without one."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Polynomial:
    """loss = a·z³ + b·z² + c·z + d with z = x - centre; a parabola has a = 0.

    `solver` maps losses to (a, b, c, d); it is kept because the bootstrap applies it to many losses at once.
    """

    centre: float
    coefficients: Floats  # (4,)
    solver: Floats  # (4, points)
    design: Floats  # (points, 4)
    residuals: Floats  # (points,)
    x_range: tuple[float, float]

    @property
    def num_coefficients(self) -> int:
        """3 or 4."""
        return int((self.solver != 0).any(axis=1).sum())

    @property
    def leverage(self) -> Floats:
        """Diagonal of the hat matrix (points,)."""
        return np.asarray(np.einsum("ip,pi->p", self.solver, self.design), dtype=np.float64)

    @property
    def vertex(self) -> float:
        """x of the minimum; NaN where there is none."""
        return float(self.minima(np.zeros((1, len(self.residuals))))[0][0])

    @property
    def minimum(self) -> float:
        """The loss at the vertex."""
        return float(self.minima(np.zeros((1, len(self.residuals))))[1][0])

    def at(self, x: Floats) -> Floats:
        """The curve's loss at x = log10 of N or D."""
        return np.asarray(np.polyval(self.coefficients, x - self.centre), dtype=np.float64)

    def minima(self, scatter: Floats) -> tuple[Floats, Floats]:
        """x and loss of the minimum, as `Curve` says.

        dL/dz = 3a·z² + 2b·z + c = 0; the root with positive curvature is z = -c / (b + sqrt(b² - 3ac)), also for a = 0.
        """
        a, b, c, d = self.coefficients[:, None] + self.solver @ scatter.T
        with np.errstate(invalid="ignore", divide="ignore"):
            below = b + np.sqrt(b * b - 3 * a * c)
            z = np.where(below > 0, -c / below, np.nan)
        return self.centre + z, d + z * (c + z * (b + z * a))


def fit_polynomial(size: Floats, loss: Floats, weights: Floats, degree: int = 2) -> Polynomial:
    """Weighted least squares of loss over log10 size; all (points,).

    Raises:
        FitError: too few distinct sizes.
    """
    if len(np.unique(size)) <= degree:
        raise FitError(f"a curve of degree {degree} needs {degree + 1} distinct sizes, not {len(np.unique(size))}")
    x = np.log10(size)
    centre = float(x.mean())
    design = np.vander(x - centre, 4)
    root = np.sqrt(weights)
    solver = np.zeros((4, len(x)))
    solver[3 - degree :] = np.linalg.pinv(design[:, 3 - degree :] * root[:, None]) * root
    coefficients = solver @ loss
    return Polynomial(
        centre=centre,
        coefficients=coefficients,
        solver=solver,
        design=design,
        residuals=loss - design @ coefficients,
        x_range=(float(x.min()), float(x.max())),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Akima:
    """Akima's interpolation through the mean loss of every size (Porian et al. 2024, appendix B)."""

    x: Floats  # distinct, increasing
    mean: Floats  # loss at x
    pick: Floats  # (x, points): averages the points of each size

    @property
    def x_range(self) -> tuple[float, float]:
        """The measured sizes."""
        return float(self.x[0]), float(self.x[-1])

    def at(self, x: Floats) -> Floats:
        """Loss at x."""
        return self._through(self.mean, x)

    def minima(self, scatter: Floats) -> tuple[Floats, Floats]:
        """The lowest point of a fine grid, sharpened by the parabola through its neighbours; an end is no minimum."""
        grid = np.linspace(*self.x_range, AKIMA_GRID)
        values = self._through(self.mean[:, None] + self.pick @ scatter.T, grid)
        lowest = values.argmin(axis=0)
        inside = (lowest > 0) & (lowest < AKIMA_GRID - 1)
        i, draw = np.clip(lowest, 1, AKIMA_GRID - 2), np.arange(len(scatter))
        left, here, right = values[i - 1, draw], values[i, draw], values[i + 1, draw]
        bend = left - 2 * here + right
        shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1), 0.0)
        x = grid[i] + shift * (grid[1] - grid[0])
        return np.where(inside, x, np.nan), np.where(inside, here - 0.25 * (left - right) * shift, np.nan)

    def _through(self, loss: Floats, x: Floats) -> Floats:
        from scipy.interpolate import Akima1DInterpolator

        return np.asarray(Akima1DInterpolator(self.x, loss)(x), dtype=np.float64)


def fit_akima(size: Floats, loss: Floats) -> Akima:
    """The interpolation over log10 size; sizes that occur more than once count by their mean."""
    distinct, which = np.unique(size, return_inverse=True)
    pick = (which[None, :] == np.arange(len(distinct))[:, None]).astype(np.float64)
    pick /= pick.sum(axis=1, keepdims=True)
    return Akima(x=np.log10(distinct), mean=pick @ loss, pick=pick)


@dataclass(frozen=True, kw_only=True, eq=False)
class Valley:
    """One budget: its points by increasing N, the curves over N and D, and the verdict."""

    budget: float  # C asked for
    flops: float  # mean of what was really spent; this is the C that laws are fitted to
    index: Ints  # of the points in the sweep
    params: Floats
    tokens: Floats
    loss: Floats
    used: Bools  # inside the window that was fitted
    status: ValleyStatus
    reason: str  # why there is no optimum, and the way out; empty for an interior minimum
    curve: CurveName
    smooth: Polynomial | None  # over N: what noise is measured about; an interpolation leaves none
    over_params: Curve | None
    over_tokens: Curve | None  # fitted apart: C = 6·N·D is not taken for granted

    @cached_property
    def params_opt(self) -> float:
        """N at the minimum."""
        return float(10 ** self._minimum(self.over_params)[0])

    @cached_property
    def tokens_opt(self) -> float:
        """D at the minimum."""
        return float(10 ** self._minimum(self.over_tokens)[0])

    @cached_property
    def loss_opt(self) -> float:
        """Loss at the minimum over N."""
        return self._minimum(self.over_params)[1]

    def _minimum(self, curve: Curve | None) -> tuple[float, float]:
        if self.status != "interior" or curve is None:
            raise FitError(f"budget {self.budget:g} has no optimum: {self.reason}")
        x, loss = curve.minima(np.zeros((1, int(self.used.sum()))))
        return float(x[0]), float(loss[0])


def fit_valley(
    budget: float,
    index: Ints,
    flops: Floats,
    params: Floats,
    tokens: Floats,
    loss: Floats,
    weights: Floats,
    *,
    curve: CurveName = "parabola",
    window: int | None = None,
) -> Valley:
    """The valley of one budget. It always returns: what is missing is in `status` and `reason`.

    `window` keeps the so many sizes that are nearest, in log N, to the size of the lowest loss.
    """
    order = np.argsort(params, kind="stable")
    index, params, tokens, loss, weights = index[order], params[order], tokens[order], loss[order], weights[order]
    used = _window(params, loss, window)
    n, d, y, w = params[used], tokens[used], loss[used], weights[used]
    needed = FEWEST[curve]
    smooth: Polynomial | None = None
    over_params: Curve | None = None
    over_tokens: Curve | None = None
    status: ValleyStatus
    if min(len(np.unique(n)), len(np.unique(d))) < needed:
        status, reason = "too_few", f"{len(np.unique(n))} finished size(s), and a valley needs at least {needed}"
    else:
        over_params, over_tokens = (_fit_curve(curve, size, y, w) for size in (n, d))
        flat = float(np.ptp(y)) <= FLAT * float(np.abs(y).max())
        smooth = over_params if isinstance(over_params, Polynomial) else fit_polynomial(n, y, w)
        status, larger = ("concave", False) if flat else _verdict(over_params)
        if status == "interior":
            status = "interior" if _verdict(over_tokens)[0] == "interior" else "edge"
        reason = "" if status == "interior" else "all losses are alike" if flat else _reason(status, larger, n, y)
    return Valley(
        budget=budget,
        flops=float(flops.mean()) if len(flops) else budget,
        index=index,
        params=params,
        tokens=tokens,
        loss=loss,
        used=used,
        status=status,
        reason=reason,
        curve=curve,
        smooth=smooth,
        over_params=over_params,
        over_tokens=over_tokens,
    )


def _window(params: Floats, loss: Floats, window: int | None) -> Bools:
    sizes = np.unique(params)
    if window is None or window >= len(sizes):
        return np.ones(len(params), dtype=bool)
    distance = np.abs(np.log(sizes) - np.log(params[int(np.argmin(loss))]))
    near = sizes[np.argsort(distance, kind="stable")[:window]]
    return np.isin(params, near)


def _fit_curve(curve: CurveName, size: Floats, loss: Floats, weights: Floats) -> Curve:
    if curve == "akima":
        return fit_akima(size, loss)
    return fit_polynomial(size, loss, weights, degree=3 if curve == "cubic" else 2)


def _verdict(curve: Curve) -> tuple[ValleyStatus, bool]:
    """Whether the minimum lies between the measured sizes, and if not, whether it would be at larger ones."""
    low, high = curve.x_range
    if isinstance(curve, Polynomial):
        x = curve.vertex
        if np.isnan(x):
            return "concave", False
        return ("interior" if low < x < high else "edge"), x > curve.centre
    assert isinstance(curve, Akima)
    x = float(curve.minima(np.zeros((1, curve.pick.shape[1])))[0][0])
    return ("edge" if np.isnan(x) else "interior"), bool(curve.mean.argmin() > len(curve.x) / 2)


def _reason(status: ValleyStatus, larger: bool, params: Floats, loss: Floats) -> str:
    lowest, ends = int(np.argmin(loss)), (0, len(params) - 1)
    if status == "concave" and lowest not in ends:
        return "the losses do not form a valley (the curve has no minimum): noise, or a bad run among them"
    # A concave curve has no minimum to point at, but its lowest loss is at one end
    larger = lowest == ends[1] if status == "concave" else larger
    side, end = ("larger", params[-1]) if larger else ("smaller", params[0])
    return f"the minimum is not between the sizes that were run; add sizes {side} than N = {end:.3g}"
