"""A surface as a linear model near its fit: residuals, derivatives, and what a design leaves of them."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.points import Points, blocks_by_budget
from flops_fit_ray.analysis.surface._value import Surfaces
from flops_fit_ray.fit_options import SurfaceOptions

FAR = 4.0  # robust standard deviations from which a residual is an outlier, and counts for no more
MIN_BLOCKS = 3  # of budgets, from which what they do beyond the noise of their runs can be told
# Singular value, over the largest, of a direction that a design does not tell. A shift of all losses is one that a
# surface follows: E/L + A·N^-alpha/L + B·D^-beta/L = 1 in the additive law
DEPENDENT = 1e-9
STEP = 1e-5  # of the parameters of a surface, for its derivatives


def linearised(surface: Surfaces, points: Points, options: SurfaceOptions) -> tuple[Floats, Floats]:
    """Return residuals of ln L (points,), outliers pulled in, and derivatives to the parameters that are free.

    Both are multiplied by `root_weights`.
    """
    root = root_weights(points)
    fitted = np.log(surface.loss(points.params, points.tokens))
    residuals = (np.log(points.loss) - fitted) * root
    centre = float(np.median(residuals))
    reach = robust_reach(residuals - centre)
    if reach > 0:
        residuals = np.clip(residuals, centre - reach, centre + reach)
    slopes = _slopes(surface, points)
    return residuals, np.column_stack([slopes[name] * root for name in _free(surface, options)])


def _slopes(surface: Surfaces, points: Points) -> dict[str, Floats]:
    """Return the derivatives of ln L (points,) to each parameter of one surface, L = E + (a + b)^k.

    In any units of N and D they span the same: a step of alpha would not, as it turns the surface about N = 1.
    """
    log_n, log_d = np.log(points.params), np.log(points.tokens)
    a, b = np.exp(surface.log_a - surface.alpha * log_n), np.exp(surface.log_b - surface.beta * log_d)
    inner, k = a + b, float(surface.k[0])
    loss = np.exp(surface.log_e) + inner**k
    each = k * inner ** (k - 1) / loss  # to a and to b
    return {
        "log_e": np.exp(surface.log_e) / loss,
        "log_a": each * a,
        "log_b": each * b,
        "alpha": -each * a * log_n,
        "beta": -each * b * log_d,
        "k": inner**k * np.log(inner) / loss,
    }


def _free(surface: Surfaces, options: SurfaceOptions) -> list[str]:
    """Return the names of the parameters of a surface that are fitted, in their order."""
    pinned = {name.lower() for name in options.pins}
    found = []
    for name in (field.name for field in fields(Surfaces)):
        fixed = options.form == "additive" if name == "k" else name.removeprefix("log_") in pinned
        if not fixed and np.isfinite(getattr(surface, name)).all():
            found.append(name)
    return found


def moved_surfaces(surface: Surfaces, options: SurfaceOptions) -> list[Surfaces]:
    """Return the surface with each of its free parameters raised by `STEP`, in the order of `linearised`."""
    every = {field.name: getattr(surface, field.name) for field in fields(Surfaces)}
    return [Surfaces(**(every | {name: every[name] + STEP})) for name in _free(surface, options)]


def robust_reach(off: Floats) -> float:
    """Return `FAR` robust standard deviations of deviations (points,), by their median size (1.4826 for a normal)."""
    return FAR * 1.4826 * float(np.median(np.abs(off)))


def root_weights(points: Points) -> Floats:
    """Square roots of the weights (points,), with which all losses of a run count as one."""
    runs = points.runs
    return np.sqrt(points.weights / np.bincount(runs)[runs])


def block_columns(points: Points) -> tuple[Floats, Floats]:
    """Return a shift and a tilt over ln N of each block of budgets as columns of a design, (points, blocks) each."""
    block, x = blocks_by_budget(points), np.log(points.params)[:, None]
    inside = (block[:, None] == np.unique(block)).astype(np.float64)
    return inside, inside * (x - (inside * x).sum(axis=0) / inside.sum(axis=0))


def left_over(design: Floats, residuals: Floats) -> tuple[float, int]:
    """Return the squares that a linear model leaves, and its rank; columns are scaled first."""
    scaled = design / np.maximum(np.linalg.norm(design, axis=0), 1e-300)
    solution, _, rank, _ = np.linalg.lstsq(scaled, residuals, rcond=DEPENDENT)
    left = residuals - scaled @ solution
    return float(left @ left), int(rank)
