"""The loss curve of one budget over log size, and its minimum (Hoffmann et al. 2022, section 3.2).

A minimum outside the measured sizes is not an optimum: it is reported, and never used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.arrays import Bools, Floats, Ints
from flops_fit_ray.analysis.window import nearest_sizes, within_reach
from flops_fit_ray.errors import FitError
from flops_fit_ray.fit_options import CurveName, ValleyStatus

MIN_DISTINCT_SIZES: dict[CurveName, int] = {"parabola": 3, "skewed": 3, "cubic": 4, "akima": 5}  # distinct sizes
AKIMA_GRID = 513
FLAT = 1e-9  # relative range of losses, below which they are equal


class Curve(Protocol):
    """A loss curve over x = log10 size."""

    @property
    def x_range(self) -> tuple[float, float]:
        """The smallest and the largest measured x."""
        ...

    def at(self, x: Floats) -> Floats:
        """Loss at x."""
        ...

    def through(self, values: Floats) -> Curve:
        """The curve of the same kind through other values (points,) of the same runs."""
        ...

    def minima(self, noise: Floats) -> tuple[Floats, Floats]:
        """x and loss (draws,) of the minimum with `noise` (draws, points) added to the losses; NaN without one."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseTerms:
    """Residuals about one curve: their sum of squares over `df` estimates the variance of a loss."""

    residuals: Floats  # (points,)
    df: float
    leverage: Floats  # (points,): the variance of a residual is 1 - leverage times that of a loss


@dataclass(frozen=True, kw_only=True, eq=False)
class Polynomial:
    """loss = a·z³ + b·z² + c·z + d with z = x - centre; a parabola has a = 0.

    `solver` maps losses to (a, b, c, d); the fit is linear in the losses, so the bootstrap applies it to many at once.
    """

    centre: float
    coefficients: Floats  # (4,)
    solver: Floats  # (4, points)
    design: Floats  # (points, 4)
    residuals: Floats  # (points,)
    x_range: tuple[float, float]
    skew: float = 0.0  # rho of `_skew`, contained in the coefficients

    @property
    def num_coefficients(self) -> int:
        """Number of fitted coefficients: 3 for a parabola, 4 for a cubic."""
        return int((self.solver != 0).any(axis=1).sum())

    @property
    def leverage(self) -> Floats:
        """Diagonal (points,) of the hat matrix, design @ solver."""
        return np.asarray(np.einsum("ip,pi->p", self.solver, self.design), dtype=np.float64)

    @property
    def vertex(self) -> float:
        """x of the minimum; NaN where there is none."""
        return float(self.minima(np.zeros((1, len(self.residuals))))[0][0])

    @property
    def minimum(self) -> float:
        """Loss at the vertex; NaN where there is none."""
        return float(self.minima(np.zeros((1, len(self.residuals))))[1][0])

    def curvature(self, x: float) -> float:
        """Second derivative over x."""
        return float(6 * self.coefficients[0] * (x - self.centre) + 2 * self.coefficients[1])

    @property
    def cubic(self) -> Floats:
        """z³ less its own curve, (points,): what this curve cannot follow of a skewed valley."""
        return np.asarray(self.design[:, 0] - self.design @ (self.solver @ self.design[:, 0]), dtype=np.float64)

    def at(self, x: Floats) -> Floats:
        """The curve's loss at x = log10 of N or D."""
        return np.asarray(np.polyval(self.coefficients, x - self.centre), dtype=np.float64)

    def through(self, values: Floats) -> Polynomial:
        """The polynomial through other values (points,) of the same runs, with the same weights."""
        coefficients = self.solver @ values
        plain = replace(self, coefficients=coefficients, residuals=values - self.design @ coefficients, skew=0.0)
        return plain.skewed(self.skew)

    def skewed(self, rho: float) -> Polynomial:
        """The parabola with rho·b·(z³ less its own curve) added, b its curvature; of a parabola without skew."""
        strength = rho * max(float(self.coefficients[1]), 0.0)
        coefficients = self.coefficients + strength * self._beyond
        return replace(self, coefficients=coefficients, residuals=self.residuals - strength * self.cubic, skew=rho)

    @property
    def _beyond(self) -> Floats:
        """Coefficients (4,) of z³ less its own curve."""
        beyond = -self.solver @ self.design[:, 0]
        beyond[0] += 1
        return np.asarray(beyond)

    def minima(self, noise: Floats, skew: Floats | None = None) -> tuple[Floats, Floats]:
        """x and loss of the minimum, as in `Curve.minima`; `skew` (draws,) adds skew·b·(z³ less its own curve).

        1) dL/dz = 3a·z² + 2b·z + c = 0 has the roots z = (-b ± sqrt(b² - 3ac)) / 3a
        2) at the root with + the curvature, 6a·z + 2b = 2·sqrt(b² - 3ac), is positive: the minimum
        3) multiplied by b + sqrt(...), it is z = -c / (b + sqrt(b² - 3ac)), which holds for a = 0 too: -c / 2b
        """
        a, b, c, d = coefficients = self.coefficients[:, None] + self.solver @ noise.T
        if skew is not None:
            a, b, c, d = coefficients + self._beyond[:, None] * (skew * max(self.coefficients[1], 0.0))
        with np.errstate(invalid="ignore", divide="ignore"):
            denominator = b + np.sqrt(b * b - 3 * a * c)
            z = np.where(denominator > 0, -c / denominator, np.nan)
        return self.centre + z, d + z * (c + z * (b + z * a))


def fit_polynomial(size: Floats, loss: Floats, weights: Floats, degree: int = 2) -> Polynomial:
    """Weighted least squares of loss over log10 size; all (points,). solver = pinv(sqrt(W)·X)·sqrt(W).

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
        """The smallest and the largest measured x."""
        return float(self.x[0]), float(self.x[-1])

    def at(self, x: Floats) -> Floats:
        """Loss at x."""
        return self._interpolate(self.mean, x)

    def through(self, values: Floats) -> Akima:
        """The interpolation through other values (points,) of the same runs."""
        return replace(self, mean=self.pick @ values)

    def minima(self, noise: Floats) -> tuple[Floats, Floats]:
        """x and loss of the minimum, as in `Curve.minima`; an end of the range is not a minimum.

        1) the lowest value m of a fine grid, with neighbours l and r at distance 1
        2) the vertex of the parabola through l, m, r: shift = (l - r) / 2(l - 2m + r), value = m - (l - r)·shift / 4
        """
        grid = np.linspace(*self.x_range, AKIMA_GRID)
        values = self._interpolate(self.mean[:, None] + self.pick @ noise.T, grid)
        lowest = values.argmin(axis=0)
        inside = (lowest > 0) & (lowest < AKIMA_GRID - 1)
        i, draw = np.clip(lowest, 1, AKIMA_GRID - 2), np.arange(len(noise))
        left, middle, right = values[i - 1, draw], values[i, draw], values[i + 1, draw]
        curvature = left - 2 * middle + right
        shift = np.where(curvature > 0, 0.5 * (left - right) / np.where(curvature > 0, curvature, 1), 0.0)
        x = grid[i] + shift * (grid[1] - grid[0])
        return np.where(inside, x, np.nan), np.where(inside, middle - 0.25 * (left - right) * shift, np.nan)

    def noise_about(self, loss: Floats) -> NoiseTerms:
        """Estimate the noise of the points' losses (points,) about the curve.

        An interpolation has no residuals, so each size i between the ends is predicted without itself:

        1) r_i = mean_i - akima_-i(x_i), whose gradient over the means is the row g_i = e_i - w_i
        2) cov(r) = sigma²·V, V = g·diag(1 / points of the size)·gT, so e_i = r_i / sqrt(V_ii) has variance sigma²
        3) the e_i are correlated: mean e² has (number of e)² / sum rho² degrees of freedom (Satterthwaite 1946)
        4) points of one size add their own scatter about their mean, with points - sizes degrees of freedom
        """
        sizes, points = self.pick.shape
        per_size = (self.pick > 0).sum(axis=1)
        step = 1e-4 * float(np.ptp(self.mean)) + 1e-12
        inner = np.arange(1, sizes - 1)
        r, g = np.empty(len(inner)), np.zeros((len(inner), sizes))
        for row, i in enumerate(inner):
            rest = np.delete(np.arange(sizes), i)
            moves = step * np.concatenate([np.zeros((1, sizes - 1)), np.eye(sizes - 1), -np.eye(sizes - 1)])
            there = _akima(self.x[rest], (self.mean[rest] + moves).T, self.x[i : i + 1])[0]
            r[row], g[row, i] = self.mean[i] - there[0], 1.0
            g[row, rest] = -(there[1:sizes] - there[sizes:]) / (2 * step)
        v = (g / per_size) @ g.T
        scale = np.sqrt(np.diag(v))
        free = len(inner) ** 2 / float(np.square(v / np.outer(scale, scale)).sum())
        shifts = np.zeros(sizes)
        shifts[inner] = r / scale * np.sqrt(free / len(inner) / per_size[inner])
        which = self.pick.argmax(axis=0)
        df = points - sizes + free
        leverage = np.full(points, 1 - df / points)
        return NoiseTerms(residuals=loss - self.mean[which] + shifts[which], df=df, leverage=leverage)

    def _interpolate(self, loss: Floats, x: Floats) -> Floats:
        return _akima(self.x, loss, x)


def _akima(x: Floats, loss: Floats, at: Floats) -> Floats:
    from scipy.interpolate import Akima1DInterpolator

    return np.asarray(Akima1DInterpolator(x, loss)(at), dtype=np.float64)


def fit_akima(size: Floats, loss: Floats) -> Akima:
    """Interpolate loss over log10 size, through the mean loss of a size that occurs more than once."""
    distinct, which = np.unique(size, return_inverse=True)
    pick = (which[None, :] == np.arange(len(distinct))[:, None]).astype(np.float64)
    pick /= pick.sum(axis=1, keepdims=True)
    return Akima(x=np.log10(distinct), mean=pick @ loss, pick=pick)


@dataclass(frozen=True, kw_only=True, eq=False)
class Valley:
    """One budget: its points by increasing N, the curves over N and D, and the status of its minimum."""

    budget: float  # nominal C
    flops: float  # mean C of the points: the C that laws are fitted to
    index: Ints  # of the points in the sweep
    params: Floats
    tokens: Floats
    loss: Floats
    used: Bools  # inside the window that was fitted
    status: ValleyStatus
    reason: str  # of a missing optimum, and the way out; empty for an interior minimum
    curve: CurveName
    smooth: Polynomial | None  # over N: the curve about which outliers are measured, also where `curve` interpolates
    over_params: Curve | None
    over_tokens: Curve | None  # fitted separately: C = 6·N·D is not assumed

    @property
    def skew(self) -> float:
        """Skew of the curve over N, that of all budgets; 0 of other curves."""
        return self.over_params.skew if isinstance(self.over_params, Polynomial) else 0.0

    @property
    def noise_terms(self) -> NoiseTerms:
        """Residuals of the used points about the curve over N, which must have been fitted."""
        if isinstance(self.over_params, Akima):
            return self.over_params.noise_about(self.loss[self.used])
        assert isinstance(self.over_params, Polynomial)
        curve = self.over_params
        df = len(curve.residuals) - curve.num_coefficients
        return NoiseTerms(residuals=curve.residuals, df=df, leverage=curve.leverage)

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
    reach: float | None = None,
    skew: float = 0.0,
) -> Valley:
    """Fit the valley of one budget; `status` and `reason` explain a missing optimum.

    Args:
        window: number of sizes used: those nearest, in log N, to the size of the lowest loss; None uses all.
        reach: sizes within this factor of the minimum are used, three at least; None uses all.
        skew: of the curve "skewed" over N; over D it is the opposite.
    """
    order = np.argsort(params, kind="stable")
    index, params, tokens, loss, weights = index[order], params[order], tokens[order], loss[order], weights[order]
    used = nearest_sizes(params, loss, window) if reach is None else within_reach(params, loss, weights, reach)
    n, d, y, w = params[used], tokens[used], loss[used], weights[used]
    needed = MIN_DISTINCT_SIZES[curve]
    smooth: Polynomial | None = None
    over_params: Curve | None = None
    over_tokens: Curve | None = None
    status: ValleyStatus
    if min(len(np.unique(n)), len(np.unique(d))) < needed:
        status, reason = (
            "too_few",
            f"{fmt.counted(len(np.unique(n)), 'finished size')}, and a valley needs at least {needed}",
        )
    else:
        over_params, over_tokens = (fit_curve(curve, size, y, w, rho) for size, rho in ((n, skew), (d, -skew)))
        flat = float(np.ptp(y)) <= FLAT * float(np.abs(y).max())
        smooth = over_params if isinstance(over_params, Polynomial) else fit_polynomial(n, y, w)
        status, larger = ("concave", False) if flat else _minimum_status(over_params)
        if status == "interior":
            status = "interior" if _minimum_status(over_tokens)[0] == "interior" else "edge"
        reason = (
            "" if status == "interior" else "all losses are equal" if flat else _missing_reason(status, larger, n, y)
        )
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


def fit_curve(curve: CurveName, size: Floats, loss: Floats, weights: Floats, skew: float = 0.0) -> Curve:
    """Fit the curve of this name; arrays (points,)."""
    if curve == "akima":
        return fit_akima(size, loss)
    fitted = fit_polynomial(size, loss, weights, degree=3 if curve == "cubic" else 2)
    return fitted.skewed(skew) if curve == "skewed" else fitted


def _minimum_status(curve: Curve) -> tuple[ValleyStatus, bool]:
    """Status of the minimum, and True if it lies at larger sizes; `interior` means between the measured ones."""
    low, high = curve.x_range
    if isinstance(curve, Polynomial):
        x = curve.vertex
        if np.isnan(x):
            return "concave", False
        return ("interior" if low < x < high else "edge"), x > curve.centre
    assert isinstance(curve, Akima)
    x = float(curve.minima(np.zeros((1, curve.pick.shape[1])))[0][0])
    return ("edge" if np.isnan(x) else "interior"), bool(curve.mean.argmin() > len(curve.x) / 2)


def _missing_reason(status: ValleyStatus, larger: bool, params: Floats, loss: Floats) -> str:
    lowest, ends = int(np.argmin(loss)), (0, len(params) - 1)
    if status == "concave" and lowest not in ends:
        return "the fitted curve has no minimum: noise, or a bad run among them; add seeds or sizes"
    # A concave curve has no minimum, but its lowest loss is at one end
    larger = lowest == ends[1] if status == "concave" else larger
    side, end = ("larger", params[-1]) if larger else ("smaller", params[0])
    return f"the minimum is not between the sizes that were run; add sizes {side} than N = {end:.3g}"
