"""Disk space of a sweep besides its results: checkpoints of running experiments, and those that are kept."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_ray.planning._plan import Disk
from flops_fit_ray.planning._trunks import leaves_trunk, trunk_of
from flops_fit_ray.planning.experiment import Experiment
from flops_fit_ray.spec import SweepSpec

WEIGHT_BYTES = 4  # fp32, for any precision of the matmuls
OTHER_BYTES = 100_000  # random states, data position, curve


def disk_need(experiments: Sequence[Experiment], spec: SweepSpec) -> Disk:
    """Bytes of checkpoints and weights, per running experiment and at the end of the sweep."""
    policy = spec.checkpoint
    kept = policy.keep + 1 + policy.best  # one more while it is being written
    weights = sum(WEIGHT_BYTES * e.params_total for e in experiments) if policy.weights else 0
    best = sum(map(checkpoint_bytes, experiments)) if policy.best else 0
    trunks = {trunk_of(e): checkpoint_bytes(e) for e in experiments if spec.grid.trunk and leaves_trunk(e)}
    return Disk(
        per_running=kept * max(map(checkpoint_bytes, experiments)), in_the_end=weights + best + sum(trunks.values())
    )


def checkpoint_bytes(experiment: Experiment) -> int:
    """Bytes of one checkpoint: weights, and two moments of them for AdamW or one for SGD with momentum.

    An optimizer factory of the user counts as AdamW.
    """
    recipe = experiment.recipe
    moments = (1 if recipe.momentum else 0) if recipe.optimizer == "sgd" else 2
    return WEIGHT_BYTES * (1 + moments) * experiment.params_total + OTHER_BYTES
