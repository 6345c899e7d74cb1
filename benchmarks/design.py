"""What designs of a sweep cost for the same certainty: adaptive with trunks against a full grid of separate runs.

    python -m benchmarks.design [--sweeps 60] [--designs even;taper] [--worlds all] [--ratio 3.16] [--budgets 5]
                               [--best-rate drawn] [--trunk-share 0.8]

Synthetic sweeps in known worlds, three of which are of the fitted form, at two noise levels; planner, trunks and fit
are the product's own. The full grid has 7 sizes from 1/4 to 4 times the optimum at every budget, each a run of its own,
and knows that optimum within a factor of 1.4 beforehand; its learning rates are right. The best rate of the other
designs is 1.7 times the general rule, or as `--best-rate` says. One JSON line for each world, noise, design and
reading: the valleys, the answer (of the default method, with the union that a prediction gives where methods disagree)
and the surface. N_opt is asked for at ten times the largest budget:

    cost     FLOPs executed over those of the full grid
    width    of the 95 % interval of ln N, median, over that of the full grid read by valleys
    equal    cost at equal width, cost · width²
    rms      of ln(N/true), misfit and all; equal_error: cost · (rms/rms of the full grid read by valleys)²
    bias     mean of ln(N/true); coverage: share of intervals that hold the truth
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from flops_fit_ray.analysis import FitOptions, Interval, Points, fit_sweep, predict
from flops_fit_ray.analysis.learning_rates import PARAMS_SLOPE, PARAMS_SLOPE_SD, TOKENS_SLOPE, TOKENS_SLOPE_SD
from flops_fit_ray.planning import IN_FIT, Experiment, Measurements, Observation, Planner
from flops_fit_ray.planning.cells import resolve_lr
from flops_fit_ray.planning.loss_surfaces import SURFACES
from flops_fit_ray.planning.simulation import World, lr_factor_of
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.sweep.directory import fit_options
from flops_fit_ray.sweep.simulate import simulated_points, tried_in
from tests.worlds import DATA, RULE, SIZES, adaptive_spec, run_in_rounds

NOISES = (0.003, 0.01)  # nats
KNOWN_WITHIN = 1.4  # the factor within which the full grid knows its optima beforehand
BEYOND = 10.0
READINGS = ("valleys", "answer", "surface")
SURVEY = Measurements(sizes=SIZES, data=DATA)
BY_LABEL = {size.size: size for size in SIZES}
EVEN: Mapping[str, Any] = {"sizes": 5, "window": 4.0}
DESIGNS: Mapping[str, Mapping[str, Any]] = {
    "even": {"grid": EVEN},
    "taper": {},
    "taper, rate given": {"train": {"batch_size": 500, "lr": RULE}},
    "taper, window 4": {"grid": {"window": 4.0}},
    "taper, window 8": {"grid": {"window": 8.0}},
    "taper, without trunks": {"grid": {"trunk": False}},
    "taper, no seeds": {"grid": {"seeds": 0}},
    "taper, seeds 4": {"grid": {"seeds": 4}},
    "taper, no checks": {"grid": {"lr_check": "none"}},
    "taper, first valley of 5": {"grid": {"first_sizes": 5}},
    "even, 4 sizes": {"grid": {**EVEN, "sizes": 4}},
    "even, 7 sizes": {"grid": {**EVEN, "sizes": 7}},
    "even, window 6": {"grid": {**EVEN, "window": 6.0}},
}


@dataclass(frozen=True, kw_only=True)
class Read:
    """What the sweeps of one design said by one reading: arrays (sweeps,), NaN where a sweep has no answer."""

    error: np.ndarray  # ln(N/true)
    width: np.ndarray  # of the interval, in ln N
    held: np.ndarray  # 1 where the interval holds the truth


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the sweeps of one design cost and said."""

    flops: float  # executed, mean
    experiments: float
    window: float  # within which its valleys were read, mean; NaN where a number of sizes was
    readings: Mapping[str, Read]


def main() -> None:
    """Print a line for every world, noise, design and reading."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=60)
    parser.add_argument("--draws", type=int, default=200, help="of the bootstrap")
    parser.add_argument("--ratio", type=float, default=math.sqrt(10), help="of neighbouring budgets")
    parser.add_argument("--budgets", type=int, default=5)
    parser.add_argument("--worlds", default="all", help=f"all, or some of: {';'.join(SURFACES)}")
    parser.add_argument("--best-rate", help="P,Q: the best rate goes as N^P·D^Q; drawn: of each sweep, from the priors")
    parser.add_argument("--trunk-share", type=float, default=World.trunk_share, help="of the variance of a loss")
    parser.add_argument("--designs", default="even;taper", help=f"all, or some of: {';'.join(DESIGNS)}")
    arguments = parser.parse_args()
    budgets = [float(f"{1e17 * arguments.ratio**k:.4g}") for k in range(arguments.budgets)]
    names = list(DESIGNS) if arguments.designs == "all" else arguments.designs.split(";")
    for world in SURFACES if arguments.worlds == "all" else arguments.worlds.split(";"):
        for noise in NOISES:
            worlds = [
                World(surface=SURFACES[world], noise=noise, trunk_share=arguments.trunk_share, seed=seed)
                for seed in range(arguments.sweeps)
            ]
            full = _outcome(worlds, lambda w: _full_grid(w, budgets), arguments.draws)
            if arguments.best_rate:
                worlds = [replace(w, best_lr=_best_rate(arguments.best_rate, w.seed)) for w in worlds]
            for name in ("full grid", *names):
                found = (
                    full if name == "full grid" else _outcome(worlds, _same(_design(budgets, name)), arguments.draws)
                )
                for line in _lines(found, full):
                    where = {"world": world, "noise": noise, "design": name}
                    sys.stdout.write(json.dumps(where | line) + "\n")
                    sys.stdout.flush()


def _best_rate(text: str, seed: int) -> Callable[[float, float], float]:
    rng = np.random.default_rng([seed, 99])
    level, p, q = 1.0, *rng.normal([PARAMS_SLOPE, TOKENS_SLOPE], [PARAMS_SLOPE_SD, TOKENS_SLOPE_SD])
    if text == "drawn":
        level = math.exp(0.5 * rng.standard_normal())
    else:
        p, q = (float(x) for x in text.split(","))
    return lambda n, d: float(1e-3 * level * (n / 3e7) ** p * (d / 6e8) ** q)


def _same(spec: SweepSpec) -> Callable[[World], Planner]:
    planner = Planner(spec, SURVEY)
    return lambda world: planner


def _design(budgets: list[float], name: str) -> SweepSpec:
    return adaptive_spec(**{"budgets": budgets, "train": {"batch_size": 500}, **DESIGNS[name]})


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


def _outcome(worlds: list[World], planner_for: Callable[[World], Planner], draws: int) -> Outcome:
    rows: list[list[tuple[float, float, float]]] = []
    flops, experiments, windows = [], [], []
    for given in worlds:
        planner = planner_for(given)
        world = replace(given, lr_factor=lr_factor_of(planner.spec))
        losses: dict[str, float] = {}
        plan, _ = run_in_rounds(planner, partial(_find, planner.spec, world, losses))
        standing = [(e, losses[e.key]) for e in plan.experiments if e.role in IN_FIT]
        tried = None if plan.lr is None else tried_in((e, losses[e.key]) for e in plan.experiments)
        points = simulated_points(standing, shared=planner.spec.grid.trunk, tried=tried)
        options = replace(fit_options(planner.spec, plan.reach), draws=draws, seed=world.seed)
        target = BEYOND * max(b.flops for b in planner.spec.budgets)
        true = world.surface.optimum(target)[0]
        rows.append([_mark(n, within, true) for n, within in _readings(points, options, target)])
        flops.append(sum(e.flops_executed for e in plan.experiments))
        experiments.append(len(plan.experiments))
        windows.append(math.nan if plan.reach is None else plan.reach)
    table = np.array(rows)  # (sweeps, readings, marks)
    marks = {
        name: Read(error=table[:, i, 0], width=table[:, i, 1], held=table[:, i, 2]) for i, name in enumerate(READINGS)
    }
    return Outcome(
        flops=float(np.mean(flops)),
        experiments=float(np.mean(experiments)),
        window=float(np.mean(windows)),
        readings=marks,
    )


def _find(spec: SweepSpec, world: World, losses: dict[str, float], e: Experiment) -> Observation:
    losses[e.key] = world.loss(e, resolve_lr(spec, BY_LABEL[e.size], e.budget))
    return Observation(loss=losses[e.key])


def _readings(points: Points, options: FitOptions, target: float) -> Iterator[tuple[float, Interval | None]]:
    """Yield N at the target and its interval by each of `READINGS`."""
    fit = fit_sweep(points, options)
    answer = predict(fit, target)
    for name in READINGS:
        law = {"valleys": fit.methods["valley"], "surface": fit.surface}.get(name, fit.answer).params_opt
        if name == "answer":
            yield answer.params, answer.params_interval
        elif law is None:
            yield math.nan, None
        else:
            yield law.at(target), law.interval(target, options.confidence)


def _mark(n: float, within: Interval | None, true: float) -> tuple[float, float, float]:
    if within is None:
        return math.log(n / true), math.nan, 0.0
    return math.log(n / true), math.log(within.factor), float(within.holds(true))


def _lines(found: Outcome, full: Outcome) -> Iterator[dict[str, Any]]:
    cost = found.flops / full.flops
    base = full.readings["valleys"]
    for name, read in found.readings.items():
        width = float(np.nanmedian(read.width) / np.nanmedian(base.width))
        rms = [math.sqrt(float(np.nanmean(r.error**2))) for r in (read, base)]
        yield {
            "reading": name,
            "experiments": round(found.experiments, 1),
            "window": None if math.isnan(found.window) else round(found.window, 2),
            "cost": round(cost, 3),
            "width": round(width, 3),
            "equal": round(cost * width**2, 3),
            "rms": round(rms[0], 4),
            "equal_error": round(cost * (rms[0] / rms[1]) ** 2, 3),
            "bias": round(float(np.nanmean(read.error)), 4),
            "coverage": round(float(read.held.mean()), 3),
            "answered": int(np.isfinite(read.width).sum()),
        }


if __name__ == "__main__":
    main()
