"""Damped Newton (Levenberg-Marquardt) for many small problems on the same points; converged rows are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats

CHUNK = 65_536  # elements of (rows, points) at once, which fit the cache of a core
MAX_ITERATIONS = 200
ROUNDING = 1e-14  # relative, of an objective
MAX_DAMPING = 1e9  # no step lowers the objective beyond it


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Coordinates of the points: ln N and ln D, centred; (n,)."""

    x: Floats
    y: Floats

    @cached_property
    def powers(self) -> tuple[Floats, Floats, Floats]:
        """Columns 1, -x, x²; 1, -y, y²; 1, -x, -y, xy of (n, 3), (n, 3) and (n, 4), for sums of derivatives."""
        x, y, one = self.x, self.y, np.ones_like(self.x)
        return (
            np.stack([one, -x, x * x], axis=1),
            np.stack([one, -y, y * y], axis=1),
            np.stack([one, -x, -y, x * y], axis=1),
        )


@dataclass(frozen=True, kw_only=True)
class Search:
    """Settings of the search. A row has converged if the predicted decrease is below `tolerance` times its objective.

    Where rows are starts of one problem, all end `patience` iterations after the lowest of them has converged.
    """

    lower: Floats  # (parameters,)
    upper: Floats
    damping: float  # of the first step
    tolerance: float = 1e-12
    max_iterations: int = MAX_ITERATIONS
    patience: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchResult:
    """The best theta of every row and the values of `evaluate` there; arrays with the rows first."""

    theta: Floats
    known: Sequence[Floats]
    converged: Bools

    @property
    def objective(self) -> Floats:
        """The objective (rows,) at theta."""
        return self.known[0]


Evaluate = Callable[[Floats, Floats, Floats], Sequence[Floats]]
Step = Callable[[Floats, Sequence[Floats], Floats], tuple[Floats, Floats]]


def descend(
    theta: Floats, target: Floats, weights: Floats, evaluate: Evaluate, step: Step, search: Search
) -> SearchResult:
    """Minimise the objective of every row.

    Args:
        theta: starting points (rows, parameters).
        target: observations, (points,) or (rows, points).
        weights: (points,) or (rows, points).
        evaluate: (theta, target, weights) -> objective (rows,), then the derivatives for `step`, rows first.
        step: (theta, values of `evaluate`, damping) -> step (rows, parameters) and predicted decrease (rows,).
    """
    shape = (len(theta), target.shape[-1])
    target, weights = np.broadcast_to(target, shape), np.broadcast_to(weights, shape)
    block = max(1, CHUNK // shape[1])
    parts = []
    for begin in range(0, len(theta), block):
        here = slice(begin, begin + block)
        parts.append(_descend_block(theta[here], target[here], weights[here], evaluate, step, search))
    return SearchResult(
        theta=np.concatenate([part.theta for part in parts]),
        known=[np.concatenate(values) for values in zip(*(part.known for part in parts), strict=True)],
        converged=np.concatenate([part.converged for part in parts]),
    )


def _descend_block(
    theta: Floats, target: Floats, weights: Floats, evaluate: Evaluate, step: Step, search: Search
) -> SearchResult:
    rows = len(theta)
    best, known = theta.copy(), [values.copy() for values in evaluate(theta, target, weights)]
    dampings = np.full(rows, search.damping)
    max_iterations, patience, tolerance = search.max_iterations, search.patience, search.tolerance
    done = ~np.isfinite(known[0])
    converged = np.zeros(rows, dtype=bool)
    iterations = 0
    while iterations < max_iterations and not done.all():
        iterations += 1
        if patience is not None and converged[known[0].argmin()]:
            max_iterations = min(max_iterations, iterations + patience)
            patience = None
        live = np.flatnonzero(~done)
        value = known[0][live]
        move, predicted = step(best[live], [values[live] for values in known], dampings[live])
        trial = np.clip(best[live] + move, search.lower, search.upper)
        whole = len(live) == rows  # a copy of all rows costs as much as a step
        new = evaluate(trial, target if whole else target[live], weights if whole else weights[live])
        better = new[0] < value
        small = predicted <= tolerance * value + 1e-28
        # Converged to rounding: a small decrease was predicted, and nearly none was achieved
        small |= (predicted <= 1e4 * tolerance * value) & ~(new[0] < value * (1 - tolerance))
        # The last step is worth taking where rounding hides its decrease: the gradient knows more digits
        taken = better | (small & (new[0] <= value * (1 + ROUNDING)))
        best[live[taken]] = trial[taken]
        for values, fresh in zip(known, new, strict=True):
            values[live[taken]] = fresh[taken]
        # Levenberg-Marquardt: trust the quadratic model more after a success, less after a failure
        dampings[live] = np.where(better, dampings[live] / 10, np.maximum(dampings[live], 1e-6) * 8)
        converged[live[small]] = True
        done[live[small | (dampings[live] > MAX_DAMPING)]] = True
    return SearchResult(theta=best, known=known, converged=converged)
