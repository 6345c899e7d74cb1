"""The sizes of an adaptive grid, and those that a budget can have."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_ray.planning import _adaptive as adaptive
from flops_fit_ray.planning._sizes import spacing
from flops_fit_ray.planning.cells import max_steps, steps_of
from flops_fit_ray.planning.experiment import Measurements, ModelSize
from flops_fit_ray.planning.grid import GOOD_SIZES, MIN_STEPS, centre_of
from flops_fit_ray.spec import SweepSpec

FEW_STEPS = 110  # optimizer steps below which the loss depends more on the warmup than on the size


def least_steps(spec: SweepSpec, measurements: Measurements) -> int:
    """Least optimizer steps of a cell: the larger limit if it leaves the smallest budget `GOOD_SIZES` sizes."""
    budget, largest = spec.budgets[0].flops, max_steps(spec, measurements)
    steps = [steps_of(spec, measurements, budget, s) for s in ideal_first_valley(spec, measurements)]
    for least in (MIN_STEPS, FEW_STEPS):
        if sum(least <= n <= largest for n in steps) >= GOOD_SIZES:
            return least
    return 1


def ladder_of(spec: SweepSpec, measurements: Measurements) -> list[ModelSize]:
    """Sizes of an adaptive grid: even steps in log N, one of them at the expected optimum of the smallest budget."""
    anchor, step = centre_of(spec, measurements, spec.budgets[0].flops), spacing(spec.grid)
    rungs = measurements.once(("ladder", anchor, step), lambda: adaptive.rungs(measurements.by_params, anchor, step))
    return list(rungs)


def fitting(spec: SweepSpec, measurements: Measurements, sizes: Sequence[ModelSize], budget: float) -> list[ModelSize]:
    """Sizes that have enough optimizer steps at a budget, and enough data."""
    low, high = least_steps(spec, measurements), max_steps(spec, measurements)
    return [s for s in sizes if low <= steps_of(spec, measurements, budget, s) <= high]


def first_valley(spec: SweepSpec, measurements: Measurements) -> list[ModelSize]:
    """Sizes of the wide first valley, at the smallest budget; the nearest that fit where too few of them do."""
    budget = spec.budgets[0].flops
    sizes = fitting(spec, measurements, ideal_first_valley(spec, measurements), budget)
    if len(sizes) >= adaptive.MIN_SIZES:
        return sizes
    others = fitting(spec, measurements, ladder_of(spec, measurements), budget)
    return adaptive.nearest(others, centre_of(spec, measurements, budget), adaptive.MIN_SIZES)


def ideal_first_valley(spec: SweepSpec, measurements: Measurements) -> list[ModelSize]:
    """Sizes of the first valley, symmetric about its centre, if every size had enough steps and data."""
    centre = centre_of(spec, measurements, spec.budgets[0].flops)
    count, step = spec.grid.first_sizes, spacing(spec.grid)
    sizes = measurements.once(
        ("first", centre, step, count), lambda: adaptive.nearest(ladder_of(spec, measurements), centre, count)
    )
    return list(sizes)
