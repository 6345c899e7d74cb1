"""Damped Newton for many small problems at once: rows leave when they have converged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats, Ints

MAX_ITERATIONS = 200
MOST_DAMPING = 1e9  # beyond it no step helps


def descend(
    theta: Floats,
    evaluate: Callable[[Floats, Ints], Sequence[Floats]],
    step: Callable[[Floats, Sequence[Floats], Floats], tuple[Floats, Floats]],
    *,
    lower: Floats,
    upper: Floats,
    damping: float,
    tolerance: float,
    most: int = MAX_ITERATIONS,
    patience: int | None = None,
) -> tuple[Floats, list[Floats], Bools, int]:
    """Where the rows of `theta` end, what `evaluate` says there, which converged, and how many iterations it took.

    Args:
        theta: (rows, parameters).
        evaluate: (theta, rows) -> objective (rows,) and whatever `step` needs, each with the rows first.
        step: (theta, what was evaluated, damping) -> the step, and the decrease that it promises.
        tolerance: relative to the objective; a smaller promise is convergence.
        patience: rows that are starts of one problem end so many iterations after the lowest has converged.
    """
    rows = len(theta)
    best, known = theta.copy(), [values.copy() for values in evaluate(theta, np.arange(rows))]
    dampings = np.full(rows, damping)
    done = ~np.isfinite(known[0])
    converged = np.zeros(rows, dtype=bool)
    iterations = 0
    while iterations < most and not done.all():
        iterations += 1
        if patience is not None and converged[known[0].argmin()]:
            most = min(most, iterations + patience)
            patience = None
        live = np.flatnonzero(~done)
        value = known[0][live]
        move, promise = step(best[live], [values[live] for values in known], dampings[live])
        trial = np.clip(best[live] + move, lower, upper)
        new = evaluate(trial, live)
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
        done[live[small | (dampings[live] > MOST_DAMPING)]] = True
    return best, known, converged, iterations
