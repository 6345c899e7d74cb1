"""The user's parts tried for real on two samples, so that what the meta device cannot see is found while planning.

Token ids beyond the vocabulary, a context longer than the positions, a loss that does not fit the output, a factory
that makes no optimizer, a schedule or a metric that is no number. Two samples and a small model cost well under a
second.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import ModelSize
from flops_fit_ray.training.data import Batch, first_batch
from flops_fit_ray.training.data.batch import is_integer_tensor, map_tensors
from flops_fit_ray.training.user.losses import as_objective, check_loss
from flops_fit_ray.training.user.parts import UserParts, build

LARGEST_TRIED = 20_000_000  # parameters that planning is willing to make for real
TRIED_STEPS = 1000


def smoke_test_parts(user: UserParts, size: ModelSize) -> None:
    """Try everything that the user brings, on the smallest model.

    The model is not tried where even the smallest one is large, or where the user counts the FLOPs because it may not
    run here.

    Raises:
        SpecError: a part raised, or gave something else than it should; it is named.
    """
    if user.schedule is not None:
        _try_schedule(user.schedule)
    if size.params_total > LARGEST_TRIED or user.flops_per_token is not None:
        return
    model = build(user, size.kwargs)
    batch = first_batch(user.train_data, 2).split(2)[0]
    with _named(f"model.target: the model of size {size.size} and the loss fail on first samples", batch):
        check_loss(user.objective(model, batch))
    for name, metric in user.metrics.items():
        with _named(f"metrics.{name}"), torch.no_grad():
            value = as_objective(metric)(model, batch)
            if torch.as_tensor(value).numel() != 1:
                raise TypeError(f"a metric must be one number, but is {value!r}")
    if user.optimizer is not None:
        with _named("train.optimizer"):
            made: Any = user.optimizer(model, 1e-3)
            if not isinstance(made, torch.optim.Optimizer):
                raise TypeError(f"it made a {type(made).__name__}, not a torch.optim.Optimizer")


def _try_schedule(schedule: Callable[[int, int], float]) -> None:
    with _named("train.schedule"):
        for step in (0, TRIED_STEPS // 2, TRIED_STEPS - 1):
            factor = schedule(step, TRIED_STEPS)
            if not (isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0):
                raise ValueError(f"step {step} of {TRIED_STEPS} gave {factor!r}; a multiple of the peak is needed")


@contextlib.contextmanager
def _named(key: str, batch: Batch | None = None) -> Iterator[None]:
    try:
        yield
    except SpecError:
        raise
    except Exception as e:  # the user's code may raise anything; it is named and chained
        hint = _largest_id(batch) if batch is not None and isinstance(e, IndexError) else ""
        raise SpecError("spec", [f"{key}: {type(e).__name__}: {e}{hint}"]) from e


def _largest_id(batch: Batch) -> str:
    """Of a table that is too small, what is looked up in it."""
    largest: list[int] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        if is_integer_tensor(tensor) and tensor.numel():
            largest.append(int(tensor.max()))
        return tensor

    map_tensors(batch.content, look)
    if not largest:
        return ""
    return f"; the largest id in data.train's first samples is {max(largest)}: is the vocabulary larger?"
