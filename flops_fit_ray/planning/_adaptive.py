"""The search for the minimum of a budget: a wide first valley, then windows around a prediction, until it is inside.

Pure functions over the sizes that the model can have. Factors are ratios of N.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from flops_fit_ray.analysis.valley import Valley, fit_valley
from flops_fit_ray.planning.experiment import ModelSize

MIN_SIZES = 3  # of a valley
SLOPE, SLOPE_SD = 0.5, 0.15  # prior of the slope of ln N_opt over ln C (Hoffmann et al. 2022, table 2)
MINIMUM_SD = 0.15  # standard deviation of ln N_opt of one valley
MARGIN = 1.5  # least ratio of the minimum to the nearest end of its valley
MAX_AT_ONCE = 2  # sizes added to a valley before it is fitted again
MAX_SIZES = 11  # of one valley


def rungs(candidates: Sequence[ModelSize], anchor: float, step: float) -> list[ModelSize]:
    """Return the candidates nearest to anchor · step^k for whole k: one ladder for all budgets shares trunks.

    `candidates` are sorted by N. Of two that are equally near the smaller is taken.
    """
    if not candidates:
        return []
    params = [s.params for s in candidates]
    low, high = (round(math.log(s.params / anchor) / math.log(step)) for s in (candidates[0], candidates[-1]))
    rung = {}
    for k in range(low, high + 1):
        target = anchor * step**k
        above = bisect.bisect_left(params, target)
        best = min(above, len(params) - 1)
        if 0 < above < len(params):
            best -= abs(math.log(params[above - 1] / target)) <= abs(math.log(params[above] / target))
        rung[params[best]] = candidates[best]
    return [rung[n] for n in sorted(rung)]


def nearest(ladder: Sequence[ModelSize], centre: float, count: int, reach: float = math.inf) -> list[ModelSize]:
    """Return the `count` sizes nearest to `centre` in log N, by increasing N; all but three must lie within `reach`."""
    chosen = sorted(ladder, key=lambda s: abs(math.log(s.params / centre)))[:count]
    within = [s for i, s in enumerate(chosen) if i < MIN_SIZES or abs(math.log(s.params / centre)) <= math.log(reach)]
    return sorted(within, key=lambda s: s.params)


def predicted_optimum(minima: Sequence[tuple[float, float]], budget: float) -> float:
    """Predict N_opt at C = `budget` from the minima (C, N) of the budgets below, by a line in log-log.

    1) slope a = (sum x·y + p·a0) / (sum x² + p), p = (sd / sd0)², x = ln C centred, y = ln N: the posterior mean of the
       slope with the prior a0 = SLOPE ± SLOPE_SD and noise sd = MINIMUM_SD (ridge regression); a0 with one minimum
    2) the line starts at the mean of the last minimum and of the fitted line there
    """
    x, y = np.log([c for c, _ in minima]), np.log([n for _, n in minima])
    centred = x - x.mean()
    prior_weight = (MINIMUM_SD / SLOPE_SD) ** 2
    slope = (centred @ y + prior_weight * SLOPE) / (centred @ centred + prior_weight)
    # Not at the fitted line alone: where ln N_opt bends, the last minimum is nearest to the next
    level = 0.5 * (y[-1] + y.mean() + slope * (x[-1] - x.mean()))
    return float(np.exp(level + slope * (np.log(budget) - x[-1])))


def beyond(valley: Valley, ladder: Sequence[ModelSize]) -> tuple[list[ModelSize], str]:
    """Return the sizes to add so that the minimum lies inside, and their side ("" if none are needed).

    An interior minimum within `MARGIN` of an end is not trusted yet: noise may have put it there.
    """
    n = valley.params
    low, high = float(n[0]), float(n[-1])
    inside = valley.status == "interior"
    vertex = valley.params_opt if inside else float(n[int(np.argmin(valley.loss))])
    if inside and vertex / low >= MARGIN and high / vertex >= MARGIN:
        return [], ""
    larger = high / vertex < vertex / low
    if valley.status == "concave" and low < vertex < high:
        larger = bool(valley.loss[-1] < valley.loss[0])  # no minimum: continue at the end with the lower loss
    count = 1 if inside else MAX_AT_ONCE
    if larger:
        return [s for s in ladder if s.params > high][:count], "larger"
    return [s for s in ladder if s.params < low][-count:], "smaller"


def valley_through(budget: float, sizes: Sequence[ModelSize], tokens: Sequence[int], losses: Sequence[float]) -> Valley:
    """Fit the valley of these sizes, as the analysis does by default."""
    return _valley(budget, tuple(s.params for s in sizes), tuple(tokens), tuple(losses))


@lru_cache(maxsize=1000)  # every replay of a plan reads the valleys again that are complete
def _valley(budget: float, params: tuple[int, ...], tokens: tuple[int, ...], losses: tuple[float, ...]) -> Valley:
    n = np.array(params, dtype=np.float64)
    ones = np.ones(len(n))
    return fit_valley(
        budget,
        np.arange(len(n)),
        budget * ones,
        n,
        np.array(tokens, dtype=np.float64),
        np.array(losses, dtype=np.float64),
        ones,
    )
