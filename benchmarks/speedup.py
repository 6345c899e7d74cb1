"""Coverage of the effective speedup, on pairs of simulated sweeps whose true factor is known.

The second recipe has L_B(N, D) = L_A(N·√s, D·√s), so it needs 1/s of the compute at every C, whatever the surface.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import numpy as np

from flops_fit_ray.analysis import FitOptions, Points, fit_minima
from flops_fit_ray.analysis._speedup import Compared, speedup
from flops_fit_ray.planning.loss_surfaces import SURFACES, LossSurface

BUDGETS = [1e18, 3e18, 1e19, 3e19, 1e20]
PLACES = (1e19, 1e20, 1e21)  # in the middle of the data, at their end, and at ten times
DESIGNS = {"same": (1.0, 4.0, 7), "other": (1.6, 6.0, 9)}  # of the second: off its centre by, window, sizes


def main() -> None:
    """Print one line per world, noise, factor and place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", default="besiroglu,bend", help=f"some of: {','.join(SURFACES)}")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--design", choices=DESIGNS, default="same")
    arguments = parser.parse_args()
    print("world      noise  true  C      held  told  +-ln s")  # noqa: T201 - the output of this program
    for world in arguments.worlds.split(","):
        for noise in (0.003, 0.01):
            for factor in (1.0, 1.1, 1.3):
                for line in _lines(world, noise, factor, arguments.pairs, DESIGNS[arguments.design]):
                    print(line, flush=True)  # noqa: T201 - as above


def _lines(world: str, noise: float, factor: float, pairs: int, design: tuple[float, float, int]) -> Iterator[str]:
    held, told, widths = (np.zeros((len(PLACES), pairs)) for _ in range(3))
    for i in range(pairs):
        first = _side(_sweep(SURFACES[world], 1.0, noise, 2 * i, DESIGNS["same"]))
        second = _side(_sweep(SURFACES[world], factor, noise, 2 * i + 1, design))
        for k, budget in enumerate(PLACES):
            one = speedup(first, second, budget, 0.95, points=2).at
            if one.interval is not None:
                held[k, i], told[k, i] = one.interval.holds(factor), one.told != 0
                widths[k, i] = math.log(one.interval.factor) / 2
    for k, budget in enumerate(PLACES):
        yield (f"{world:9s}  {noise:.3f}  {factor:.1f}   {budget:.0e}  {held[k].mean():.2f}  {told[k].mean():.2f}  "
               f"{np.median(widths[k]):.3f}")  # fmt: skip


def _sweep(surface: LossSurface, factor: float, noise: float, seed: int, design: tuple[float, float, int]) -> Points:
    """Return an IsoFLOP sweep of a recipe that is as good as another at `factor` times its compute."""
    off, window, sizes = design
    rng, root, rows = np.random.default_rng(seed), math.sqrt(factor), []
    for budget in BUDGETS:
        centre = off * surface.optimum(budget * factor)[0] / root
        for n in centre * np.geomspace(1 / window, window, sizes):
            d = budget / 6 / n
            rows.append((n, d, surface.loss(n * root, d * root) + noise * rng.standard_normal()))
    n, d, loss = np.array(rows).T
    labels = np.repeat(BUDGETS, sizes)
    return Points(budget=labels, flops=labels, params=n, tokens=d, loss=loss)


def _side(points: Points) -> Compared:
    fit = fit_minima(points, FitOptions())
    assert fit.method.laws is not None
    n, d, loss = fit.method.laws
    return Compared(loss=loss, params=n, tokens=d, span=(BUDGETS[0], BUDGETS[-1]), fit=fit, surface=None,
                    surface_draws=None)  # fmt: skip


if __name__ == "__main__":
    main()
