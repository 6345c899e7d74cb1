"""Sweeps planned for surfaces whose answers are known, without training."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from flops_fit_ray.planning import DataFacts, Measurements, ModelSize, Observation, Plan, Planner, next_experiments
from flops_fit_ray.planning.experiment import Experiment
from flops_fit_ray.planning.loss_surfaces import SURFACES
from flops_fit_ray.planning.simulation import World
from flops_fit_ray.spec import SweepSpec, make_spec

BUDGETS = [1e17, 3.16e17, 1e18, 3.16e18, 1e19]
RULE = {"base": 1e-3, "at": 1e7, "exponent": -0.25}
DATA = DataFacts(
    train_samples=10**18, eval_samples=10, tokens_per_sample=1, token_unit="t", eval_source="e", fingerprint="f"
)


def size(params: int, flops_per_token: float | None = None) -> ModelSize:
    """A size whose name is its N."""
    return ModelSize(
        size=params,
        kwargs={"width": params},
        params=params,
        params_total=params,
        params_non_embedding=params,
        params_source="test",
        flops_per_token=6.0 * params if flops_per_token is None else flops_per_token,
        flops_source="test",
    )


SIZES = tuple(size(round(1e4 * 2 ** (k / 4))) for k in range(120))


def adaptive_spec(budgets: list[float] = BUDGETS, **changes: Any) -> SweepSpec:
    """A spec whose sizes are left to the planner."""
    content: dict[str, Any] = {
        "model": {"target": "m:G", "size_param": "width"},
        "data": {"train": "m:t"},
        "budgets": budgets,
        "train": {"batch_size": 500, "lr": RULE},
    }
    return make_spec({**content, **changes}, "test")


def planner_of(spec: SweepSpec | None = None, sizes: tuple[ModelSize, ...] = SIZES, **changes: Any) -> Planner:
    """A planner over these sizes."""
    return Planner(spec or adaptive_spec(**changes), Measurements(sizes=sizes, data=DATA))


def world(surface: str = "hoffmann", noise: float = 0.0, **more: Any) -> World:
    """A world where the general rule is the best learning rate."""
    return World(surface=SURFACES[surface], noise=noise, lr_factor=more.pop("lr_factor", 1.0), **more)


def loss_in(where: World) -> Callable[[Experiment], Observation]:
    """What experiments come to in a world."""
    return lambda e: Observation(loss=where.loss(e, 1e-3 * (e.params / 1e7) ** -0.25))


def run_through(
    planner: Planner, find: Callable[[Experiment], Observation], order: random.Random | None = None
) -> tuple[Plan, dict[str, Observation]]:
    """A whole sweep, one experiment at a time: the first that can run, or any of them by `order`."""
    observed: dict[str, Observation] = {}
    while True:
        plan = planner.plan(observed)
        ready = next_experiments(plan, observed)
        if not ready:
            assert plan.final
            return plan, observed
        chosen = ready[0] if order is None else order.choice(ready)
        observed[chosen.key] = find(chosen)


def run_in_rounds(planner: Planner, find: Callable[[Experiment], Observation]) -> tuple[Plan, dict[str, Observation]]:
    """The same sweep, all that is decided at a time: its plan does not depend on who ends first."""
    observed: dict[str, Observation] = {}
    while True:
        plan = planner.plan(observed, forecast=False)
        new = [e for e in plan.experiments if e.key not in observed]
        if not new:
            assert plan.final
            return plan, observed
        observed |= {e.key: find(e) for e in new}


def of_role(plan: Plan, role: str) -> list[Experiment]:
    """The experiments of one role."""
    return [e for e in plan.experiments if e.role == role]
