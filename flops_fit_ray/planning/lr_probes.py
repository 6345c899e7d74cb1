"""The learning-rate guard: which rates to probe, what the best one is, and the rule over N that follows.

Rates are probed at the smallest budget with the sweep's own schedule, by factors of two until the best one is inside.
Then ln lr is a line over ln N, its slope pulled towards what is published, because two sizes say little of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from flops_fit_ray.planning.experiment import LrFound, ModelSize

FACTORS = (0.5, 1.0, 2.0, 4.0)  # times the general rule
MAX_FACTORS = 8  # per size
SLOPE, SLOPE_SD = -0.3, 0.3  # of ln lr over ln N, before anything is measured
OPTIMUM_SD = 0.35  # of ln lr at the best of one size: the valley over lr is flat and its losses are noisy
CAUTION = 2**-0.25  # where the rate above the best one diverged: half the best rate costs less than twice the best


def probed_sizes(first: Sequence[ModelSize]) -> list[ModelSize]:
    """Two sizes of the first valley that lie far apart, and not at its ends."""
    return [first[1], first[-2]] if len(first) >= 4 else [first[0], first[-1]]


def missing_factors(losses: Mapping[float, float]) -> list[float]:
    """The factors to probe next, from losses by factor (infinite where it diverged); none where the best is inside."""
    wanted = [f for f in FACTORS if f not in losses]
    if wanted:
        return wanted
    if len(losses) >= MAX_FACTORS:
        return []
    best, ends = best_factor(losses), (min(losses), max(losses))
    if best == ends[0]:
        return [ends[0] / 2]
    return [ends[1] * 2] if best == ends[1] else []


def best_factor(losses: Mapping[float, float]) -> float:
    """The probed factor with the lowest loss, the smaller one of equals."""
    return min(sorted(losses), key=lambda f: losses[f])


def optimum_factor(losses: Mapping[float, float]) -> float:
    """The best factor, between those that were probed: the vertex of a parabola in ln lr through the lowest three."""
    best = best_factor(losses)
    factors = sorted(losses)
    i = factors.index(best)
    if i in (0, len(factors) - 1):
        return best
    near = factors[i - 1 : i + 2]
    values = [losses[f] for f in near]
    if not all(map(math.isfinite, values)):
        return best * CAUTION
    a, b, _ = np.polyfit(np.log(near), values, 2)
    vertex = math.exp(-b / (2 * a)) if a > 0 else best
    return float(min(max(vertex, near[0]), near[2]))


def lr_law(optima: Sequence[tuple[int, float]]) -> LrFound:
    """The rule from the best rates (N, lr) of two sizes or more."""
    x, y = np.log([n for n, _ in optima]), np.log([lr for _, lr in optima])
    centred = x - x.mean()
    pull = (OPTIMUM_SD / SLOPE_SD) ** 2
    slope = float((centred @ y + pull * SLOPE) / (centred @ centred + pull))
    return LrFound(
        coefficient=float(np.exp(y.mean())),
        at=float(np.exp(x.mean())),
        exponent=slope,
        optima=tuple((int(n), float(lr)) for n, lr in optima),
    )
