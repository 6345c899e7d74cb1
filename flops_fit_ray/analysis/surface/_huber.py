"""Huber loss of ln L in log-sum-exp form (Hoffmann et al. 2022, equation 3), for many problems at once.

    f = ln(exp(a - alpha·x) + exp(b - beta·y) + exp(e)),   r = f - ln L,   minimise  sum of w·h_delta(r)

Semi-smooth Newton: the Hessians of all rows are six thin products of (rows, points) with powers of x and y. They are
damped by the majoriser of iteratively reweighted least squares, because beyond delta the Huber loss has no curvature.
Quasi-Newton methods stop early here: the objective is of the order of delta², far below their tolerances.

Shapes: M problems, n points; theta (M, 5) = a, alpha, b, beta, e with x and y centred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats
from flops_fit_ray.analysis.surface._newton import MAX_ITERATIONS, Coordinates, Search, SearchResult, descend

DAMPING = 1.0
LOWER = np.array([-60.0, 1e-3, -60.0, 1e-3, -12.0])
UPPER = np.array([60.0, 6.0, 60.0, 6.0, 12.0])

_UPPER = np.triu_indices(5, 1)


@dataclass(frozen=True, kw_only=True)
class HuberProblem(Coordinates):
    """Data shared by all rows. `undertuned` < 1 is the weight of losses above the surface: badly tuned runs."""

    delta: float
    undertuned: float
    free: Bools  # (5,), False where a parameter is pinned


def minimise(
    problem: HuberProblem,
    theta: Floats,
    log_loss: Floats,
    weights: Floats,
    tolerance: float = 1e-12,
    max_iterations: int = MAX_ITERATIONS,
    patience: int | None = None,
) -> SearchResult:
    """Minimise every row from `theta` (M, 5); `log_loss` and `weights` are (n,) or (M, n)."""

    def evaluate(at: Floats, z: Floats, w: Floats) -> Sequence[Floats]:
        return derivatives(problem, at, z, w)

    def step(at: Floats, known: Sequence[Floats], damping: Floats) -> tuple[Floats, Floats]:
        _, gradient, hessian, majoriser = known
        return _huber_step(problem, at, gradient, hessian, majoriser, damping)

    search = Search(
        lower=LOWER, upper=UPPER, damping=DAMPING, tolerance=tolerance, max_iterations=max_iterations, patience=patience
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
    stuck = ((theta <= LOWER) & (gradient > 0)) | ((theta >= UPPER) & (gradient < 0)) | ~problem.free
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
    """Solve many 5 x 5 systems at once by LDLT; the second value is True (M,) for positive definite matrices.

    `at_rest` is 1 for rows and columns that are zero because their parameter does not move.
    """
    m = matrices.transpose(1, 2, 0).copy()
    z = right.T.copy()
    positive = np.ones(len(matrices), dtype=bool)
    for i in range(5):
        m[i, i] += at_rest[:, i] + 1e-13
        positive &= m[i, i] > 0
        pivot = np.where(m[i, i] > 0, m[i, i], 1.0)
        for j in range(i + 1, 5):
            factor = m[j, i] / pivot
            m[j, i + 1 :] -= factor * m[i, i + 1 :]
            z[j] -= factor * z[i]
        m[i, i] = pivot
    for i in range(4, -1, -1):
        z[i] = (z[i] - np.einsum("jm,jm->m", m[i, i + 1 :], z[i + 1 :])) / m[i, i]
    return z.T, positive


def derivatives(problem: HuberProblem, theta: Floats, z: Floats, w: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Objective (M,), gradient (M, 5), Hessian and majoriser (M, 5, 5) at theta.

    With t = (a - alpha·x, b - beta·y, e), f = logsumexp(t) and p = softmax(t):

    1) h_delta(r) = psi·(r - psi/2) with psi = clip(r, -delta, delta), so h' = psi and h'' = 1 inside delta, else 0
    2) df/dt = p and d²f/dt² = diag(p) - p·pT; the chain rule to theta multiplies by dt/dtheta = 1, -x and 1, -y
    3) gradient = sum w·psi·df
    4) Hessian = sum w·(h''·df·dfT + psi·d²f) = sum w·((h'' - psi)·df·dfT + psi·diag(p))
    5) majoriser = sum w·(psi/r)·df·dfT, the Hessian of iteratively reweighted least squares
    """
    x, y = problem.x, problem.y
    a, alpha, b, beta, e = (theta[:, i : i + 1] for i in range(5))
    p1 = np.exp(a - alpha * x)
    p2 = np.exp(b - beta * y)
    total = p1 + p2 + np.exp(e)
    p1 /= total
    p2 /= total
    r = np.log(total) - z
    psi = np.clip(r, -problem.delta, problem.delta)
    weight = w if problem.undertuned == 1 else w * np.where(r < 0, problem.undertuned, 1.0)
    inside = weight * (psi == r)
    slope = weight * psi
    value = np.einsum("mn,mn->m", slope, r - 0.5 * psi)
    with np.errstate(invalid="ignore", divide="ignore"):
        reweighted = np.where(r == 0, weight, slope / r)
    p3 = 1.0 - p1 - p2

    by_x, by_y, _ = problem.powers
    g1, g2 = (slope * p1) @ by_x, (slope * p2) @ by_y
    g3 = slope.sum(axis=1) - g1[:, 0] - g2[:, 0]
    gradient = np.stack([g1[:, 0], g1[:, 1], g2[:, 0], g2[:, 1], g3], axis=1)

    shares = (p1 * p1, p2 * p2, p1 * p2, p1 * p3, p2 * p3, p3 * p3)
    hessian = _second(shares, inside - slope, problem)
    for i, j, value_ij in ((0, 0, g1[:, 0]), (0, 1, g1[:, 1]), (1, 1, g1[:, 2]), (2, 2, g2[:, 0]),
                           (2, 3, g2[:, 1]), (3, 3, g2[:, 2]), (4, 4, g3)):  # fmt: skip
        hessian[:, i, j] += value_ij
        if i != j:
            hessian[:, j, i] += value_ij
    return value, gradient, hessian, _second(shares, reweighted, problem)


def _second(shares: tuple[Floats, ...], curvature: Floats, problem: HuberProblem) -> Floats:
    """Sum of curvature·df·dfT (M, 5, 5) over the points; `shares` are the products p_i·p_j."""
    by_x, by_y, by_xy = problem.powers
    s11, s22, s12, s13, s23, s33 = shares
    return _assemble(
        (s11 * curvature) @ by_x,
        (s22 * curvature) @ by_y,
        (s12 * curvature) @ by_xy,
        (s13 * curvature) @ by_x,
        (s23 * curvature) @ by_y,
        np.einsum("mn,mn->m", s33, curvature),
    )


def _assemble(c11: Floats, c22: Floats, c12: Floats, c13: Floats, c23: Floats, c33: Floats) -> Floats:
    """Assemble the symmetric (M, 5, 5) matrix, in the order a, alpha, b, beta, e, from sums c_ij of terms i and j."""
    h = np.empty((len(c11), 5, 5))
    h[:, 0, 0], h[:, 0, 1], h[:, 1, 1] = c11[:, 0], c11[:, 1], c11[:, 2]
    h[:, 2, 2], h[:, 2, 3], h[:, 3, 3] = c22[:, 0], c22[:, 1], c22[:, 2]
    h[:, 0, 2], h[:, 1, 2], h[:, 0, 3], h[:, 1, 3] = c12[:, 0], c12[:, 1], c12[:, 2], c12[:, 3]
    h[:, 0, 4], h[:, 1, 4], h[:, 2, 4], h[:, 3, 4] = c13[:, 0], c13[:, 1], c23[:, 0], c23[:, 1]
    h[:, 4, 4] = c33
    h[:, _UPPER[1], _UPPER[0]] = h[:, _UPPER[0], _UPPER[1]]
    return h
