"""What designs of a sweep cost for the same certainty: adaptive with trunks against a full grid of separate runs.

    python -m benchmarks.design [--sweeps 200] [--designs all] [--surfaces hoffmann] [--ratio 3.16]

Synthetic sweeps on three surfaces at two noise levels; the planner, the trunks and the fit are the product's own. The
full grid has 7 sizes from 1/4 to 4 times the optimum at every budget, each a run of its own, and knows that optimum
within a factor of 1.4 beforehand; its learning rates are right. One JSON line per surface, noise and design:

    cost     FLOPs executed over those of the full grid
    equal    the same at equal width of the interval of N_opt at ten times the largest budget: cost · (width/width)²
    equal_spread   the same at equal spread of the answers over sweeps
    bias     mean of ln(N_opt/true); spread: its standard deviation; coverage of the 95 % interval
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from flops_fit_ray.analysis import FitOptions, fit_sweep
from flops_fit_ray.planning import Measurements, Planner
from flops_fit_ray.planning.loss_surfaces import ADDITIVE, SURFACES
from flops_fit_ray.planning.simulation import World, lr_factor_of, simulate_sweep
from flops_fit_ray.planning.slots import own_flops
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.sweep.simulate import simulated_points
from tests.worlds import DATA, RULE, SIZES, adaptive_spec

NOISES = (0.003, 0.01)
KNOWN_WITHIN = 1.4  # the factor within which the full grid knows its optima beforehand
BEYOND = 10.0
SURVEY = Measurements(sizes=SIZES, data=DATA)
DESIGNS: dict[str, dict[str, Any]] = {
    "default": {},
    "default, rate given": {"train": {"batch_size": 500, "lr": RULE}},
    "without trunks": {"trunk": False},
    "4 sizes": {"sizes": 4},
    "7 sizes": {"sizes": 7},
    "window 3": {"window": 3.0},
    "window 6": {"window": 6.0},
    "no seeds": {"seeds": 0},
    "first valley of 5": {"first_sizes": 5},
    "fit of all sizes": {"fit_all": True},
}


def main() -> None:
    """Print a line for every surface, noise and design."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--ratio", type=float, default=math.sqrt(10), help="of neighbouring budgets")
    parser.add_argument("--budgets", type=int, default=5)
    parser.add_argument("--surfaces", default="; ".join(ADDITIVE), help=f"some of: {'; '.join(SURFACES)}")
    parser.add_argument("--designs", default="default", help=f"all, or some of: {'; '.join(DESIGNS)}")
    arguments = parser.parse_args()
    budgets = [float(f"{1e17 * arguments.ratio**k:.4g}") for k in range(arguments.budgets)]
    names = list(DESIGNS) if arguments.designs == "all" else arguments.designs.split("; ")
    for surface in arguments.surfaces.split("; "):
        for noise in NOISES:
            full = _marks(arguments.sweeps, surface, noise, partial(_full_grid, budgets=budgets), BEYOND * budgets[-1])
            for name in ["full grid", *names]:
                found = full
                if name != "full grid":
                    spec, window = _design(budgets, dict(DESIGNS[name]))
                    planner = partial(_same, planner=Planner(spec, SURVEY))
                    found = _marks(arguments.sweeps, surface, noise, planner, BEYOND * budgets[-1], window=window)
                sys.stdout.write(json.dumps(_line(surface, noise, name, found, full)) + "\n")
                sys.stdout.flush()


def _same(world: World, planner: Planner) -> Planner:
    return planner


def _design(budgets: list[float], changes: dict[str, Any]) -> tuple[SweepSpec, int | None]:
    train = changes.pop("train", {"batch_size": 500})
    everything = changes.pop("fit_all", False)
    spec = adaptive_spec(budgets=budgets, train=train, grid=changes)
    return spec, None if everything else spec.grid.sizes


def _full_grid(world: World, budgets: list[float]) -> Planner:
    rng = np.random.default_rng(world.seed)
    cells = []
    for c in budgets:
        centre = world.surface.optimum(c)[0] * KNOWN_WITHIN ** rng.uniform(-1, 1)
        targets = centre * np.geomspace(1 / 4, 4, 7)
        sizes = {min((abs(math.log(s.params / t)), s.params) for s in SIZES)[1] for t in targets}
        cells.append({"flops": c, "sizes": sorted(sizes)})
    spec = adaptive_spec(budgets=cells, grid={"trunk": False})  # type: ignore[arg-type] # mappings are budgets too
    return Planner(spec, SURVEY)


def _marks(
    sweeps: int,
    surface: str,
    noise: float,
    planner_for: Callable[[World], Planner],
    target: float,
    window: int | None = None,
) -> np.ndarray:
    """ln(N/true), ln of the interval's width, whether it holds the truth, FLOPs, experiments, error of the exponent."""
    rows = []
    for seed in range(sweeps):
        given = World(surface=SURFACES[surface], noise=noise, seed=seed)
        planner = planner_for(given)
        world = World(surface=SURFACES[surface], noise=noise, seed=seed, lr_factor=lr_factor_of(planner.spec))
        simulated = simulate_sweep(planner, world, 8, own_flops)
        points = simulated_points(simulated.rows(), shared=planner.spec.grid.trunk)
        law = fit_sweep(points, FitOptions(draws=400, window=window, seed=seed)).methods["valley"].params_opt
        within = None if law is None else law.interval(target, 0.95)
        if law is None or within is None:
            continue
        true = world.surface.optimum(target)[0]
        low, high = (world.surface.optimum(c.flops)[0] for c in (planner.spec.budgets[0], planner.spec.budgets[-1]))
        exponent = math.log(high / low) / math.log(planner.spec.budgets[-1].flops / planner.spec.budgets[0].flops)
        experiments = simulated.plan.experiments
        rows.append(
            (
                math.log(law.at(target) / true),
                math.log(within.factor),
                float(within.holds(true)),
                sum(e.flops_executed for e in experiments),
                len(experiments),
                law.exponent - exponent,
            )
        )
    return np.array(rows)


def _line(surface: str, noise: float, name: str, found: np.ndarray, full: np.ndarray) -> dict[str, Any]:
    cost = float(found[:, 3].mean() / full[:, 3].mean())
    width = float(np.median(found[:, 1]) / np.median(full[:, 1]))
    spread = float(found[:, 0].std() / full[:, 0].std())
    return {
        "surface": surface,
        "noise": noise,
        "design": name,
        "experiments": round(float(found[:, 4].mean()), 1),
        "cost": round(cost, 3),
        "equal": round(cost * width**2, 3),
        "equal_spread": round(cost * spread**2, 3),
        "bias": round(float(found[:, 0].mean()), 4),
        "spread": round(float(found[:, 0].std()), 4),
        "coverage": round(float(found[:, 2].mean()), 3),
        "exponent_bias": round(float(found[:, 5].mean()), 4),
        "sweeps": len(found),
    }


if __name__ == "__main__":
    main()
