"""Effects of budgets beyond the noise of their runs: shifts and tilts of a whole budget about the surface.

    ln L = ln surface + shift_b + tilt_b·(ln N - mean) + noise,   shift_b ~ N(0, s²),  tilt_b ~ N(0, t²)

A tilt moves the minimum of a budget, a shift its loss. On published sweeps such residuals are many times the noise, and
a bootstrap of single runs does not see them. s and t are drawn from their posterior on a grid, by restricted
likelihood: what the surface itself can follow tells nothing of them. The priors are those of the valleys: exactly 0, or
a half-Cauchy whose scale moves a minimum by as much as the valleys' prior does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.random_effects import SCATTER, draw_cells, spike_and_cauchy
from flops_fit_ray.analysis.surface._linear import (
    DEPENDENT,
    MIN_BLOCKS,
    block_columns,
    left_over,
    linearised,
    root_weights,
)
from flops_fit_ray.analysis.surface._value import Surfaces
from flops_fit_ray.fit_options import SurfaceOptions

SHIFT = 0.001  # scale of the prior of s, relative to the loss
GRID = np.concatenate([[0.0], np.geomspace(0.1, 30, 12)])  # of s and t, in their scales
LEAST_NOISE = 1e-9  # relative
SIDE = 0.1  # of ln N at constant N·D, for the curvature of a valley


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockEffects:
    """The posterior of shifts and tilts: scales s and t on a grid, and what they leave of the noise of ln L."""

    probability: Floats  # (shifts, tilts)
    shifts: Floats  # s, relative
    tilts: Floats  # t, per unit of ln N
    noise: float  # variance of ln L


def block_effects(surface: Surfaces, points: Points, options: SurfaceOptions) -> BlockEffects | None:
    """Compute the posterior of what blocks of budgets add to ln L; None with too few blocks or points to tell.

    With Q an orthonormal basis of the shifts and tilts that the surface cannot follow, z = Q'r is
    N(0, sigma²·I + s²·Q'SS'Q + t²·Q'TT'Q), and sigma² is what all of them leave.
    """
    shift, tilt = block_columns(points)
    residuals, derivatives = linearised(surface, points, options)
    columns = np.column_stack([shift, tilt]) * root_weights(points)[:, None]
    square, rank = left_over(np.column_stack([derivatives, columns]), residuals)
    df, blocks = points.num_runs - rank, shift.shape[1]
    if blocks < MIN_BLOCKS or df < 1:
        return None
    followed = np.linalg.qr(derivatives / np.linalg.norm(derivatives, axis=0))[0]
    free = columns - followed @ (followed.T @ columns)
    u, singular, _ = np.linalg.svd(free, full_matrices=False)
    basis = u[:, singular > DEPENDENT * singular.max()]
    z = basis.T @ residuals
    shifts, tilts = (basis.T @ part for part in np.split(columns, 2, axis=1))
    s, t = SHIFT * GRID, _tilt_scale(surface, points) * GRID
    noise = square / df + LEAST_NOISE**2
    v = (
        noise * np.eye(len(z))
        + (s**2)[:, None, None, None] * (shifts @ shifts.T)
        + (t**2)[None, :, None, None] * (tilts @ tilts.T)
    )
    solved = np.linalg.solve(v, np.broadcast_to(z[:, None], (*v.shape[:-1], 1)))[..., 0]
    log = -0.5 * (np.linalg.slogdet(v)[1] + solved @ z)
    posterior = np.exp(log - log.max()) * spike_and_cauchy(GRID, 1.0)[:, None] * spike_and_cauchy(GRID, 1.0)
    return BlockEffects(probability=posterior, shifts=s, tilts=t, noise=noise)


def draw_block_effects(
    surface: Surfaces, points: Points, options: SurfaceOptions, draws: int, rng: np.random.Generator
) -> tuple[Floats, Bools] | None:
    """Draw what blocks of budgets add to ln L; None with too few blocks or points to tell.

    Returns:
        the effects (draws, points), and whether a draw has none, because the law is exact in it (draws,).
    """
    effects = block_effects(surface, points, options)
    if effects is None:
        return None
    shift, tilt = block_columns(points)
    blocks = shift.shape[1]
    i, j = draw_cells(effects.probability, rng.random(draws))
    drawn_shifts = effects.shifts[i][:, None] * rng.standard_normal((draws, blocks))
    drawn_tilts = effects.tilts[j][:, None] * rng.standard_normal((draws, blocks))
    return np.asarray(drawn_shifts @ shift.T + drawn_tilts @ tilt.T), np.asarray((i == 0) & (j == 0))


def _tilt_scale(surface: Surfaces, points: Points) -> float:
    """Tilt of ln L that moves a minimum by `SCATTER` decades: the valley's curvature over ln N times the move."""
    n, d = points.params, points.tokens
    low, middle, high = (np.log(surface.loss(n * np.exp(by), d * np.exp(-by))) for by in (-SIDE, 0.0, SIDE))
    curvature = float(np.median(low - 2 * middle + high)) / SIDE**2
    return max(curvature, 1e-12) * SCATTER * float(np.log(10))
