"""The sizes that an adaptive grid is made of, and which of them a budget can have."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_ray.planning import adaptive
from flops_fit_ray.planning.cells import max_steps, steps_of
from flops_fit_ray.planning.experiment import Measurements, ModelSize
from flops_fit_ray.planning.grid import GOOD_SIZES, MIN_STEPS, by_params
from flops_fit_ray.planning.sizes import expected_optimum, spacing
from flops_fit_ray.spec import SweepSpec

FEW_STEPS = 110  # below this a cell says more of its warmup than of its size


def least_steps(spec: SweepSpec, measurements: Measurements) -> int:
    """The fewest optimizer steps of a cell: many, where that leaves the smallest budget a valley of sizes."""
    budget, largest = spec.budgets[0].flops, max_steps(spec, measurements)
    steps = [steps_of(spec, measurements, budget, s) for s in _wished_first(spec, measurements)]
    for least in (MIN_STEPS, FEW_STEPS):
        if sum(least <= n <= largest for n in steps) >= GOOD_SIZES:
            return least
    return 1


def ladder_of(spec: SweepSpec, measurements: Measurements) -> list[ModelSize]:
    """The sizes that an adaptive grid is made of: even steps in log N, one of them at the first expected optimum."""
    anchor = expected_optimum(spec.budgets[0].flops, spec.grid.tokens_per_param)
    return adaptive.rungs(by_params(measurements), anchor, spacing(spec.grid))


def fitting(spec: SweepSpec, measurements: Measurements, sizes: Sequence[ModelSize], budget: float) -> list[ModelSize]:
    """The sizes that leave enough steps at a budget, and that the data can feed."""
    low, high = least_steps(spec, measurements), max_steps(spec, measurements)
    return [s for s in sizes if low <= steps_of(spec, measurements, budget, s) <= high]


def first_valley(spec: SweepSpec, measurements: Measurements) -> list[ModelSize]:
    """The sizes of the wide first valley, at the smallest budget."""
    return fitting(spec, measurements, _wished_first(spec, measurements), spec.budgets[0].flops)


def _wished_first(spec: SweepSpec, measurements: Measurements) -> list[ModelSize]:
    """What the first valley would be if every size had steps and data enough: as far to either side of its centre."""
    centre = expected_optimum(spec.budgets[0].flops, spec.grid.tokens_per_param)
    return adaptive.nearest(ladder_of(spec, measurements), centre, spec.grid.first_sizes)
