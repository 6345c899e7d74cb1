"""Searches for surfaces: the problem in units of its own, its starting points, and the ends of E."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.surface import _huber as huber
from flops_fit_ray.analysis.surface import _squared as squared
from flops_fit_ray.analysis.surface._newton import SearchResult
from flops_fit_ray.analysis.surface._seeds import TABLE, seeds
from flops_fit_ray.analysis.surface._value import Surfaces
from flops_fit_ray.fit_options import SurfaceOptions

PATIENCE = 2  # iterations left to the other starts once the lowest has converged
WIDE_DELTA = 1e-2  # the starts first converge on a smoother loss
FINAL = 1e-15  # tolerance of the lowest end: the answer is the same in any unit to nine digits
LOW_E = 0.05  # share of the smallest loss below which E may stall on its way to 0: ln E has no end there
STARTING_K = (1.0, 0.5, 2.0)
NAMES = ("A", "alpha", "B", "beta", "E", "k")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaled:
    """The problem in x = ln N and y = ln D, centred, and L over its geometric mean: no unit can reach a bound."""

    x: Floats
    y: Floats
    x_mean: float
    y_mean: float
    log_unit: float  # mean of ln L
    options: SurfaceOptions

    @property
    def free(self) -> Bools:
        """True (P,) for each of a, alpha, b, beta, e (and q = ln k of the coupled law) that is not pinned."""
        names = NAMES if self.options.form == "coupled" else NAMES[:5]
        return np.array([name not in self.options.pins for name in names])

    def huber_problem(self, delta: float) -> huber.HuberProblem:
        return huber.HuberProblem(x=self.x, y=self.y, delta=delta, undertuned=self.options.undertuned, free=self.free)

    def without_e(self, delta: float) -> huber.HuberProblem:
        free = self.free
        free[4] = False
        return replace(self.huber_problem(delta), free=free)

    def projection(self) -> squared.Projection:
        e = self.options.pins.get("E")
        pinned = None if e is None else e / float(np.exp(self.log_unit))
        return squared.Projection(x=self.x, y=self.y, pinned_e=pinned, free=self.free[[1, 3]])

    def surfaces(self, theta: Floats) -> Surfaces:
        """Convert theta (surfaces, P) to surfaces: A/N^alpha = exp(a - alpha·(ln N - x_mean))·unit^(1/k)."""
        a, alpha, b, beta, e = theta[:, :5].T
        k = np.exp(theta[:, 5]) if theta.shape[1] == 6 else np.ones(len(theta))
        unit = self.log_unit / k
        return Surfaces(log_e=e + self.log_unit, log_a=a + alpha * self.x_mean + unit,
                        log_b=b + beta * self.y_mean + unit, alpha=alpha, beta=beta, k=k)  # fmt: skip

    def theta(self, surfaces: Surfaces) -> Floats:
        """Convert surfaces to theta (surfaces, P): the inverse of `surfaces`."""
        s, unit = surfaces, self.log_unit / surfaces.k
        columns = [s.log_a - s.alpha * self.x_mean - unit, s.alpha, s.log_b - s.beta * self.y_mean - unit, s.beta,
                   s.log_e - self.log_unit]  # fmt: skip
        return np.stack(columns if self.options.form == "additive" else [*columns, np.log(s.k)], axis=1)


def scaled_problem(points: Points, options: SurfaceOptions) -> Scaled:
    x, y, unit = np.log(points.params), np.log(points.tokens), float(np.log(points.loss).mean())
    return Scaled(x=x - x.mean(), y=y - y.mean(), x_mean=float(x.mean()), y_mean=float(y.mean()), log_unit=unit,
                   options=options)  # fmt: skip


def starts(scaled: Scaled, loss: Floats) -> Floats:
    pins = scaled.options.pins
    alphas, betas = (np.array([pins[n]]) if n in pins else TABLE for n in ("alpha", "beta"))
    theta = seeds(scaled.x, scaled.y, loss, alphas, betas)
    if "E" in pins:
        theta[:, 4] = np.log(pins["E"]) - scaled.log_unit
    if scaled.options.form == "additive":
        return theta
    # (A/N^alpha)^k falls as A^k/N^(alpha·k): the same slopes for every k, where the exponents are not pinned
    rows = []
    for k in STARTING_K:
        row = theta.copy()
        row[:, scaled.free[:5] & [True, True, True, True, False]] /= k
        rows.append(np.column_stack([row, np.full(len(row), np.log(k))]))
    return np.concatenate(rows)


def search_huber(scaled: Scaled, start: Floats, log_loss: Floats, w: Floats) -> tuple[SearchResult, int]:
    """Search from all starts by the Huber loss; return all ends, the lowest polished, and the index of that."""
    delta = scaled.options.delta
    problem = scaled.huber_problem(delta)
    # 1) all starts, wide delta  2) the delta wanted, until the lowest converges  3) the lowest to the end
    wide = huber.minimise(scaled.huber_problem(max(WIDE_DELTA, delta)), start, log_loss, w, 1e-6, 8)
    found = huber.minimise(problem, wide.theta, log_loss, w, 1e-9, 30, PATIENCE)
    best = int(np.argmin(found.objective))
    _put(found, best, huber.minimise(problem, found.theta[best : best + 1], log_loss, w, FINAL))
    # 4) where ln E runs away to minus infinity, or may have stopped on that way: E = 0 outright, from every start
    if scaled.free[4] and (not found.converged[best] or found.theta[best, 4] < _low_e(log_loss)):
        zero = found.theta.copy()
        zero[:, 4] = -np.inf
        nothing = huber.minimise(scaled.without_e(delta), zero, log_loss, w, 1e-9, 30, PATIENCE)
        lowest = int(np.argmin(nothing.objective))
        end = huber.minimise(scaled.without_e(delta), nothing.theta[lowest : lowest + 1], log_loss, w, FINAL)
        if end.objective[0] < found.objective[best]:
            _put(found, best, end)
            # 5) where the objective falls again as E grows from 0, the minimum is on that side
            back = end.theta.copy()
            back[:, 4] = huber.LOWER[4]
            if huber.derivatives(problem, back, log_loss[None], w[None])[1][0, 4] < 0:
                back[:, 4] = _low_e(log_loss)
                again = huber.minimise(problem, back, log_loss, w, FINAL)
                if again.objective[0] < found.objective[best]:
                    _put(found, best, again)
    return found, best


def search_squared(scaled: Scaled, start: Floats, loss: Floats, w: Floats) -> tuple[SearchResult, int]:
    """Search from all starts by the squared error; return as `search_huber`."""
    found = squared.minimise_squared(scaled.projection(), start, loss, w)
    best = int(np.argmin(found.objective))
    _put(found, best, squared.minimise_squared(scaled.projection(), found.theta[best : best + 1], loss, w, FINAL))
    return replace(found, theta=theta_of(found)), best


def _put(found: SearchResult, row: int, better: SearchResult) -> None:
    found.theta[row], found.converged[row] = better.theta[0], better.converged[0]
    for values, new in zip(found.known, better.known, strict=True):
        values[row] = new[0]


def _low_e(log_loss: Floats) -> float:
    return float(np.log(LOW_E) + log_loss.min())


def refit_huber(scaled: Scaled, theta: Floats, log_loss: Floats, weights: Floats, tolerance: float) -> SearchResult:
    """Search by the Huber loss, one problem a row; E = 0 outright where ln E runs away, as `search_huber`."""
    problem, low = scaled.huber_problem(scaled.options.delta), _low_e(log_loss)
    theta = theta.copy()
    if scaled.free[4]:
        theta[:, 4] = np.maximum(theta[:, 4], low)
    found = huber.minimise(problem, theta, log_loss, weights, tolerance)
    rows = np.flatnonzero(~found.converged | (found.theta[:, 4] < low)) if scaled.free[4] else np.empty(0, np.int64)
    if len(rows):
        z, w = (values if values.ndim == 1 else values[rows] for values in (log_loss, weights))
        zero = found.theta[rows]
        zero[:, 4] = -np.inf
        nothing = huber.minimise(scaled.without_e(scaled.options.delta), zero, z, w, tolerance)
        lower = nothing.objective <= found.objective[rows]
        found.theta[rows[lower]] = nothing.theta[lower]
        found.converged[rows[lower]] = nothing.converged[lower]
    return found


def theta_of(projected: SearchResult) -> Floats:
    """Theta (rows, 5) in the order of `huber`; NaN where a coefficient has no logarithm, minus infinity where E = 0."""
    e, a, b = projected.known[1].T
    alpha, beta = projected.theta.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([np.log(a), alpha, np.log(b), beta, np.log(e)], axis=1)
