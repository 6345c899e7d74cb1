"""A sweep whose losses come from a published surface: the planner, the ledger and the fit are real, training is not."""

from __future__ import annotations

import time
from collections.abc import Callable

from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.planning import Experiment, ExperimentFacts, Observation, Plan, Planner
from flops_fit_ray.planning.cells import resolve_lr
from flops_fit_ray.planning.loss_surfaces import SURFACES
from flops_fit_ray.planning.simulation import World, lr_factor_of
from flops_fit_ray.spec import SYNTHETIC_LOSS
from flops_fit_ray.storage.codec import fields_of
from flops_fit_ray.storage.lock import hostname

NOISE = 0.01  # standard deviation of a loss, in nats


def rehearse_plan(planner: Planner, ledger: Ledger, on_plan: Callable[[Plan], None]) -> None:
    """Record a synthetic result for every experiment of the plan; the same plan gets the same losses.

    Args:
        on_plan: told of the plan at first and whenever it has grown.

    Raises:
        StorageError: the directory cannot be written.
    """
    surface = SURFACES[SYNTHETIC_LOSS.partition(":")[2]]
    world = World(surface=surface, noise=NOISE, lr_factor=lr_factor_of(planner.spec))
    sizes = {s.size: s for s in planner.measurements.every_size}
    observed: dict[str, Observation] = {}
    while True:
        plan = planner.plan(observed)
        on_plan(plan)
        left = [e for e in plan.experiments if e.key not in observed]
        if not left:
            return
        for e in left:
            if ledger.result(e.key) is None:
                own_lr = resolve_lr(planner.spec, sizes[e.size], e.budget)
                ledger.record_result(_result(e, world.loss(e, own_lr)))
        observed |= ledger.observed(e.key for e in left)


def _result(e: Experiment, loss: float) -> ExperimentResult:
    return ExperimentResult(
        **fields_of(ExperimentFacts, e),
        tokens_seen=e.tokens,
        loss=loss,
        loss_stderr=None,
        loss_kind="synthetic",
        train_loss=loss,
        seconds=0.0,
        device="none",
        attempts=1,
        host=hostname(),
        finished_at=time.time(),
        flops=e.flops,
        flops_executed=0.0,
        lr=e.recipe.lr,
        seed=e.recipe.seed,
        versions={},
    )
