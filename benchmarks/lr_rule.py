"""How far the learning rate rule of the probes is off at the largest budget, in worlds where the best rate is known.

    python -m benchmarks.lr_rule [--sweeps 400]

The best rate is r·N^p·D^q, and every probe finds it with a scatter. Two sizes are probed at the smallest budget; `one
budget` fits ln lr over ln N alone, as earlier versions did, and `two budgets` is the rule of today: the larger size
again at 3.16 times C. One JSON line per world and scatter: mean and standard deviation of ln(lr / best) at N_opt of a
budget 100 times the smallest, D = 20·N.
"""

from __future__ import annotations

import argparse
import json
import math
import sys

import numpy as np

from flops_fit_ray.planning.lr_probes import Optimum, lr_law, lr_law_at_one_budget

SMALLEST, LONGER, LARGEST = 1e17, 3.16, 100.0  # C, and the others as its multiples
TOKENS_PER_PARAM = 20.0
SIZES = (12_000_000, 75_000_000)  # 6 times apart about N_opt, as the second and the last but one of seven
WORLDS = ((-0.25, 0.0), (-0.3, -0.3), (0.0, -0.3), (-0.5, -0.1), (-0.7, 0.3), (-0.3, -0.15))  # (p, q)
SCATTERS = (0.1, 0.2, 0.35)  # of ln lr


def main() -> None:
    """Print a line for every world and scatter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=400)
    sweeps = parser.parse_args().sweeps
    for p, q in WORLDS:
        for scatter in SCATTERS:
            errors = np.array([_errors(p, q, np.random.default_rng(seed), scatter) for seed in range(sweeps)])
            line = {"p": p, "q": q, "scatter": scatter}
            for name, column in zip(("one budget", "two budgets"), errors.T, strict=True):
                line[name] = [round(float(column.mean()), 2), round(float(column.std()), 2)]  # type: ignore[assignment] # a pair
            sys.stdout.write(json.dumps(line) + "\n")


def _errors(p: float, q: float, rng: np.random.Generator, scatter: float) -> tuple[float, float]:
    def best(n: float, d: float) -> float:
        return float(1e-3 * (n / 3e7) ** p * (d / 6e8) ** q)

    def probe(n: int, budget: float) -> Optimum:
        d = round(budget / (6 * n))
        return n, d, best(n, d) * math.exp(scatter * rng.standard_normal())

    shorter = [probe(n, SMALLEST) for n in SIZES]
    longer = probe(SIZES[-1], LONGER * SMALLEST)
    laws = (
        lr_law_at_one_budget([(n, lr) for n, _, lr in shorter]),
        lr_law([*shorter, longer], TOKENS_PER_PARAM),
    )
    n = math.sqrt(LARGEST * SMALLEST / (6 * TOKENS_PER_PARAM))
    first, second = (math.log(law.of(n) / best(n, TOKENS_PER_PARAM * n)) for law in laws)
    return first, second


if __name__ == "__main__":
    main()
