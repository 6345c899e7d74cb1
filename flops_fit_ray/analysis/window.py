"""The sizes of a budget that its valley is fitted to: a number of them, or those within a factor of the minimum."""

from __future__ import annotations

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats

LEAST = 3  # sizes, as many as a parabola needs
ROUNDS = 3  # in which sizes are taken about a minimum, and the minimum from them


def nearest_sizes(params: Floats, loss: Floats, window: int | None) -> Bools:
    """Choose the `window` sizes nearest, in log N, to the one with the lowest loss; all with None. Arrays (points,)."""
    sizes = np.unique(params)
    if window is None or window >= len(sizes):
        return np.ones(len(params), dtype=bool)
    distance = np.abs(np.log(sizes) - np.log(params[int(np.argmin(loss))]))
    near = sizes[np.argsort(distance, kind="stable")[:window]]
    return np.isin(params, near)


def within_reach(params: Floats, loss: Floats, weights: Floats, reach: float) -> Bools:
    """Choose the sizes within a factor of the minimum, three at least. Arrays (points,).

    The minimum is the lowest loss, then the vertex of the parabola through the sizes within reach, which noise moves
    less: most draws of the noise would choose the same sizes.
    """
    sizes = np.unique(params)
    if len(sizes) <= LEAST:
        return np.ones(len(params), dtype=bool)
    x, centre = np.log10(params), float(np.log10(params[int(np.argmin(loss))]))
    used = np.ones(len(params), dtype=bool)
    for _ in range(ROUNDS):
        distance = np.abs(np.log10(sizes) - centre)
        used = np.isin(params, sizes[distance <= max(np.log10(reach), np.sort(distance)[LEAST - 1])])
        a, b, _ = np.polyfit(x[used] - centre, loss[used], 2, w=np.sqrt(weights[used]))
        vertex = centre - b / (2 * a) if a > 0 else np.nan
        if not x[used].min() < vertex < x[used].max():
            break
        centre = float(vertex)
    return used
