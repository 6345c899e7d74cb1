"""Averages of very many losses over small cells of (N, D): as many points as a fit can use."""

from __future__ import annotations

import numpy as np

from flops_fit_ray.analysis import Points
from flops_fit_ray.analysis.arrays import Floats, Ints
from flops_fit_ray.tables._rows import codes_of, labels

MAX_POINTS = 5_000  # points that are fitted as they are: the errors of minima take memory by the square of it
BINNED_POINTS = 4_000  # at most, where there are more
FIRST_WIDTH, WIDER = 0.005, 1.3  # of a cell in ln N and ln D, and how it grows until the cells are few enough
MAX_BUDGETS = 2_000  # distinct budgets that are kept apart


def binned(points: Points) -> tuple[Points, float]:
    """Average points in cells of ln N and ln D, which no run and no budget shares; the weight of one is its number.

    The mean of L in a cell of width w differs from L at its middle by less than alpha²·(L - E)·w²/24.

    Returns:
        The points, and the width of the cells; 0 and the points as they are where they are few.
    """
    if len(points) <= MAX_POINTS:
        return points, 0.0
    budgets = codes_of(points.budget if points.labelled else points.flops)
    apart = [points.runs] if points.run is not None else []
    if budgets.max() < MAX_BUDGETS:
        apart.append(budgets)
    logs = [np.log(points.params), np.log(points.tokens)]
    if points.unique is not None:
        logs.append(np.log(points.tokens / points.unique))
    width = FIRST_WIDTH
    while True:
        cell = labels(*(_steps(values, width) for values in logs), *apart)
        if cell.max() < BINNED_POINTS or width > 1:
            return _averaged(points, cell), width
        width *= WIDER


def _steps(logs: Floats, width: float) -> Ints:
    step = np.floor(logs / width).astype(np.int64)
    return np.asarray(step - step.min())


def _averaged(points: Points, cell: Ints) -> Points:
    weight = np.bincount(cell, weights=points.weights).astype(np.float64)

    def mean(values: Floats) -> Floats:
        return np.asarray(np.bincount(cell, weights=values * points.weights) / weight)

    def geometric(values: Floats) -> Floats:
        return np.asarray(np.exp(mean(np.log(values))))

    first = np.unique(cell, return_index=True)[1]
    return Points(
        budget=geometric(points.budget),
        flops=geometric(points.flops),
        params=geometric(points.params),
        tokens=geometric(points.tokens),
        loss=mean(points.loss),
        run=None if points.run is None else points.run[first],
        weight=weight,
        metrics={name: mean(values) for name, values in points.metrics.items()},
        unique=None if points.unique is None else geometric(points.unique),
        seconds=None if points.seconds is None else mean(points.seconds),
        params_as={name: geometric(values) for name, values in points.params_as.items()},
        flops_as={name: geometric(values) for name, values in points.flops_as.items()},
        lr=None if points.lr is None else geometric(points.lr),
        tried=points.tried,
        labelled=points.labelled,
    )
