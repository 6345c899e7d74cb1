"""The metrics of a sweep at the minima of its valleys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis import SweepFit
from flops_fit_ray.ledger import ExperimentResult
from flops_fit_ray.planning import derived_metrics
from flops_fit_ray.sweep.directory import Sweep


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """The metrics at N_opt of one budget."""

    budget: float
    params: float  # N_opt
    loss: float  # L_opt
    metrics: Mapping[str, float]  # by name


def metrics_at_minima(sweep: Sweep, fit: SweepFit | None = None) -> tuple[Minimum, ...]:
    """Return the metrics at the minimum of every valley of a fit that has one; None takes the sweep's own fit.

    What follows from the loss (perplexity, bits per byte) is that of L_opt. Any other metric is read at N_opt off a
    curve over log N through the same runs, of the same kind and with the same weights as the valley. A metric that a
    run of the valley lacks is left out.
    """
    found = []
    for valley in (sweep.fit if fit is None else fit).valleys:
        if valley.status != "interior" or valley.over_params is None:
            continue
        results = [sweep.standing[i] for i in valley.index[valley.used]]
        x = np.array([math.log10(valley.params_opt)])
        own = {
            name: float(valley.over_params.through(np.array(values)).at(x)[0])
            for name, values in _shared_metrics(results).items()
        }
        metrics = {**own, **derived_metrics(sweep.spec, valley.loss_opt)}
        found.append(Minimum(budget=valley.budget, params=valley.params_opt, loss=valley.loss_opt, metrics=metrics))
    return tuple(found) if any(m.metrics for m in found) else ()


def _shared_metrics(results: Sequence[ExperimentResult]) -> dict[str, list[float]]:
    names = set.intersection(*(set(r.metrics) for r in results)) if results else set()
    return {name: [r.metrics[name] for r in results] for name in sorted(names)}
