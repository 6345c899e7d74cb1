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
    columns = [
        (np.log(moved.loss(points.params, points.tokens)) - fitted) / STEP * root
        for moved in moved_surfaces(surface, options)
    ]
    return residuals, np.column_stack(columns)


def moved_surfaces(surface: Surfaces, options: SurfaceOptions) -> list[Surfaces]:
    """Return the surface with each of its free parameters raised by `STEP`, in the order of `linearised`."""
    found, pinned = [], {name.lower() for name in options.pins}
    for field in fields(Surfaces):
        value = getattr(surface, field.name)
        fixed = options.form == "additive" if field.name == "k" else field.name.removeprefix("log_") in pinned
        if fixed or not np.isfinite(value).all():
            continue
        moved = {f.name: getattr(surface, f.name) for f in fields(Surfaces)} | {field.name: value + STEP}
        found.append(Surfaces(**moved))
    return found


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
    solution, _, rank, _ = np.linalg.lstsq(scaled, residuals, rcond=1e-10)
    left = residuals - scaled @ solution
    return float(left @ left), int(rank)
