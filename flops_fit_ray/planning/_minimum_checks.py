"""Experiments beside a minimum: they differ from it in the learning rate alone, or in the batch size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from flops_fit_ray.planning.cells import Cells, max_steps
from flops_fit_ray.planning.experiment import Experiment, ModelSize

FACTORS = (0.5, 2.0)  # of the learning rate, and of the batch size
UNCHECKED = 2  # number of largest budgets whose minima have no check: they cost the most


def is_checked(asked: str, number: int, budgets: int) -> bool:
    """Return True if the minimum of a budget is checked: of `all`, or of all but the largest."""
    return asked == "all" or (asked == "lower" and number + UNCHECKED < budgets)


def other_rates(cells: Cells, e: Experiment, size: ModelSize) -> Iterator[Experiment]:
    """Yield the experiments with half and twice the learning rate."""
    for factor in FACTORS:
        reason = f"{factor:g} times the learning rate, at the minimum"
        yield cells.make(e.budget, size, e.recipe.lr * factor, role="lr_check", reason=reason, of=e.key)


def other_batches(cells: Cells, e: Experiment, size: ModelSize) -> Iterator[Experiment]:
    """Yield the experiments with half and twice the batch size, at the same D and at a rate that goes with the batch.

    The best rate grows in proportion to the batch for SGD (Goyal et al. 2017, section 2.1), and with its root for
    adaptive optimizers (Malladi et al. 2022, section 5). A batch that the workers cannot share, or that has more
    samples than the data, is left out.
    """
    for factor in FACTORS:
        batch = int(e.recipe.batch_size * factor)
        if batch != e.recipe.batch_size * factor or batch % cells.spec.workers_per_trial:
            continue
        times = factor if cells.spec.train.optimizer == "sgd" else math.sqrt(factor)
        reason = f"batches of {batch} samples and {times:.2g} times the learning rate, at the minimum"
        of_batch = with_batch_size(cells, batch)
        check = of_batch.make(e.budget, size, e.recipe.lr * times, role="batch_check", reason=reason, of=e.key)
        if 1 <= check.steps <= max_steps(of_batch.spec, cells.measurements):
            yield check


def with_batch_size(cells: Cells, batch_size: int) -> Cells:
    """Return the cells of a sweep that differs in the batch size alone; parts of a batch are no larger than it."""
    train = cells.spec.train
    part = train.micro_batch_size and min(train.micro_batch_size, batch_size)
    changed = train.model_copy(update={"batch_size": batch_size, "micro_batch_size": part})
    return replace(cells, spec=cells.spec.model_copy(update={"train": changed}))
