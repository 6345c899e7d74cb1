"""The disk that a sweep needs besides its results: checkpoints while experiments run, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_ray.planning.experiment import Experiment
from flops_fit_ray.planning.plan import Disk
from flops_fit_ray.planning.trunks import leaves_trunk, trunk_of
from flops_fit_ray.spec import SweepSpec

WEIGHT_BYTES = 4  # of fp32, whatever the precision of the matmuls
OTHER_BYTES = 100_000  # random states, data position, curve


def disk_need(experiments: Sequence[Experiment], spec: SweepSpec) -> Disk:
    """What checkpoints and weights take: for each experiment that runs at a time, and in the end."""
    asked = spec.checkpoint
    kept = asked.keep + 1 + asked.best  # one more while it is being written
    weights = sum(WEIGHT_BYTES * e.params_total for e in experiments) if asked.weights else 0
    best = sum(map(checkpoint_bytes, experiments)) if asked.best else 0
    trunks = {trunk_of(e): checkpoint_bytes(e) for e in experiments if spec.grid.trunk and leaves_trunk(e)}
    return Disk(
        per_running=kept * max(map(checkpoint_bytes, experiments)), in_the_end=weights + best + sum(trunks.values())
    )


def checkpoint_bytes(experiment: Experiment) -> int:
    """One checkpoint: the weights, and the optimizer's two moments (AdamW) or one (SGD with momentum) of them.

    A factory of the user's is taken for AdamW.
    """
    recipe = experiment.recipe
    moments = (1 if recipe.momentum else 0) if recipe.optimizer == "sgd" else 2
    return WEIGHT_BYTES * (1 + moments) * experiment.params_total + OTHER_BYTES
