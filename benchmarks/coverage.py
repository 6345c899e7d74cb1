"""How often do 95 % intervals hold the truth? Synthetic sweeps on three published surfaces at two noise levels.

    python -m benchmarks.coverage [--sweeps 400] [--draws 1000] [--sizes 5] [--scattered 0]

One JSON line per surface, noise and method: the share of sweeps whose interval held the true exponent a, N_opt and
D_opt at ten times the largest budget, the loss there, and the loss of one new run there. 400 sweeps tell 0.95 within
0.011.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

import numpy as np

from flops_fit_ray.analysis import FitOptions, MethodName, SweepFit, fit_sweep, predict
from tests.surfaces import BESIROGLU, BUDGETS, HOFFMANN, SYMMETRIC, Surface, optimum, scattered, sweep_on

SURFACES = {"hoffmann": HOFFMANN, "besiroglu": BESIROGLU, "symmetric": SYMMETRIC}
NOISES = (0.003, 0.01)  # nats
TARGET = 1e21  # ten times the largest budget of a sweep, and within the range of scattered runs
COLUMNS = ("exponent", "params", "tokens", "loss", "loss_of_one_run")
METHODS: tuple[MethodName, ...] = ("valley", "surface_huber", "surface_squared")


def main() -> None:
    """Print a line for every surface, noise and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=400)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--sizes", type=int, default=5, help="per budget, from 1/4 to 4 times the optimum")
    parser.add_argument("--scattered", type=int, default=0, help="so many runs all over N and D instead of a sweep")
    arguments = parser.parse_args()
    for name, surface in SURFACES.items():
        for noise in NOISES:
            methods = METHODS[1:] if arguments.scattered else METHODS  # scattered runs have no valleys
            hits = {method: np.zeros(len(COLUMNS)) for method in methods}
            for seed in range(arguments.sweeps):
                if arguments.scattered:
                    points = scattered(surface, arguments.scattered, noise=noise, seed=seed)
                else:
                    points = sweep_on(surface, BUDGETS, sizes=arguments.sizes, noise=noise, seed=seed)
                fit = fit_sweep(points, FitOptions(draws=arguments.draws, seed=seed))
                new = np.random.default_rng(10**6 + seed).standard_normal() * noise
                for method in hits:
                    hits[method] += _held(replace(fit, default=method), surface, float(new))
            for method, count in hits.items():
                shares = dict(zip(COLUMNS, (count / arguments.sweeps).round(4).tolist(), strict=True))
                design = f"{arguments.scattered} runs" if arguments.scattered else f"5 x {arguments.sizes}"
                line = {"surface": name, "noise": noise, "method": method, "design": design, **shares}
                sys.stdout.write(json.dumps({**line, "sweeps": arguments.sweeps, "draws": arguments.draws}) + "\n")
                sys.stdout.flush()


def _held(fit: SweepFit, surface: Surface, new: float) -> np.ndarray:
    """Which of the intervals hold the truth."""
    _, _, _, alpha, beta = surface
    n, d, loss = optimum(surface, TARGET)
    assert fit.params_opt is not None
    answer = predict(fit, TARGET)
    intervals = (fit.params_opt.exponent_interval(0.95), answer.params_interval, answer.tokens_interval,
                 answer.loss_interval, answer.run_interval)  # fmt: skip
    truths = (beta / (alpha + beta), n, d, loss, loss + new)
    return np.array([i is not None and i.holds(t) for i, t in zip(intervals, truths, strict=True)], dtype=float)


if __name__ == "__main__":
    main()
