"""Huber loss of ln L in log-sum-exp form (Hoffmann et al. 2022, equation 3), for many problems at once.

    f = ln(exp(a - alpha·x) + exp(b - beta·y) + exp(e)),   r = f - ln L,   minimise  sum of w·h_delta(r)

and for the coupled law, with k = exp(q) and s = ln(exp(a - alpha·x) + exp(b - beta·y)),

    f = ln(exp(k·s) + exp(e)),   which is the same at k = 1

Semi-smooth Newton: the Hessians of all rows are six thin products of (rows, points) with powers of x and y. They are
damped by the majoriser of iteratively reweighted least squares, because beyond delta the Huber loss has no curvature.
Quasi-Newton methods stop early here: the objective is of the order of delta², far below their tolerances.

Shapes: M problems, n points; theta (M, P) = a, alpha, b, beta, e and, where the law is coupled, q; x and y centred.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats
from flops_fit_ray.analysis.surface._newton import MAX_ITERATIONS, Coordinates, Search, SearchResult, descend

DAMPING = 1.0
# Of a, alpha, b, beta, e and q, for losses near 1
LOWER = np.array([-60.0, 1e-3, -60.0, 1e-3, -12.0, np.log(0.05)])
UPPER = np.array([60.0, 6.0, 60.0, 6.0, 12.0, np.log(20.0)])

_UPPER = {size: np.triu_indices(size, 1) for size in (5, 6)}


@dataclass(frozen=True, kw_only=True)
class HuberProblem(Coordinates):
    """Data shared by all rows. `undertuned` < 1 is the weight of losses above the surface: badly tuned runs."""

    delta: float
    undertuned: float
    free: Bools  # (P,), False where a parameter is pinned; 6 of them are the coupled law

    @cached_property
    def bounds(self) -> tuple[Floats, Floats]:
        """Lower and upper bounds (P,); none of a pinned parameter."""
        count = len(self.free)
        return np.where(self.free, LOWER[:count], -np.inf), np.where(self.free, UPPER[:count], np.inf)


def minimise(
    problem: HuberProblem,
    theta: Floats,
    log_loss: Floats,
    weights: Floats,
    tolerance: float = 1e-12,
    max_iterations: int = MAX_ITERATIONS,
    patience: int | None = None,
) -> SearchResult:
    """Minimise every row from `theta` (M, P); `log_loss` and `weights` are (n,) or (M, n)."""
    lower, upper = problem.bounds

    def evaluate(at: Floats, z: Floats, w: Floats) -> Sequence[Floats]:
        return derivatives(problem, at, z, w)

    def step(at: Floats, known: Sequence[Floats], damping: Floats) -> tuple[Floats, Floats]:
        _, gradient, hessian, majoriser = known
        return _huber_step(problem, at, gradient, hessian, majoriser, damping)

    search = Search(
        lower=lower, upper=upper, damping=DAMPING, tolerance=tolerance, max_iterations=max_iterations, patience=patience
    )  # fmt: skip
    return descend(theta, log_loss, weights, evaluate, step, search)


def _huber_step(
    problem: HuberProblem, theta: Floats, gradient: Floats, hessian: Floats, majoriser: Floats, damping: Floats
) -> tuple[Floats, Floats]:
    """Damped Newton step and the decrease that it predicts; pinned parameters and those at a bound stay.

    1) units of each parameter: scale_i = 1 / sqrt(M_ii), with M the majoriser
    2) step = -(H + damping·M)^-1·g; where that matrix is not positive definite, -((1 + damping)·M)^-1·g
    3) no parameter moves by more than 3
    """
    lower, upper = problem.bounds
    stuck = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0)) | ~problem.free
    scale = 1 / np.sqrt(np.maximum(np.einsum("mii->mi", majoriser), 1e-300))
    scale = np.where(stuck, 0.0, scale)
    units = scale[:, :, None] * scale[:, None, :]
    at_rest = stuck.astype(np.float64)
    g = scale * gradient
    step, positive = _solve_definite((hessian + damping[:, None, None] * majoriser) * units, at_rest, g)
    if not positive.all():  # not convex here: a step of iteratively reweighted least squares, which always descends
        indefinite = ~positive
        matrix = (1 + damping[indefinite])[:, None, None] * majoriser[indefinite] * units[indefinite]
        step[indefinite], _ = _solve_definite(matrix, at_rest[indefinite], g[indefinite])
    decrement = np.abs(np.einsum("mi,mi->m", g, step))
    step = -step * scale
    longest = np.abs(step).max(axis=1, keepdims=True)
    return step * np.minimum(1.0, 3.0 / np.maximum(longest, 1e-300)), decrement


def _solve_definite(matrices: Floats, at_rest: Floats, right: Floats) -> tuple[Floats, Bools]:
    """Solve many P x P systems at once by LDLT; the second value is True (M,) for positive definite matrices.

    `at_rest` is 1 for rows and columns that are zero because their parameter does not move.
    """
    m = matrices.transpose(1, 2, 0).copy()
    z = right.T.copy()
    positive = np.ones(len(matrices), dtype=bool)
    size = len(m)
    for i in range(size):
        m[i, i] += at_rest[:, i] + 1e-13
        positive &= m[i, i] > 0
        pivot = np.where(m[i, i] > 0, m[i, i], 1.0)
        for j in range(i + 1, size):
            factor = m[j, i] / pivot
            m[j, i + 1 :] -= factor * m[i, i + 1 :]
            z[j] -= factor * z[i]
        m[i, i] = pivot
    for i in reversed(range(size)):
        z[i] = (z[i] - np.einsum("jm,jm->m", m[i, i + 1 :], z[i + 1 :])) / m[i, i]
    return z.T, positive


def derivatives(problem: HuberProblem, theta: Floats, z: Floats, w: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Objective (M,), gradient (M, P), Hessian and majoriser (M, P, P) at theta.

    With t = (a - alpha·x, b - beta·y), s = logsumexp(t), c = softmax(t), f = logaddexp(k·s, e) and g = exp(k·s - f),
    the shares p = df/d(t1, t2, e, q) = (g·k·c1, g·k·c2, 1 - g, g·k·s); the additive law has k = 1 and no q:

    1) h_delta(r) = psi·(r - psi/2) with psi = clip(r, -delta, delta), so h' = psi and h'' = 1 inside delta, else 0
    2) df/dt = p and d²f = diag(p) - p·pT + m; the chain rule to theta multiplies by dt/dtheta = 1, -x and 1, -y
    3) m is 0 for k = 1; of t: g·k·(k - 1)·c·cT; of t and q: g·k·c·(k·s + 1); of q: g·(k·s)²
    4) gradient = sum w·psi·df
    5) Hessian = sum w·(h''·df·dfT + psi·d²f) = sum w·((h'' - psi)·df·dfT + psi·(diag(p) + m))
    6) majoriser = sum w·(psi/r)·df·dfT, the Hessian of iteratively reweighted least squares
    """
    x, y = problem.x, problem.y
    a, alpha, b, beta, e = (theta[:, i : i + 1] for i in range(5))
    coupled = len(problem.free) == 6
    p1 = np.exp(a - alpha * x)
    p2 = np.exp(b - beta * y)
    if coupled:
        k = np.exp(theta[:, 5:])
        inner = p1 + p2
        c1, c2 = p1 / inner, p2 / inner
        power = k * np.log(inner)  # k·s
        outer = np.exp(power)
        total = outer + np.exp(e)
        outer /= total  # g
        p1, p2, p3, p4 = outer * k * c1, outer * k * c2, 1.0 - outer, outer * power
    else:
        total = p1 + p2 + np.exp(e)
        p1 /= total
        p2 /= total
        p3 = 1.0 - p1 - p2
    r = np.log(total) - z
    psi = np.clip(r, -problem.delta, problem.delta)
    weight = w if problem.undertuned == 1 else w * np.where(r < 0, problem.undertuned, 1.0)
    inside = weight * (psi == r)
    slope = weight * psi
    value = np.einsum("mn,mn->m", slope, r - 0.5 * psi)
    with np.errstate(invalid="ignore", divide="ignore"):
        reweighted = np.where(r == 0, weight, slope / r)

    by_x, by_y, _ = problem.powers
    g1, g2 = (slope * p1) @ by_x, (slope * p2) @ by_y
    g3 = slope.sum(axis=1) - g1[:, 0] - g2[:, 0] if not coupled else np.einsum("mn,mn->m", slope, p3)
    gradient = [g1[:, 0], g1[:, 1], g2[:, 0], g2[:, 1], g3]
    shares = [p1 * p1, p2 * p2, p1 * p2, p1 * p3, p2 * p3, p3 * p3]
    if coupled:
        gradient.append(np.einsum("mn,mn->m", slope, p4))
        shares += [p1 * p4, p2 * p4, p3 * p4, p4 * p4]
    curvature = inside - slope
    pairs = (share * curvature for share in shares)  # one at a time, which stays in the cache
    if coupled:
        bent, mixed, own = slope * outer * k * (k - 1), slope * outer * k * (power + 1), slope * outer * power * power
        m = (bent * c1 * c1, bent * c2 * c2, bent * c1 * c2, 0, 0, 0, mixed * c1, mixed * c2, 0, own)
        pairs = (share * curvature + more for share, more in zip(shares, m, strict=True))
    hessian = _assemble(pairs, problem)
    rest = [(i, i, gradient[i]) for i in range(4, len(gradient))]
    for i, j, value_ij in ((0, 0, g1[:, 0]), (0, 1, g1[:, 1]), (1, 1, g1[:, 2]), (2, 2, g2[:, 0]),
                           (2, 3, g2[:, 1]), (3, 3, g2[:, 2]), *rest):  # fmt: skip
        hessian[:, i, j] += value_ij
        if i != j:
            hessian[:, j, i] += value_ij
    majoriser = _assemble((share * reweighted for share in shares), problem)
    return value, np.stack(gradient, axis=1), hessian, majoriser


def _assemble(pairs: Iterable[Floats], problem: HuberProblem) -> Floats:
    """Sum over the points, by the chain rule, of second derivatives in t1, t2, e and q: (M, P, P).

    `pairs` (M, n) belong to 11, 22, 12, 13, 23, 33 and, where the law is coupled, 14, 24, 34, 44.
    """
    by_x, by_y, by_xy = problem.powers
    one = by_x[:, :1]
    columns = (by_x, by_y, by_xy, by_x, by_y, one, by_x, by_y, one, one)
    sums = [pair @ column for pair, column in zip(pairs, columns, strict=False)]  # no q: the last four are not there
    c11, c22, c12, c13, c23, c33 = sums[:6]
    size = len(problem.free)
    h = np.empty((len(c11), size, size))
    h[:, 0, 0], h[:, 0, 1], h[:, 1, 1] = c11[:, 0], c11[:, 1], c11[:, 2]
    h[:, 2, 2], h[:, 2, 3], h[:, 3, 3] = c22[:, 0], c22[:, 1], c22[:, 2]
    h[:, 0, 2], h[:, 1, 2], h[:, 0, 3], h[:, 1, 3] = c12[:, 0], c12[:, 1], c12[:, 2], c12[:, 3]
    h[:, :2, 4], h[:, 2:4, 4], h[:, 4, 4] = c13[:, :2], c23[:, :2], c33[:, 0]
    if size == 6:
        c14, c24, c34, c44 = sums[6:]
        h[:, :2, 5], h[:, 2:4, 5], h[:, 4, 5], h[:, 5, 5] = c14[:, :2], c24[:, :2], c34[:, 0], c44[:, 0]
    upper = _UPPER[size]
    h[:, upper[1], upper[0]] = h[:, upper[0], upper[1]]
    return h
