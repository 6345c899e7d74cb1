"""Does `--until` reach the interval that is asked for, at what cost, and does the interval then hold the truth?

    python -m benchmarks.until [--worlds hoffmann,besiroglu,kaplan,cross] [--sweeps 20] [--power 0.7] [--probed]

Sweeps in known worlds by the own planner, fits and stopping rule; training alone is replaced by the world. Four
budgets, N_opt wanted at ten times the largest, within the grid's own factor to the power `--power`. The rule's single
runs stand beside whole budgets, each sqrt(10) times the last, that are added until the same factor is reached. Both may
cost ten times the grid. One JSON line for each world, noise and way:

    reached  share of sweeps that got there;  held, held_before: shares of intervals that hold the truth
    cost     FLOPs of all over those of the grid, median;  rounds, runs: of what was added, means
    factor   median of what N_opt is known within at the end; before: after the grid
    rms      of ln(N/true), misfit and all; bias: its mean;  ended: why sweeps ended that did not get there
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flops_fit_ray.analysis import predict
from flops_fit_ray.ledger import ExperimentResult
from flops_fit_ray.planning import (
    Experiment,
    ExperimentFacts,
    Measurements,
    Observation,
    Plan,
    Planner,
    needed_trunks,
)
from flops_fit_ray.planning.cells import resolve_lr
from flops_fit_ray.planning.loss_surfaces import SURFACES
from flops_fit_ray.planning.simulation import World, lr_factor_of
from flops_fit_ray.spec import Budget, SweepSpec
from flops_fit_ray.storage.codec import fields_of
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.stopping import StoppingRule, decide_next, factor_at, with_budgets, with_runs
from tests.worlds import DATA, RULE, SIZES, adaptive_spec, run_in_rounds

NOISES = (0.003, 0.01)  # nats
BUDGETS = [1e17, 3.16e17, 1e18, 3.16e18]
TARGET = 10 * BUDGETS[-1]
RATIO, AT_MOST = math.sqrt(10), 10.0  # of a further budget; FLOPs of all, over those of the grid
SURVEY = Measurements(sizes=SIZES, data=DATA)
BY_LABEL = {size.size: size for size in SIZES}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What one sweep came to."""

    factor: float
    flops: float
    error: float  # ln(N/true)
    held: bool
    rounds: int = 0
    runs: int = 0
    why: str = ""  # it ended before the factor was reached


@dataclass(frozen=True)
class _Paths(SweepPaths):
    """Files of a sweep that has none but these trunks."""

    trunks: frozenset[str] = frozenset()

    def trunk_keys(self) -> set[str]:
        return set(self.trunks)


def main() -> None:
    """Print a line for every world, noise and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default="hoffmann,besiroglu,kaplan,cross", help=f"some of: {','.join(SURFACES)}")
    parser.add_argument("--sweeps", type=int, default=20)
    parser.add_argument("--draws", type=int, default=400, help="of the bootstrap")
    parser.add_argument("--power", type=float, default=0.7, help="of the grid's factor, to which it is asked for")
    parser.add_argument("--noises", default=",".join(map(str, NOISES)))
    parser.add_argument("--probed", action="store_true", help="learning rates are probed, instead of known")
    arguments = parser.parse_args()
    train = {"batch_size": 500} if arguments.probed else {"batch_size": 500, "lr": RULE}
    spec = adaptive_spec(budgets=BUDGETS, train=train, fit={"draws": arguments.draws}, grid={"max_experiments": 400})
    for name in arguments.worlds.split(","):
        for noise in map(float, arguments.noises.split(",")):
            found: dict[str, list[tuple[Ended, Ended]]] = {}
            for seed in range(arguments.sweeps):
                world = World(surface=SURFACES[name], noise=noise, lr_factor=lr_factor_of(spec), seed=seed)
                for way, pair in _sweep(spec, world, arguments.power):
                    found.setdefault(way, []).append(pair)
            for way, pairs in found.items():
                line = {"world": name, "noise": noise, "way": way, **_summary(pairs)}
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()


def _sweep(spec: SweepSpec, world: World, power: float) -> Iterator[tuple[str, tuple[Ended, Ended]]]:
    grid = _run(spec, world)
    now = factor_at(grid.fit, TARGET)
    if now is None:
        return
    before = _ended(grid, world, now)
    rule = StoppingRule(target=TARGET, factor=now**power, at_most=AT_MOST * before.flops)
    yield "single runs", (before, _single_runs(grid, world, rule))
    yield "whole budgets", (before, _whole_budgets(grid, world, rule))


def _single_runs(sweep: Sweep, world: World, rule: StoppingRule) -> Ended:
    first, rounds = len(sweep.plan.experiments), 0
    while (decision := decide_next(sweep, rule)).runs:
        sweep, rounds = _run(with_runs(sweep.spec, decision.runs), world, sweep.plan), rounds + 1
    why = "" if decision.reached else decision.message.partition("; ")[2]
    return _ended(sweep, world, decision.factor, rounds, len(sweep.plan.experiments) - first, why)


def _whole_budgets(sweep: Sweep, world: World, rule: StoppingRule) -> Ended:
    first, rounds, factor = len(sweep.plan.experiments), 0, factor_at(sweep.fit, rule.target)
    while factor is None or factor > rule.factor:
        flops = float(f"{sweep.spec.budgets[-1].flops * RATIO:.3g}")
        if flops >= rule.target:
            return _ended(sweep, world, factor, rounds, len(sweep.plan.experiments) - first, "the target is next")
        sweep, rounds = _run(with_budgets(sweep.spec, [Budget(flops=flops)]), world, sweep.plan), rounds + 1
        factor = factor_at(sweep.fit, rule.target)
    return _ended(sweep, world, factor, rounds, len(sweep.plan.experiments) - first)


def _run(spec: SweepSpec, world: World, before: Plan | None = None) -> Sweep:
    losses: dict[str, float] = {}
    planner = Planner(spec, SURVEY, None if before is None else before.constants)
    plan, _ = run_in_rounds(planner, partial(_find, spec, world, losses))
    results = tuple(_result(e, losses[e.key]) for e in plan.experiments)
    trunks = needed_trunks(plan.experiments, [e.key for e in plan.experiments])
    paths = _Paths(Path("/nowhere"), frozenset(trunks))
    return Sweep(paths=paths, spec=spec, plan=plan, results=results, failures=(), command="")


def _find(spec: SweepSpec, world: World, losses: dict[str, float], e: Experiment) -> Observation:
    losses[e.key] = world.loss(e, resolve_lr(spec, BY_LABEL[e.size], e.budget))
    return Observation(loss=losses[e.key])


def _result(e: Experiment, loss: float) -> ExperimentResult:
    return ExperimentResult(
        **fields_of(ExperimentFacts, e),
        tokens_seen=e.tokens,
        loss=loss,
        loss_stderr=None,
        train_loss=loss,
        seconds=0.0,
        device="none",
        attempts=1,
        host="none",
        finished_at=0.0,
        flops=e.flops,
        flops_executed=e.flops_executed,
        lr=e.recipe.lr,
        seed=e.recipe.seed,
        versions={},
    )


def _ended(sweep: Sweep, world: World, factor: float | None, rounds: int = 0, runs: int = 0, why: str = "") -> Ended:
    answer, true = predict(sweep.fit, TARGET), world.surface.optimum(TARGET)[0]
    within = answer.params_interval
    return Ended(
        factor=math.nan if factor is None else factor,
        flops=sweep.flops_spent,
        error=math.log(answer.params / true),
        held=within is not None and within.holds(true),
        rounds=rounds,
        runs=runs,
        why=why,
    )


def _summary(pairs: list[tuple[Ended, Ended]]) -> dict[str, Any]:
    before, after = ([pair[i] for pair in pairs] for i in (0, 1))
    errors = np.array([one.error for one in after])
    return {
        "sweeps": len(pairs),
        "reached": round(float(np.mean([not one.why for one in after])), 3),
        "held_before": round(float(np.mean([one.held for one in before])), 3),
        "held": round(float(np.mean([one.held for one in after])), 3),
        "cost": round(float(np.median([b.flops / a.flops for a, b in pairs])), 2),
        "cost_mean": round(float(np.mean([b.flops / a.flops for a, b in pairs])), 2),
        "rounds": round(float(np.mean([one.rounds for one in after])), 1),
        "runs": round(float(np.mean([one.runs for one in after])), 1),
        "before": round(float(np.median([one.factor for one in before])), 4),
        "factor": round(float(np.nanmedian([one.factor for one in after])), 4),
        "rms": round(math.sqrt(float(np.mean(errors**2))), 4),
        "bias": round(float(errors.mean()), 4),
        "ended": dict(Counter(one.why for one in after if one.why)),
    }


if __name__ == "__main__":
    main()
