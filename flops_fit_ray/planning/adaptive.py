"""Where to look for the minimum of a budget: a wide first valley, then windows around a prediction, until it is inside.

Pure functions over the sizes that the model can have. Factors are ratios of N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flops_fit_ray.analysis.valley import Valley, fit_valley
from flops_fit_ray.planning.experiment import ModelSize
from flops_fit_ray.planning.sizes import spacing
from flops_fit_ray.spec import GridSection

MIN_SIZES = 3  # of a valley
CORE = 3  # sizes of the next budget that are begun before the one below is complete
SLOPE, SLOPE_SD = 0.5, 0.15  # of ln N_opt over ln C, before anything is measured (Hoffmann et al. 2022, table 2)
MINIMUM_SD = 0.15  # of ln N_opt of one valley
MARGIN = 1.5  # between the minimum and the nearest end of its valley
MAX_AT_ONCE = 2  # sizes added to a valley before it is looked at again
MAX_SIZES = 11  # of one valley


def rungs(candidates: Sequence[ModelSize], anchor: float, step: float) -> list[ModelSize]:
    """The candidates nearest to anchor · step^k for whole k: one ladder for all budgets, so that trunks are shared."""
    if not candidates:
        return []
    low, high = (round(math.log(s.params / anchor) / math.log(step)) for s in (candidates[0], candidates[-1]))
    found = {}
    for k in range(low, high + 1):
        best = min(candidates, key=lambda s: abs(math.log(s.params / (anchor * step**k))))
        found[best.params] = best
    return [found[n] for n in sorted(found)]


def nearest(ladder: Sequence[ModelSize], centre: float, count: int, reach: float = math.inf) -> list[ModelSize]:
    """The `count` sizes nearest to N = `centre` in log N, by increasing N; three at least, others within `reach`."""
    chosen = sorted(ladder, key=lambda s: abs(math.log(s.params / centre)))[:count]
    within = [s for i, s in enumerate(chosen) if i < MIN_SIZES or abs(math.log(s.params / centre)) <= math.log(reach)]
    return sorted(within, key=lambda s: s.params)


def reach(grid: GridSection) -> float:
    """How far from the expected optimum a size may lie: the window, and half a step of the ladder."""
    return grid.window * math.sqrt(spacing(grid))


def predicted_optimum(minima: Sequence[tuple[float, float]], budget: float) -> float:
    """N_opt at C = `budget` from the minima (C, N) below: a line in log-log, its slope pulled towards 1/2.

    Ridge regression with the prior of `SLOPE`; with one minimum the slope is the prior's.
    """
    x, y = np.log([c for c, _ in minima]), np.log([n for _, n in minima])
    centred = x - x.mean()
    pull = (MINIMUM_SD / SLOPE_SD) ** 2
    slope = (centred @ y + pull * SLOPE) / (centred @ centred + pull)
    # From the last minimum on rather than from the mean of all: what bends the line is nearest there
    level = 0.5 * (y[-1] + y.mean() + slope * (x[-1] - x.mean()))
    return float(np.exp(level + slope * (np.log(budget) - x[-1])))


def beyond(valley: Valley, ladder: Sequence[ModelSize]) -> tuple[list[ModelSize], str]:
    """The sizes to add so that the minimum comes to lie inside, and on which side; no side where it does.

    An interior minimum nearer than `MARGIN` to an end is not yet trusted: noise may have put it there.
    """
    n = valley.params
    low, high = float(n[0]), float(n[-1])
    inside = valley.status == "interior"
    vertex = valley.params_opt if inside else float(n[int(np.argmin(valley.loss))])
    if inside and vertex / low >= MARGIN and high / vertex >= MARGIN:
        return [], ""
    larger = high / vertex < vertex / low
    if valley.status == "concave" and low < vertex < high:
        larger = bool(valley.loss[-1] < valley.loss[0])  # no valley at all: look on at the lower end
    most = 1 if inside else MAX_AT_ONCE
    if larger:
        return [s for s in ladder if s.params > high][:most], "larger"
    return [s for s in ladder if s.params < low][-most:], "smaller"


def valley_through(budget: float, sizes: Sequence[ModelSize], tokens: Sequence[int], losses: Sequence[float]) -> Valley:
    """The valley of these sizes, as the analysis fits it."""
    n = np.array([s.params for s in sizes], dtype=np.float64)
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
