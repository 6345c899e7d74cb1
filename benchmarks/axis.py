"""How few runs of a second axis tell its values apart: a cross about the base sweep's minima, by simulation.

The base sweep has five budgets, each sqrt(10) times the one before, seven sizes at the first and five at the others, a
factor of 2 apart. Another value of the axis does nothing, or lifts the loss and moves the best N: A and B of the
surface are multiplied. Of every design it is told how often 95 % intervals of the difference at equal C hold the truth,
how wide they are, how far off the difference is, and what its runs cost beside the base sweep. Of two designs the
better one has the smaller width² · cost, which repeating all runs does not change.

    python -m benchmarks.axis [--sweeps 16]
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis import Points, fit_axis
from flops_fit_ray.planning.loss_surfaces import BESIROGLU_CONSTANTS, SURFACES, Constants, additive

BUDGETS = 1e17 * 10 ** (np.arange(5) / 2)
NOISE, TRUNK_SHARE = 0.004, 0.5  # nats; the share of its variance that runs of one size and value have in common
# Factors of A and B; the last moves the best N by 3.6
EFFECTS = {"none": (1.0, 1.0), "worse": (1.06, 1.06), "larger N": (1.15, 0.95), "smaller N": (0.8, 1.1),
           "much larger N": (2.0, 0.8)}  # fmt: skip
SIZES = {1: (0.0,), 2: (-0.5, 0.5), 3: (-1.0, 0.0, 1.0)}  # where a value runs, in steps about the base's best N
STEPS = {1: (2.0,), 2: (2.0, 4.0), 3: (2.0, 4.0)}
PLACES: tuple[tuple[int, ...], ...] = ((0, 1), (0, 2))


@dataclass(frozen=True, kw_only=True)
class Design:
    """Runs of one further value."""

    budgets: tuple[int, ...]  # from the cheapest, 0
    sizes: int
    step: float  # ratio of neighbouring sizes

    def sizes_about(self, params: float) -> list[float]:
        """Return N of the runs about the base's best N."""
        return [params * self.step**at for at in SIZES[self.sizes]]


def designs() -> Iterator[Design]:
    """Yield the designs that are compared."""
    for budgets, sizes in itertools.product(PLACES, SIZES):
        for step in STEPS[sizes]:
            yield Design(budgets=budgets, sizes=sizes, step=step)


def simulated(design: Design, effect: tuple[float, float], seed: int, surface: str) -> tuple[Points, list[str]]:
    """Return the runs of a base sweep and of another value, and the value of each."""
    rng = np.random.default_rng(seed)
    shared: dict[tuple[str, float], float] = {}
    rows, values = [], []

    def run(c: float, n: float, value: str) -> None:
        loss = _losses(surface, effect if value == "other" else (1.0, 1.0))(n, c / 6 / n)
        trunk = shared.setdefault((value, round(np.log(n), 6)), rng.standard_normal())
        noise = np.sqrt(TRUNK_SHARE) * trunk + np.sqrt(1 - TRUNK_SHARE) * rng.standard_normal()
        rows.append((c, n, c / 6 / n, float(loss) + NOISE * noise))
        values.append(value)

    for b, c in enumerate(BUDGETS):
        best = SURFACES[surface].optimum(c)[0]
        centre = best * np.exp(0.2 * rng.standard_normal())  # as a prediction errs
        rung = 2 ** np.round(np.log2(centre))
        for at in range(-3, 4) if b == 0 else range(-2, 3):
            run(c, rung * 2.0**at, "base")
        if b in design.budgets:
            for n in design.sizes_about(
                best * np.exp(0.1 * rng.standard_normal())
            ):  # the base's minimum as it is found
                run(c, 2 ** (np.round(4 * np.log2(n)) / 4), "other")
    c, n, d, loss = np.array(rows).T
    return Points(budget=c, flops=c, params=n, tokens=d, loss=loss), values


def _constants(effect: tuple[float, float]) -> Constants:
    e, a, b, alpha, beta = BESIROGLU_CONSTANTS
    return e, a * effect[0], b * effect[1], alpha, beta


def _losses(surface: str, effect: tuple[float, float]):  # type: ignore[no-untyped-def] # a function of N and D
    if surface == "besiroglu":
        return additive("other", _constants(effect)).loss
    base = SURFACES[surface].loss
    floor = BESIROGLU_CONSTANTS[0]
    e = np.array(effect)
    return lambda n, d: floor + e.mean() * (base(n * (e[1] / e[0]) ** 1.4, d) - floor)


def truth(effect: tuple[float, float], c: float, surface: str) -> float:
    """Return the difference of the losses at C, each value at its best N, in nats."""
    n = np.geomspace(1e5, 1e10, 20001)
    both = [float(np.min(_losses(surface, some)(n, c / 6 / n))) for some in (effect, (1.0, 1.0))]
    return both[0] - both[1]


def measure(design: Design, effect: tuple[float, float], sweeps: int, surface: str) -> tuple[list[float], list[float]]:
    """Return the errors of the differences and the half widths of their intervals, nats, over all its budgets."""
    truths = {float(BUDGETS[b]): truth(effect, float(BUDGETS[b]), surface) for b in design.budgets}
    errors, widths = [], []
    for seed in range(sweeps):
        points, values = simulated(design, effect, seed, surface)
        for row in fit_axis(points, "axis", values, reference="base", draws=400).budgets:
            other = next(one for one in row.values if one.value == "other")
            assert other.interval is not None
            errors.append(other.difference - truths[row.budget])
            widths.append((other.interval.high - other.interval.low) / 2)
    return errors, widths


def report(sweeps: int, surfaces: Sequence[str], chosen: Sequence[Design]) -> None:
    """Print a line for each design: over all effects and surfaces."""
    base = sum(float(c) * (7 if b == 0 else 5) for b, c in enumerate(BUDGETS))
    sys.stdout.write("budgets    sizes  ratio  cost %  coverage (worst)   off, nats  half width  width²·cost\n")
    for design in chosen:
        errors, widths, least = [], [], 1.0
        for effect, surface in itertools.product(EFFECTS.values(), surfaces):
            some, wide = measure(design, effect, sweeps, surface)
            least = min(least, float(np.mean(np.abs(some) <= np.array(wide))))
            errors += some
            widths += wide
        cost = design.sizes * sum(float(BUDGETS[b]) for b in design.budgets) / base
        held = float(np.mean(np.abs(errors) <= np.array(widths)))
        rms, width = float(np.sqrt(np.mean(np.square(errors)))), float(np.mean(widths))
        sys.stdout.write(
            f"{design.budgets!s:11}{design.sizes:5}{design.step:7g}{100 * cost:8.2f}{held:10.3f} ({least:.2f})"
            f"{rms:12.4f}{width:12.4f}{1e6 * width**2 * cost:12.2f}\n"
        )
        sys.stdout.flush()


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=16)
    parser.add_argument("--surfaces", nargs="+", default=["besiroglu", "bend", "small"])
    given = parser.parse_args()
    report(given.sweeps, given.surfaces, list(designs()))


if __name__ == "__main__":
    main()
