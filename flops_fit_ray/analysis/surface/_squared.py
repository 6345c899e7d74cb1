"""Squared error of L by variable projection, for many problems at once (Golub and Pereyra 1973).

    L = E + A'·u + B'·v,   u = exp(-alpha·x),  v = exp(-beta·y):  linear in E, A', B' for given alpha and beta

So only alpha and beta are searched, by Newton on the projected objective. With H the Hessian of all five, split into
exponents (t) and coefficients (c), the projected Hessian is the Schur complement H_tt - H_tc·H_cc^-1·H_ct; the gradient
is that of the exponents alone, because the coefficients are always at their minimum.

Shapes: M problems, n points; exponents (M, 2); coefficients (M, 3) = E, A', B' with x and y centred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats
from flops_fit_ray.analysis.surface._huber import LOWER, UPPER
from flops_fit_ray.analysis.surface._newton import Coordinates, Search, SearchResult, descend

DAMPING = 1e-2
EXPONENTS = [1, 3]  # of alpha and beta among the five


@dataclass(frozen=True, kw_only=True)
class Projection(Coordinates):
    """Data shared by all rows. A pinned E is subtracted from the losses; pinned exponents do not move."""

    pinned_e: float | None
    free: Bools  # (2,)


def minimise_squared(
    problem: Projection, exponents: Floats, loss: Floats, weights: Floats, tolerance: float = 1e-12
) -> SearchResult:
    """Minimise sum w·(fit - L)² from `exponents` (M, 2); `loss` and `weights` are (n,) or (M, n).

    `known` of the result begins with the objective and the coefficients.
    """
    lower, upper = LOWER[EXPONENTS], UPPER[EXPONENTS]

    def evaluate(at: Floats, z: Floats, w: Floats) -> Sequence[Floats]:
        return _project(problem, at, z, w)

    def step(at: Floats, known: Sequence[Floats], damping: Floats) -> tuple[Floats, Floats]:
        _, _, gradient, hessian, majoriser = known
        stuck = ((at <= lower) & (gradient > 0)) | ((at >= upper) & (gradient < 0))
        return _projected_step(stuck | ~problem.free, gradient, hessian, majoriser, damping)

    search = Search(lower=lower, upper=upper, damping=DAMPING, tolerance=tolerance)
    return descend(exponents, loss, weights, evaluate, step, search)


def _projected_step(
    stuck: Bools, gradient: Floats, hessian: Floats, majoriser: Floats, damping: Floats
) -> tuple[Floats, Floats]:
    """Damped step by Newton where the projected Hessian is positive definite, else by Gauss-Newton, in closed form."""
    positive = (hessian[:, 0, 0] > 0) & (hessian[:, 0, 0] * hessian[:, 1, 1] > hessian[:, 0, 1] ** 2)
    h = np.where(positive[:, None, None], hessian, majoriser)
    size = np.maximum(np.einsum("mii->mi", majoriser), 1e-300)
    h00 = np.where(stuck[:, 0], 1.0, h[:, 0, 0] + damping * size[:, 0])
    h11 = np.where(stuck[:, 1], 1.0, h[:, 1, 1] + damping * size[:, 1])
    h01 = np.where(stuck.any(axis=1), 0.0, h[:, 0, 1])
    g = np.where(stuck, 0.0, gradient)
    determinant = h00 * h11 - h01**2
    step = -np.stack([h11 * g[:, 0] - h01 * g[:, 1], h00 * g[:, 1] - h01 * g[:, 0]], axis=1) / determinant[:, None]
    step = np.clip(step, -0.5, 0.5)
    return step, np.abs(np.einsum("mi,mi->m", g, step))


def _project(
    problem: Projection, exponents: Floats, z: Floats, w: Floats
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Objective (M,), coefficients (M, 3), gradient (M, 2), projected Hessian and Gauss-Newton matrix (M, 2, 2)."""
    x, y = problem.x, problem.y
    u, v = np.exp(-exponents[:, :1] * x), np.exp(-exponents[:, 1:] * y)
    wu, wv = w * u, w * v
    by_x, by_y, by_xy = problem.powers
    s1, s2 = wu @ by_x, wv @ by_y
    s11, s22, s12 = (wu * u) @ by_x, (wv * v) @ by_y, (wu * v) @ by_xy

    # 1) the coefficients: weighted normal equations of the basis 1, u, v
    h_cc = np.empty((len(u), 3, 3))
    h_cc[:, 0, 0] = w.sum(axis=1)
    h_cc[:, 0, 1] = h_cc[:, 1, 0] = s1[:, 0]
    h_cc[:, 0, 2] = h_cc[:, 2, 0] = s2[:, 0]
    h_cc[:, 1, 1], h_cc[:, 2, 2] = s11[:, 0], s22[:, 0]
    h_cc[:, 1, 2] = h_cc[:, 2, 1] = s12[:, 0]
    fixed = problem.pinned_e
    c, inverse = _coefficients(h_cc, z, w, wu, wv, fixed)
    r = c[:, :1] + c[:, 1:2] * u + c[:, 2:] * v - z
    if fixed is None:  # one step of iterative refinement: the normal equations alone lose digits
        left = np.stack([(w * r).sum(axis=1), (wu * r).sum(axis=1), (wv * r).sum(axis=1)], axis=1)
        c = c - np.einsum("mij,mj->mi", inverse, left)
        r = c[:, :1] + c[:, 1:2] * u + c[:, 2:] * v - z

    # 2) derivatives: dL/dalpha = -A'·x·u, d²L/dalpha² = A'·x²·u; Gauss-Newton leaves out the terms with r
    ru, rv = (wu * r) @ by_x, (wv * r) @ by_y
    a, b = c[:, 1], c[:, 2]
    gradient = np.stack([a * ru[:, 1], b * rv[:, 1]], axis=1)
    gauss = np.empty((len(u), 2, 2))
    gauss[:, 0, 0], gauss[:, 1, 1] = a * a * s11[:, 2], b * b * s22[:, 2]
    gauss[:, 0, 1] = gauss[:, 1, 0] = a * b * s12[:, 3]
    h_tt = gauss.copy()
    h_tt[:, 0, 0] += a * ru[:, 2]
    h_tt[:, 1, 1] += b * rv[:, 2]
    j_tc = np.empty((len(u), 2, 3))
    j_tc[:, 0] = np.stack([a * s1[:, 1], a * s11[:, 1], a * s12[:, 1]], axis=1)
    j_tc[:, 1] = np.stack([b * s2[:, 1], b * s12[:, 2], b * s22[:, 1]], axis=1)
    h_tc = j_tc.copy()
    h_tc[:, 0, 1] += ru[:, 1]
    h_tc[:, 1, 2] += rv[:, 1]

    # 3) Schur complement: the coefficients follow the exponents
    value = np.einsum("mn,mn->m", w * r, r)
    projected = h_tt - h_tc @ inverse @ h_tc.transpose(0, 2, 1)
    return value, c, gradient, projected, gauss - j_tc @ inverse @ j_tc.transpose(0, 2, 1)


def _coefficients(
    h_cc: Floats, z: Floats, w: Floats, wu: Floats, wv: Floats, pinned_e: float | None
) -> tuple[Floats, Floats]:
    """Solve E, A', B' (M, 3); return them and the inverse (M, 3, 3) of their Hessian.

    Where E is pinned, or 0 because it would be negative, its row and column of the inverse are zero.
    """
    target = z if pinned_e is None else z - pinned_e
    right = np.stack([(w * target).sum(axis=1), (wu * target).sum(axis=1), (wv * target).sum(axis=1)], axis=1)
    scale = 1 / np.sqrt(np.maximum(np.einsum("mii->mi", h_cc), 1e-300))
    scaled = h_cc * scale[:, :, None] * scale[:, None, :]
    inverse = _inverse(scaled)
    c = np.einsum("mij,mj->mi", inverse, right * scale)
    fixed = c[:, 0] < 0 if pinned_e is None else np.ones(len(c), dtype=bool)
    if fixed.any():
        smaller = np.zeros((int(fixed.sum()), 3, 3))
        smaller[:, 1:, 1:] = _inverse(scaled[fixed][:, 1:, 1:])
        inverse[fixed] = smaller
        c[fixed] = np.einsum("mij,mj->mi", smaller, (right * scale)[fixed])
        c[fixed, 0] = 0.0 if pinned_e is None else pinned_e / scale[fixed, 0]
    return c * scale, inverse * scale[:, :, None] * scale[:, None, :]


def _inverse(matrices: Floats) -> Floats:
    """Invert matrices (M, k, k); a tiny ridge keeps a singular one from failing the whole batch."""
    return np.asarray(np.linalg.inv(matrices + 1e-14 * np.eye(matrices.shape[-1])))
