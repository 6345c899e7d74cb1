"""How a batch becomes one number: the losses that a spec can name with one word, and the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from flops_fit_ray.errors import ExperimentError
from flops_fit_ray.training.data import Batch


@dataclass(frozen=True)
class Objective:
    """A loss of the user's or ours, called the same way whatever it takes.

    One whose first argument is called `model` takes `(model, batch)` and does everything itself; any other takes
    `(outputs, targets)`, the outputs as the model gave them.
    """

    function: Callable[..., Any]
    takes_model: bool

    def __call__(self, model: nn.Module, batch: Batch) -> Any:
        """The loss of a batch: a mean over its tokens."""
        if self.takes_model:
            return self.function(model, batch.content)
        return self.function(outputs_of(model, batch), batch.target)


def as_objective(loss: Callable[..., Any]) -> Objective:
    """What a loss takes is read off the name of its first argument."""
    called = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        first = next(iter(inspect.signature(called).parameters), "")
    except (TypeError, ValueError):  # a builtin says nothing of its arguments
        first = ""
    return Objective(loss, takes_model=first == "model")


def outputs_of(model: nn.Module, batch: Batch) -> Any:
    """The model on the inputs of a batch.

    Raises:
        TypeError: inputs and target cannot be told apart.
    """
    if not batch.has_target:
        raise TypeError(
            "a sample must be a tuple (input, ..., target) or a mapping with labels, but is a "
            f"{type(batch.content).__name__}; else give a loss (model, batch)"
        )
    positional, named = batch.arguments
    return model(*positional, **named)


def logits_of(outputs: Any) -> Tensor:
    """The tensor among the outputs that a loss compares with targets: itself, `logits`, or the first of a tuple.

    Raises:
        TypeError: there is none.
    """
    found = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif hasattr(outputs, "logits"):
        found = outputs.logits
    elif isinstance(outputs, tuple | list) and outputs:
        found = outputs[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"outputs are a {type(outputs).__name__} without a tensor or logits; give a loss of your own")
    return found


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats; logits (..., classes), targets (...) of class numbers, -100 left out."""
    return functional.cross_entropy(logits_of(outputs).flatten(0, -2), targets.flatten().long())


def mse(outputs: Any, targets: Tensor) -> Tensor:
    """Mean squared error; outputs and targets of the same number of elements, one of them may lack a last axis of 1."""
    values = logits_of(outputs)
    if values.numel() != targets.numel():
        raise ValueError(f"outputs {tuple(values.shape)} and targets {tuple(targets.shape)} differ in size")
    return functional.mse_loss(values.reshape(targets.shape), targets.to(values.dtype))


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that the model computes itself, given the whole batch: `.loss`, `["loss"]`, or the scalar in a tuple.

    Raises:
        TypeError: there is none among its outputs.
    """
    positional, named = Batch(batch, 0).all_arguments
    outputs = model(*positional, **named)
    if isinstance(outputs, Mapping):
        found = outputs.get("loss")
    elif isinstance(outputs, tuple | list):
        found = next((o for o in outputs if isinstance(o, Tensor) and o.ndim == 0 and o.is_floating_point()), None)
    else:
        found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "loss", None)
    if not isinstance(found, Tensor) or found.numel() != 1:
        raise TypeError(f"loss 'model' needs a model that returns its loss, but it returned a {type(outputs).__name__}")
    return found


def check_loss(loss: Any) -> None:
    """Make sure that a loss, built in or the user's, is one number.

    Raises:
        ExperimentError: it is not.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ExperimentError(f"the loss must be one number, a mean over the batch, but is {shape}")


BUILT_IN_LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "mse": mse, "model": model_loss}
