"""The learning rate guard: rates to probe, the best of them, and the rule over N that follows.

Rates are probed at the smallest budget with the schedule of the sweep, by factors of two until the best is bracketed.
Then ln lr is a line over ln N; its slope has a prior at published values, because two sizes determine it poorly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from flops_fit_ray.planning.experiment import MeasuredLr, ModelSize

FACTORS = (0.5, 1.0, 2.0, 4.0)  # times the general rule
MAX_FACTORS = 8  # per size
SLOPE, SLOPE_SD = -0.3, 0.3  # prior of the slope of ln lr over ln N
OPTIMUM_SD = 0.35  # standard deviation of ln lr at the optimum of one size: the loss is flat over lr, and noisy
CAUTION = 2**-0.25  # factor where the next rate diverged: half the best rate costs less than twice the best


def probed_sizes(first: Sequence[ModelSize]) -> list[ModelSize]:
    """Choose two sizes of the first valley that are far apart, but not its ends if it has four or more."""
    return [first[1], first[-2]] if len(first) >= 4 else [first[0], first[-1]]


def missing_factors(losses: Mapping[float, float]) -> list[float]:
    """Factors to probe next, from losses by factor (infinite if diverged); none once the best is bracketed."""
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
    """The probed factor with the lowest loss; the smaller one if two are equal."""
    return min(sorted(losses), key=lambda f: losses[f])


def optimum_factor(losses: Mapping[float, float]) -> float:
    """Interpolate the best factor: the vertex -b / 2a of the parabola in ln lr through the lowest and its neighbours.

    At an end of the probed factors it is the best one itself; beside a diverged one it is lower by `CAUTION`.
    """
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


def lr_law(optima: Sequence[tuple[int, float]]) -> MeasuredLr:
    """Fit the rule ln lr = mean(ln lr) + s·(ln N - mean(ln N)) to the best rates (N, lr) of two or more sizes.

    s = (sum x·y + p·s0) / (sum x² + p), p = (sd / sd0)²: the posterior mean of the slope with the prior
    s0 = SLOPE ± SLOPE_SD and noise sd = OPTIMUM_SD, x = ln N centred, y = ln lr.
    """
    x, y = np.log([n for n, _ in optima]), np.log([lr for _, lr in optima])
    centred = x - x.mean()
    prior_weight = (OPTIMUM_SD / SLOPE_SD) ** 2
    slope = float((centred @ y + prior_weight * SLOPE) / (centred @ centred + prior_weight))
    return MeasuredLr(
        coefficient=float(np.exp(y.mean())),
        at=float(np.exp(x.mean())),
        exponent=slope,
        optima=tuple((int(n), float(lr)) for n, lr in optima),
    )
