"""Do the next runs narrow N_opt as far as `fit --next` promises, and for less than other runs?

    python -m benchmarks.next_runs [--worlds hoffmann,besiroglu,kaplan,bend] [--sweeps 40] [--sizes 5] [--count 5]

Sweeps on known surfaces, with noise; each is fitted, given further runs, and fitted again. The target is ten times the
largest budget. Designs: the runs of `next_runs` · one more budget, of five sizes from 1/4 to 4 times its expected
optimum · as many sizes again at the largest budget · as many runs at random sizes and budgets. One JSON line for each
world, noise and design:

    now, promised, found   factors within which valleys know N_opt before, as expected after, and after (medians)
    ratio    ln found / ln promised, geometric mean over the sweeps: 1 is kept, above 1 was promised too much
    cost     FLOPs of the design over those of the sweep
    equal    FLOPs for the same width: (1 + cost)·(ln found / ln now)², 1 is as dear as running the whole sweep again
    error    rms of ln N_opt about the truth;  before: the same of the sweep alone;  held: share of intervals with it
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from flops_fit_ray.analysis import FitOptions, Law, Place, SweepFit, expected_factors, fit_minima, fit_sweep
from flops_fit_ray.analysis import next_runs as choose
from flops_fit_ray.planning.loss_surfaces import SURFACES, LossSurface
from tests.surfaces import BUDGETS, joined, points_from, sweep_about

NOISES = (0.003, 0.01)  # nats
TARGET = 10 * BUDGETS[-1]
FOLLOWING = 3e20  # C of the one more budget
WINDOW = 4.0
Row = tuple[float, ...]


def main() -> None:
    """Print a line for every world, noise and design."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default="hoffmann,besiroglu,kaplan,bend", help=f"some of: {','.join(SURFACES)}")
    parser.add_argument("--sweeps", type=int, default=40)
    parser.add_argument("--sizes", type=int, default=5, help="per budget")
    parser.add_argument("--count", type=int, default=5, help="of next runs")
    arguments = parser.parse_args()
    for world in arguments.worlds.split(","):
        for noise in NOISES:
            rows: dict[str, list[Row]] = {}
            for seed in range(arguments.sweeps):
                for design, row in _sweep(SURFACES[world], noise, seed, arguments.sizes, arguments.count):
                    rows.setdefault(design, []).append(row)
            for design, found in rows.items():
                line = {"world": world, "noise": noise, "design": design, **_summary(np.array(found))}
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()


def _sweep(surface: LossSurface, noise: float, seed: int, sizes: int, count: int) -> Iterator[tuple[str, Row]]:
    """Yield for each design: ln of the three factors, cost, error and that before, and 1 where the truth was held."""
    centres = [surface.optimum(budget)[0] for budget in BUDGETS]
    points = sweep_about(surface.loss, BUDGETS, centres, sizes=sizes, noise=noise, seed=seed)
    options = FitOptions(draws=400, seed=seed)
    fit = fit_sweep(points, options)
    law, truth = fit.methods["valley"].params_opt, surface.optimum(TARGET)[0]
    before = None if law is None else _factor(law)
    if law is None or before is None:
        return
    for number, (design, places) in enumerate(_designs(fit, law, count, seed).items()):
        rng = np.random.default_rng([seed, number])
        promised = expected_factors(fit, TARGET, places)["valley"]
        more = points_from(*_columns(places, surface, noise, rng))
        after = fit_minima(joined(points, more), options).method.params_opt
        found = None if after is None else _factor(after)
        if after is None or found is None:
            continue
        within = after.interval(TARGET, options.confidence)
        yield (
            design,
            (
                math.log(before),
                math.log(promised),
                math.log(found),
                sum(place.budget for place in places) / float(points.flops.sum()),
                math.log(after.at(TARGET) / truth),
                math.log(law.at(TARGET) / truth),
                float(within is not None and within.holds(truth)),
            ),
        )


def _designs(fit: SweepFit, law: Law, count: int, seed: int) -> dict[str, list[Place]]:
    def around(budget: float, factors: Sequence[float]) -> list[Place]:
        return [_place(budget, law.at(budget) * factor) for factor in factors]

    window = list(np.geomspace(1 / WINDOW, WINDOW, count))
    rng = np.random.default_rng([seed, 99])
    chosen = choose(fit, count, TARGET).runs
    anywhere = [_place(float(c), law.at(float(c)) * WINDOW ** rng.uniform(-1, 1)) for c in rng.choice(BUDGETS, count)]
    return {
        "next": [Place(budget=run.budget, params=run.params, tokens=run.tokens) for run in chosen],
        "one more budget": around(FOLLOWING, window),
        "largest budget": around(BUDGETS[-1], window),
        "random": anywhere,
    }


def _place(budget: float, params: float) -> Place:
    return Place(budget=budget, params=params, tokens=budget / 6 / params)


def _columns(
    places: Sequence[Place], surface: LossSurface, noise: float, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    budget, params, tokens = (np.array([getattr(p, name) for p in places]) for name in ("budget", "params", "tokens"))
    loss = np.asarray(surface.loss(params, tokens)) + noise * rng.standard_normal(len(places))
    return budget, 6 * params * tokens, params, tokens, loss


def _factor(law: Law) -> float | None:
    within = law.interval(TARGET, 0.95)
    n = law.at(TARGET)
    return None if within is None else max(within.high / n, n / within.low)


def _summary(rows: np.ndarray) -> dict[str, float]:
    now, promised, found, cost, error, before, held = rows.T
    numbers = {
        "now": math.exp(float(np.median(now))),
        "promised": math.exp(float(np.median(promised))),
        "found": math.exp(float(np.median(found))),
        "ratio": math.exp(float(np.mean(np.log(found / promised)))),
        "cost": float(cost.mean()),
        "equal": float((1 + cost.mean()) * np.exp(np.mean(2 * np.log(found / now)))),
        "error": math.sqrt(float(np.mean(error**2))),
        "before": math.sqrt(float(np.mean(before**2))),
        "held": float(held.mean()),
        "sweeps": len(rows),
    }
    return {name: round(value, 3) for name, value in numbers.items()}


if __name__ == "__main__":
    main()
