"""Damped Newton for many small problems at once, on the same points: rows leave when they have converged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats

CHUNK = 65_536  # elements of (rows, points) at once: what stays in a core's cache
MAX_ITERATIONS = 200
MAX_DAMPING = 1e9  # beyond it no step helps


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Where the points lie: ln N and ln D, centred; (n,)."""

    x: Floats
    y: Floats

    @cached_property
    def powers(self) -> tuple[Floats, Floats, Floats]:
        """1, -x, x²; 1, -y, y²; 1, -x, -y, xy: columns (n, .), for sums of derivatives over the points."""
        x, y, one = self.x, self.y, np.ones_like(self.x)
        return (
            np.stack([one, -x, x * x], axis=1),
            np.stack([one, -y, y * y], axis=1),
            np.stack([one, -x, -y, x * y], axis=1),
        )


@dataclass(frozen=True, kw_only=True)
class Search:
    """How a minimum is searched. `tolerance` is relative to the objective: a smaller promise is convergence.

    Rows that are starts of one problem may end early: `patience` iterations after the lowest of them has converged.
    """

    lower: Floats  # (parameters,)
    upper: Floats
    damping: float  # at the start
    tolerance: float = 1e-12
    max_iterations: int = MAX_ITERATIONS
    patience: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Ended:
    """Where the rows ended, and what was evaluated there; arrays with the rows first."""

    theta: Floats
    known: Sequence[Floats]
    converged: Bools

    @property
    def objective(self) -> Floats:
        """The minima (rows,)."""
        return self.known[0]


Evaluate = Callable[[Floats, Floats, Floats], Sequence[Floats]]
Step = Callable[[Floats, Sequence[Floats], Floats], tuple[Floats, Floats]]


def descend(theta: Floats, target: Floats, weights: Floats, evaluate: Evaluate, step: Step, search: Search) -> Ended:
    """Minimise every row.

    Args:
        theta: where to begin (rows, parameters).
        target: what is fitted, (points,) or (rows, points).
        weights: (points,) or (rows, points).
        evaluate: (theta, target, weights) -> objective (rows,) and whatever `step` needs, each with the rows first.
        step: (theta, what was evaluated, damping) -> the step, and the decrease that it promises.
    """
    shape = (len(theta), target.shape[-1])
    target, weights = np.broadcast_to(target, shape), np.broadcast_to(weights, shape)
    block = max(1, CHUNK // shape[1])
    parts = []
    for begin in range(0, len(theta), block):
        here = slice(begin, begin + block)
        parts.append(_descend_block(theta[here], target[here], weights[here], evaluate, step, search))
    return Ended(
        theta=np.concatenate([part.theta for part in parts]),
        known=[np.concatenate(values) for values in zip(*(part.known for part in parts), strict=True)],
        converged=np.concatenate([part.converged for part in parts]),
    )


def _descend_block(
    theta: Floats, target: Floats, weights: Floats, evaluate: Evaluate, step: Step, search: Search
) -> Ended:
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
        move, promise = step(best[live], [values[live] for values in known], dampings[live])
        trial = np.clip(best[live] + move, search.lower, search.upper)
        whole = len(live) == rows  # a copy of all rows costs as much as a step
        new = evaluate(trial, target if whole else target[live], weights if whole else weights[live])
        better = new[0] < value
        small = promise <= tolerance * value + 1e-28
        # As good as rounding allows: little was promised, and nothing or hardly anything was gained
        small |= (promise <= 1e4 * tolerance * value) & ~(new[0] < value * (1 - tolerance))
        rising = live[better]
        best[rising] = trial[better]
        for values, fresh in zip(known, new, strict=True):
            values[rising] = fresh[better]
        dampings[live] = np.where(better, dampings[live] / 10, np.maximum(dampings[live], 1e-6) * 8)
        converged[live[small]] = True
        done[live[small | (dampings[live] > MAX_DAMPING)]] = True
    return Ended(theta=best, known=known, converged=converged)
