"""The input of every fit: one entry per measured loss, grouped into budgets and runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.arrays import Bools, Floats, Ints
from flops_fit_ray.analysis.learning_rates import TriedRates
from flops_fit_ray.errors import FitError

BLOCKS = 6  # of equal numbers of points by C, where the budgets are not labelled
MOST = 1e100  # of any number of a point: squares and products of such are finite
NEARNESS = 1.25  # largest over smallest C of one budget, where no label says which belong together


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """One entry per measured loss; all arrays (points,)."""

    budget: Floats  # nominal C: the group that a point belongs to
    flops: Floats  # C spent
    params: Floats
    tokens: Floats
    loss: Floats
    run: Ints | None = None  # the training run that a point belongs to; None: each point is a run
    weight: Floats | None = None  # of the squared error; None: all 1
    seconds: Floats | None = None  # of training; NaN where unknown
    params_as: Mapping[str, Floats] = field(default_factory=dict)  # N under other definitions
    flops_as: Mapping[str, Floats] = field(default_factory=dict)  # C under other definitions
    metrics: Mapping[str, Floats] = field(default_factory=dict)  # other than the loss, by name; NaN where unknown
    unique: Floats | None = None  # tokens seen at least once; None where that is not known
    lr: Floats | None = None  # peak learning rate; None where it is taken for the best one
    tried: TriedRates | None = None  # other rates at some N and D, of runs whose `lr` was probed; None: as above
    token_cost: tuple[Floats, Floats] | None = None  # N and FLOPs per token of every measured size, run or not
    labelled: bool = True  # False: `budget` was inferred by `group_by_nearness`

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def weights(self) -> Floats:
        """Weights (points,) of the squared errors."""
        return np.ones(len(self)) if self.weight is None else self.weight

    @property
    def runs(self) -> Ints:
        """Index (points,) from 0 of the run of each point."""
        if self.run is None:
            return np.arange(len(self))
        return np.unique(self.run, return_inverse=True)[1].astype(np.int64)

    @property
    def num_runs(self) -> int:
        """Number of independent training runs that the points come from."""
        return len(self) if self.run is None else len(np.unique(self.run))

    def pick(self, keep: Bools | Ints) -> Points:
        """Return the points where `keep` is True, or those with its indices in their order."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, Mapping):
                values[name] = {key: array[keep] for key, array in value.items()}
            elif isinstance(value, np.ndarray):
                values[name] = value[keep]
        return Points(**values)


def check_points(points: Points) -> None:
    """Check that every number has a logarithm.

    Raises:
        FitError: a loss, size or budget is not positive and finite, or so large that what is computed of it is not.
    """
    for name in ("budget", "flops", "params", "tokens", "loss", "weights", "unique"):
        values = getattr(points, name)
        if values is None:
            continue
        bad = values[~((values > 0) & (values < MOST))]
        if len(bad):
            wrong = f"{fmt.counted(len(bad), 'value')} {'is' if len(bad) == 1 else 'are'} not"
            raise FitError(f"{name} must be positive and below {MOST:g}: {wrong}, such as {bad[0]}")


def group_by_nearness(cost: Floats, factor: float = NEARNESS) -> Floats:
    """Label (points,) every C with a budget: repeatedly, the range of `factor` with the most points becomes a budget.

    Unlike single-linkage clustering, runs scattered between the budgets never chain them together. The label is the
    geometric mean of its points.
    """
    order = np.argsort(cost, kind="stable")
    log_cost = np.log(cost[order])
    free = np.ones(len(cost), dtype=bool)
    label = np.empty(len(cost))
    while free.any():
        left = log_cost[free]
        ends = np.searchsorted(left, left + np.log(factor) + 1e-12, side="right")
        begin = int(np.argmax(ends - np.arange(len(left))))
        members = np.flatnonzero(free)[begin : ends[begin]]
        label[order[members]] = np.exp(log_cost[members].mean())
        free[members] = False
    return label


def blocks_by_budget(points: Points) -> Ints:
    """Return the block (points,) of each point, from 0 for the smallest C: its budget, or one of `BLOCKS` by C."""
    if points.labelled:
        return np.unique(points.budget, return_inverse=True)[1].reshape(-1).astype(np.int64)
    rank = np.argsort(np.argsort(points.flops, kind="stable"), kind="stable")
    return np.asarray(rank * BLOCKS // len(points), dtype=np.int64)


def budget_gap(points: Points) -> float:
    """Gap between budgets: the median ratio of the smallest C of one to the largest C of the one below."""
    groups = [points.flops[points.budget == b] for b in np.unique(points.budget)]
    groups.sort(key=lambda group: float(group.min()))
    ratios = [upper.min() / lower.max() for lower, upper in itertools.pairwise(groups)]
    return float(np.median(ratios)) if ratios else float("inf")


def smoothed(curves: Points, places: int = 60) -> Points:
    """Average training curves over equal steps of log C, so that one lucky batch is not the minimum; needs `run`."""
    assert curves.run is not None
    log_c = np.log(curves.flops)
    step = max(float(np.ptp(log_c)) / places, 1e-12)
    cell = np.floor((log_c - log_c.min()) / step).astype(np.int64)
    _, which = np.unique(np.stack([curves.runs, cell], axis=1), axis=0, return_inverse=True)
    which = which.reshape(-1)
    count = np.bincount(which)

    def mean(values: Floats) -> Floats:
        return np.asarray(np.bincount(which, weights=values) / count)

    run = np.zeros(len(count), dtype=np.int64)
    run[which] = curves.runs
    flops = np.exp(mean(log_c))
    return Points(budget=flops, flops=flops, params=mean(curves.params), tokens=np.exp(mean(np.log(curves.tokens))),
                  loss=mean(curves.loss), run=run)  # fmt: skip
