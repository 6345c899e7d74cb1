"""A smoke test of the user's parts on two samples, which finds while planning what the meta device cannot see.

Token ids beyond the vocabulary, a context longer than the positions, a loss that does not fit the outputs, a factory
that returns no optimizer, a schedule or metric that is not a number. It takes well under a second.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Subset, TensorDataset

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import LossFacts, ModelSize
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.training.data import Batch, Stream, first_batch
from flops_fit_ray.training.data.batch import is_integer_tensor, map_tensors
from flops_fit_ray.training.data.dataset import TensorDictDataset
from flops_fit_ray.training.user._loss_average import SAMPLES
from flops_fit_ray.training.user._loss_probe import learn_loss_facts
from flops_fit_ray.training.user.losses import (
    as_objective,
    check_loss,
    class_ids,
    cross_entropy,
    logits_of,
    mean_of,
    outputs_of,
)
from flops_fit_ray.training.user.optimizers import user_optimizer
from flops_fit_ray.training.user.parts import UserParts, build
from flops_fit_ray.training.user.user_code import user_code
from flops_fit_ray.training.user.wrong_samples import sample_fault

MAX_PARAMS = 20_000_000  # of a model that planning builds with real weights
SCHEDULE_STEPS = 1000


def smoke_test_parts(
    user: UserParts,
    size: ModelSize,
    batch: Batch,
    spec: SweepSpec,
    on_meta: Callable[[], torch.nn.Module],
) -> LossFacts:
    """Run the user's schedule, model, loss, metrics and optimizer factory once, with the smallest model.

    The model is not run if even the smallest one is large, or if the user counts its FLOPs: it may need a GPU. The loss
    of a large one is tried on outputs of the right shapes.

    Args:
        on_meta: builds this model on the meta device.
        batch: of the training data, to learn from what the loss averages over.

    Raises:
        SpecError: a part raised or returned something unusable; the fault names its key.
    """
    if user.schedule is not None:
        _check_schedule(user.schedule)
    if user.flops_per_token is not None:
        return learn_loss_facts(user, None, batch, spec)
    large = is_large(size)
    model = on_meta() if large else build(user, size.kwargs)
    with _named("data.train: reading samples"):
        if batch.num_samples < SAMPLES and not isinstance(user.train_data, Stream):
            batch = first_batch(user.train_data, SAMPLES)
    if large:
        with _named("loss: trying it on outputs like the model's"):
            return learn_loss_facts(user, model, batch, spec)
    two = batch.split(2)[0] if batch.splits else batch
    called = f"model.target: the model of size {size.size}"
    if user.objective.takes_model:
        with _named(f"{called} and the loss fail on the first samples", two, model):
            _check_loss(user.objective(model, two), model)
    else:
        with _named(f"{called} fails on the first samples", two, model):
            outputs = outputs_of(model, two)
        with _named("loss: fails on the first samples", two, model):
            _check_loss(mean_of(user.objective.function(outputs, two.target)), model)
            if user.loss is cross_entropy and two.target.is_floating_point():
                _check_class_ids(user, outputs, two)
    for name, metric in user.metrics.items():
        with _named(f"metrics.{name}"), torch.no_grad():
            value = as_objective(metric)(model, two)
            if torch.as_tensor(value).numel() != 1:
                raise TypeError(f"a metric must be one number, but it is {value!r}")
    if user.optimizer is not None:
        with _named("train.optimizer"):
            user_optimizer(user.optimizer, model, 1e-3)
    with _named("loss: trying it on the first samples"):
        return learn_loss_facts(user, model, batch, spec)


def is_large(size: ModelSize) -> bool:
    """Return True for a model that planning does not build with real weights."""
    return size.params_total > MAX_PARAMS


def _check_loss(loss: Any, model: torch.nn.Module) -> None:
    check_loss(loss)
    if loss.requires_grad:
        loss.backward()
        model.zero_grad()
    elif any(p.requires_grad for p in model.parameters()):
        raise TypeError("the loss has no gradient; does it call .item(), .detach() or numpy?")


def _check_class_ids(user: UserParts, outputs: Any, batch: Batch) -> None:
    """Look at all targets that lie in memory, unless they are probabilities, which have the shape of logits."""
    if logits_of(outputs).shape == batch.target.shape:
        return
    for data in (user.train_data, user.eval_data):
        whole = data
        while isinstance(whole, Subset):
            whole = whole.dataset
        if isinstance(whole, TensorDataset):
            class_ids(whole.tensors[-1])
        elif isinstance(whole, TensorDictDataset):
            class_ids(Batch(whole.columns, 0).target)


def _check_schedule(schedule: Callable[[int, int], float]) -> None:
    with _named("train.schedule"):
        for step in (0, SCHEDULE_STEPS // 2, SCHEDULE_STEPS - 1):
            factor = schedule(step, SCHEDULE_STEPS)
            if not (isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0):
                raise ValueError(
                    f"step {step} of {SCHEDULE_STEPS} gave {factor!r}; return a multiple of the peak, 0 or more"
                )


@contextlib.contextmanager
def _named(key: str, batch: Batch | None = None, model: torch.nn.Module | None = None) -> Iterator[None]:
    try:
        with user_code(f"{key}:"):
            yield
    except SpecError as e:
        if batch is not None and model is not None and (fault := sample_fault(e.__cause__, model, batch)):
            raise SpecError(e.source, [fault]) from e.__cause__
        if batch is not None and isinstance(e.__cause__, IndexError):
            raise SpecError(e.source, [f"{e.faults[0]}{_largest_id(batch)}"]) from e.__cause__
        raise


def _largest_id(batch: Batch) -> str:
    """Return a hint at an embedding that is too small: the largest id of the batch."""
    largest: list[int] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        if is_integer_tensor(tensor) and tensor.numel():
            largest.append(int(tensor.max()))
        return tensor

    map_tensors(batch.content, look)
    if not largest:
        return ""
    return f"; the largest id in data.train's first samples is {max(largest)}: is the model's vocabulary larger?"
