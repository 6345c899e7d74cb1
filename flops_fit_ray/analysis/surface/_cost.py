"""The cost of a token, C / D = f(N): a power of N, or a curve where the sizes show one.

In small models f is no power of N: heads, norms and attention weigh less the larger the model is. With widths
d ~ N^1/2, f / N is a polynomial in N^-1/2 (where embeddings weigh most, d ~ N, in N^-1): beyond all sizes f tends to N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Floats

SAME = 1e-3  # relative; a power law that is nowhere off by more is taken as it is
AGREES = 0.02  # between ln C/D of runs and of the same sizes as measured
CLEARLY = 0.8  # ratio of left-out errors below which a curve replaces the power law
MIN_SIZES = 5  # distinct sizes from which f may be curved
MAX_DEGREE = 4
POWERS = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)  # of 1 / N
NEWTON = 60  # steps at most; a dozen are usual
FAR = 60.0  # of ln N from the first guess, beyond which no optimum is looked for
LEAST_SLOPE = 0.2  # of ln f over ln N; a curve that falls below it between its sizes is no cost


@dataclass(frozen=True, kw_only=True, eq=False)
class CostCurve:
    """ln f(N) between `low` and `high` (of ln N); straight outside, or towards f ~ N where it has a `power`."""

    coefficients: Floats  # of z^0, z^1, ...
    power: float | None  # f / N is the polynomial, in z = exp(-power·(ln N - low)); None: ln f is, in z = ln N - low
    low: float
    high: float

    def at(self, log_n: Floats) -> tuple[Floats, Floats, Floats]:
        """Return ln f and its first and second derivative over ln N, all of the shape of `log_n`."""
        end = self.high if self.power is None else np.inf
        x = np.clip(log_n, self.low, end)
        value, slope, bend = self._inside(x)
        beyond = log_n - x
        return value + slope * beyond, slope, np.where(beyond == 0, bend, 0.0)

    def _inside(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        first = np.polynomial.Polynomial(self.coefficients)
        second, third = first.deriv(), first.deriv(2)
        if self.power is None:
            z = x - self.low
            return first(z), second(z), third(z)
        # ln f = ln N + ln g(z), dz/dx = -p·z: with q = z·g'/g the slope is 1 - p·q, and its derivative p²·z·(dq/dz)
        p = self.power
        z = np.exp(-p * (x - self.low))
        g, dg, ddg = first(z), second(z), third(z)
        return x + np.log(g), 1 - p * z * dg / g, p * p * z * ((dg + z * ddg) / g - z * (dg / g) ** 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class CostLaw:
    """The cost C = f(N)·D of an experiment, fitted to the FLOPs spent; 6·N·D is log_k = ln 6, n_exponent = 1.

    f(N) = k·N^n_exponent, or `curve` where there is one: `log_k` and `n_exponent` are then the nearest power law's.
    """

    log_k: float
    n_exponent: float
    scatter: float  # standard deviation of ln C about the law
    curve: CostCurve | None = None

    def per_token(self, log_n: Floats) -> tuple[Floats, Floats, Floats]:
        """Return ln f and its first and second derivative over ln N."""
        if self.curve is not None:
            return self.curve.at(log_n)
        return self.log_k + self.n_exponent * log_n, np.full_like(log_n, self.n_exponent), np.zeros_like(log_n)

    def flops_per_token(self, params: float) -> float:
        """Return f(N) at one N."""
        return float(np.exp(self.per_token(np.log([params]))[0][0]))

    def optimum(self, guess: Floats, right: Floats, alpha: Floats | float, beta: Floats | float) -> Floats:
        """Return ln N where h = alpha·ln N + beta·ln f + ln s - right is 0, s = dln f/dln N; all (surfaces,).

        By Newton, h' = alpha + beta·s + s'/s, within brackets.
        """
        x, low, high = guess.copy(), guess - FAR, guess + FAR
        for _ in range(NEWTON):
            value, slope, bend = self.per_token(x)
            h = alpha * x + beta * value + np.log(slope) - right
            low, high = np.where(h < 0, x, low), np.where(h < 0, high, x)
            step = h / (alpha + beta * slope + bend / slope)
            inside = (x - step >= low) & (x - step <= high)
            new = np.where(inside, x - step, (low + high) / 2)
            if not np.nanmax(np.abs(new - x), initial=0.0) > 1e-12 * FAR:
                return np.asarray(new)
            x = new
        return np.asarray(x)


def fit_cost_law(params: Floats, tokens: Floats, cost: Floats) -> CostLaw:
    """Least squares of ln(C/D) = ln k + c·ln N; arrays (points,). With one size only, c = 1."""
    x, y = np.log(params), np.log(cost / tokens)
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread if spread > 1e-12 else 1.0
    residuals = y - y.mean() - slope * centred
    return CostLaw(
        log_k=float(y.mean() - slope * x.mean()), n_exponent=slope, scatter=float(np.sqrt(np.mean(residuals**2)))
    )


def fit_token_cost(
    params: Floats, tokens: Floats, cost: Floats, measured: tuple[Floats, Floats] | None = None
) -> CostLaw:
    """Fit f(N) = C / D with its curvature, where there is one; arrays (points,).

    Args:
        measured: N and f of every size that was measured, also of those that were not run.
    """
    law = fit_cost_law(params, tokens, cost)
    curve = fit_cost_curve(*measured) if measured is not None else fit_cost_curve(params, cost / tokens)
    scatter = np.zeros(0) if curve is None else np.log(cost / tokens) - curve.at(np.log(params))[0]
    if measured is not None and len(scatter) and np.abs(scatter).max() > AGREES:  # measured by another rule
        return fit_token_cost(params, tokens, cost)
    if curve is None:
        return law
    return CostLaw(log_k=law.log_k, n_exponent=law.n_exponent, scatter=float(scatter.std()), curve=curve)


def fit_cost_curve(params: Floats, per_token: Floats) -> CostCurve | None:
    """Fit f(N) by the candidate with the least left-out error; None where a power law does.

    Candidates: polynomials of N^-p for f / N; where none of them predicts clearly better, of ln N for ln f.
    """
    log_n, which = np.unique(np.log(params), return_inverse=True)
    if len(log_n) < MIN_SIZES:
        return None
    y = np.bincount(which.reshape(-1), np.log(per_token)) / np.bincount(which.reshape(-1))
    low, high = float(log_n[0]), float(log_n[-1])
    straight = np.vander(log_n - low, 2, increasing=True)
    line, best = _least_squares(straight, y)
    if np.abs(straight @ line - y).max() <= SAME:
        return None
    found = None
    for degree in range(1, min(MAX_DEGREE, len(log_n) - 3) + 1):  # a higher degree has to earn its place
        tried: list[tuple[Floats, float, float | None]] = []
        for power in POWERS:  # f/N = sum c·z^j in relative error: the design over f/N, for a right-hand side of ones
            z = np.exp(-power * (log_n - low))
            design = np.vander(z, degree + 1, increasing=True) / np.exp(y - log_n)[:, None]
            tried.append((*_least_squares(design, np.ones_like(y)), power))
        if degree in (2, 3) and found is None:
            tried.append((*_least_squares(np.vander(log_n - low, degree + 1, increasing=True), y), None))
        curves = [(error, CostCurve(coefficients=c, power=power, low=low, high=high)) for c, error, power in tried]
        allowed = [(error, curve) for error, curve in curves if error < CLEARLY * best and _is_a_cost(curve)]
        if allowed:
            best, found = min(allowed, key=lambda pair: pair[0])
    return found


def _least_squares(design: Floats, right: Floats) -> tuple[Floats, float]:
    """Return the coefficients and the rms of the left-out errors r_i / (1 - h_i)."""
    q, r = np.linalg.qr(design)
    coefficients = np.linalg.solve(r, q.T @ right)
    leverage = np.minimum(np.einsum("pi,pi->p", q, q), 1 - 1e-9)
    return coefficients, float(np.sqrt(np.mean(((right - design @ coefficients) / (1 - leverage)) ** 2)))


def _is_a_cost(curve: CostCurve) -> bool:
    """Return True if f rises with N between the sizes, and beyond them."""
    x = np.linspace(curve.low, curve.high + (0.0 if curve.power is None else 15.0), 200)
    with np.errstate(invalid="ignore", divide="ignore"):
        value, slope, _ = curve.at(x)
    return bool(np.isfinite(value).all() and (slope > LEAST_SLOPE).all() and (slope < 1 / LEAST_SLOPE).all())
