"""The sizes that an adaptive grid is made of, and which of them a budget can have."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_ray.planning import adaptive
from flops_fit_ray.planning.cells import most_steps, steps_of
from flops_fit_ray.planning.experiment import ModelSize, Survey
from flops_fit_ray.planning.grid import GOOD_SIZES, MIN_STEPS, by_params
from flops_fit_ray.planning.sizes import expected_optimum, spacing
from flops_fit_ray.spec import SweepSpec

FEW_STEPS = 110  # below this a cell says more of its warmup than of its size


def least_steps(spec: SweepSpec, survey: Survey) -> int:
    """The fewest optimizer steps of a cell: many, where that leaves the smallest budget a valley of sizes."""
    budget, largest = spec.budgets[0].flops, most_steps(spec, survey)
    steps = [steps_of(spec, survey, budget, s) for s in _wished_first(spec, survey)]
    for least in (MIN_STEPS, FEW_STEPS):
        if sum(least <= n <= largest for n in steps) >= GOOD_SIZES:
            return least
    return 1


def ladder_of(spec: SweepSpec, survey: Survey) -> list[ModelSize]:
    """The sizes that an adaptive grid is made of: even steps in log N, one of them at the first expected optimum."""
    anchor = expected_optimum(spec.budgets[0].flops, spec.grid.tokens_per_param)
    return adaptive.rungs(by_params(survey), anchor, spacing(spec.grid))


def fitting(spec: SweepSpec, survey: Survey, sizes: Sequence[ModelSize], budget: float) -> list[ModelSize]:
    """The sizes that leave enough steps at a budget, and that the data can feed."""
    low, high = least_steps(spec, survey), most_steps(spec, survey)
    return [s for s in sizes if low <= steps_of(spec, survey, budget, s) <= high]


def first_valley(spec: SweepSpec, survey: Survey) -> list[ModelSize]:
    """The sizes of the wide first valley, at the smallest budget."""
    return fitting(spec, survey, _wished_first(spec, survey), spec.budgets[0].flops)


def _wished_first(spec: SweepSpec, survey: Survey) -> list[ModelSize]:
    """What the first valley would be if every size had steps and data enough: as far to either side of its centre."""
    centre = expected_optimum(spec.budgets[0].flops, spec.grid.tokens_per_param)
    return adaptive.nearest(ladder_of(spec, survey), centre, spec.grid.first_sizes)
