"""Runs of other values on a second axis, such as depth: a few sizes of each, beside the minima of the sweep itself.

A value is run where its FLOPs per token, and so D at equal C, are those of the best model of the sweep at that budget,
and at sizes to both sides of it, so that it is compared at its own best N and not at one that suits the sweep's value.
Three sizes at two cheap budgets are what benchmarks/README.md found to tell most for their FLOPs with intervals that
hold; one size would lay the distance to its own best N to the value's charge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.flags import Flag, warning
from flops_fit_ray.planning._ladder import least_steps
from flops_fit_ray.planning.cells import Cells, cheap_budgets, max_steps, steps_of
from flops_fit_ray.planning.experiment import Experiment, Measurements, ModelSize
from flops_fit_ray.spec import AxisSection, SweepSpec

STEP = 2.0  # ratio of FLOPs per token of neighbouring sizes
FEWEST = 2  # sizes of a value at a budget; with one its own best N is not known


def axis_budgets(cells: Cells, axis: AxisSection) -> list[float]:
    """Return the budgets of an axis, increasing; those of `auto` stay what they were when the sweep began."""
    known = [b.flops for b in cells.spec.budgets]
    if axis.budgets == "all":
        return known
    wanted = cells.constants.axis_budgets if axis.budgets == "auto" else axis.budgets
    return sorted(set(wanted) & set(known)) or list(cheap_budgets(known))


def axis_cells(
    cells: Cells,
    minima: Sequence[float],
    lr: Callable[[ModelSize, float], float],
    room: int | None,
    note: Callable[[str], object],
) -> Iterator[Experiment]:
    """Yield the runs of every axis, by budget and value.

    Args:
        minima: N_opt of the sweep itself, (budgets,).
        lr: rate of a size at a budget.
        room: runs at most; None: no limit.
        note: told what cannot be run, and why.
    """
    runs = list(_runs(cells, minima, lr, note))
    yield from runs[: room if room is None else max(room, 0)]
    if room is not None and len(runs) > room:
        limit, left = cells.spec.grid.max_experiments, f"{len(runs) - max(room, 0)} of {len(runs)}"
        note(f"grid.max_experiments = {limit} is reached: {left} runs of model.axes are left out; raise it")


def _runs(
    cells: Cells,
    minima: Sequence[float],
    lr: Callable[[ModelSize, float], float],
    note: Callable[[str], object],
) -> Iterator[Experiment]:
    by_budget = {b.flops: n for b, n in zip(cells.spec.budgets, minima, strict=True)}
    for axis in cells.measurements.axes:
        section = cells.spec.model.axes[axis.name]
        for budget in axis_budgets(cells, section):
            wanted = _cost_at(cells.measurements, by_budget[budget])
            for value in axis.values:
                sizes = _fitting(cells, axis.at(value), budget)
                chosen = _spread(sizes, wanted, section.sizes)
                where = f"{axis.name} = {value} at C = {fmt.flops(budget)}"
                if len(chosen) < FEWEST:
                    few = "one" if chosen else "none"
                    note(f"{where}: left out, as {few} of the sizes has enough steps and data there; two are needed")
                    continue
                if not chosen[0].flops_per_token / STEP <= wanted <= STEP * chosen[-1].flops_per_token:
                    nearest = min(chosen, key=lambda s: abs(math.log(s.flops_per_token / wanted)))
                    note(f"{where}: left out, as no size is near the sweep's minimum; the nearest, {nearest.size}, has "
                         f"{nearest.flops_per_token / wanted:.2g} times its FLOPs per token")  # fmt: skip
                    continue
                for size in chosen:
                    reason = f"{axis.name} = {value}, beside the minimum of {axis.base}"
                    yield cells.make(budget, size, lr(size, budget), role="axis", reason=reason)


def _fitting(cells: Cells, sizes: Sequence[ModelSize], budget: float) -> list[ModelSize]:
    spec, measurements = cells.spec, cells.measurements
    low = least_steps(spec, measurements) if spec.is_adaptive else 1
    return [s for s in sizes if low <= steps_of(spec, measurements, budget, s) <= max_steps(spec, measurements)]


def _cost_at(measurements: Measurements, params: float) -> float:
    """Return FLOPs per token of a model of the sweep with N = `params`, linear in logarithms between the sizes."""
    sizes = measurements.by_params
    x, y = np.log([s.params for s in sizes]), np.log([s.flops_per_token for s in sizes])
    at = math.log(params)
    beyond = min(at - x[0], 0.0) + max(at - x[-1], 0.0)
    return math.exp(float(np.interp(at, x, y)) + beyond)


def _spread(sizes: Sequence[ModelSize], wanted: float, count: int) -> list[ModelSize]:
    """Return `count` different sizes, each the nearest to a target; the targets lie `STEP` apart about `wanted`."""
    left, chosen = list(sizes), list[ModelSize]()
    targets = [wanted * STEP ** (i - (count - 1) / 2) for i in range(count)]
    for target in sorted(targets, key=lambda t: abs(math.log(t / wanted))):
        if left:
            nearest = min(left, key=lambda s: abs(math.log(s.flops_per_token / target)))
            left.remove(nearest)
            chosen.append(nearest)
    return sorted(chosen, key=lambda s: (s.flops_per_token, s.params))


def axis_warnings(spec: SweepSpec) -> Iterator[Flag]:
    """Yield what a comparison of values rests on."""
    if not spec.model.axes:
        return
    names = ", ".join(spec.model.axes)
    if spec.loss == "model":
        yield warning(
            "axis_loss",
            f"model.axes: the loss is the model's own: where {names} changes what it adds to the held-out loss "
            "(balance of experts, regularisation), values are not comparable; give loss: cross_entropy",
        )
