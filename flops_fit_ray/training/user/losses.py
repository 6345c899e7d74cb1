"""Losses: the built-in ones that a spec can name, and the user's own behind one interface."""

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
    """A loss with one interface, `(model, batch)`.

    A function whose first argument is named `model` takes `(model, batch)` itself; any other takes
    `(outputs, targets)`, the outputs as the model returned them.
    """

    function: Callable[..., Any]
    takes_model: bool

    def __call__(self, model: nn.Module, batch: Batch) -> Any:
        """Return the loss of a batch: a mean over its tokens."""
        if self.takes_model:
            return self.function(model, batch.content)
        return self.function(outputs_of(model, batch), batch.target)


def as_objective(loss: Callable[..., Any]) -> Objective:
    """Wrap a loss; the name of its first argument tells its signature."""
    called = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        first = next(iter(inspect.signature(called).parameters), "")
    except (TypeError, ValueError):  # some builtins have no signature
        first = ""
    return Objective(loss, takes_model=first == "model")


def outputs_of(model: nn.Module, batch: Batch) -> Any:
    """Run the model on the inputs of a batch.

    Raises:
        TypeError: inputs and target cannot be told apart.
    """
    if not batch.has_target:
        raise TypeError(
            "a sample must be a tuple (input, ..., target) or a mapping with labels, but is a "
            f"{type(batch.content).__name__}; return one of these, or use a loss (model, batch)"
        )
    positional, named = batch.arguments
    return model(*positional, **named)


def logits_of(outputs: Any) -> Tensor:
    """Return the logits among a model's outputs: a tensor itself, `.logits`, `["logits"]`, or the first of a tuple.

    Raises:
        TypeError: there are none.
    """
    found = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif hasattr(outputs, "logits"):
        found = outputs.logits
    elif isinstance(outputs, tuple | list) and outputs:
        found = outputs[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"model outputs are a {type(outputs).__name__} without logits; use a loss of your own")
    return found


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats; logits (..., classes), class ids (...), where -100 is ignored."""
    return functional.cross_entropy(logits_of(outputs).flatten(0, -2), targets.flatten().long())


def mse(outputs: Any, targets: Tensor) -> Tensor:
    """Return the mean squared error of outputs and targets with the same number of elements."""
    values = logits_of(outputs)
    if values.numel() != targets.numel():
        raise ValueError(f"outputs {tuple(values.shape)} and targets {tuple(targets.shape)} differ in size")
    return functional.mse_loss(values.reshape(targets.shape), targets.to(values.dtype))


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss that the model computes from the whole batch: `.loss`, `["loss"]`, or the scalar in a tuple.

    Raises:
        TypeError: its outputs hold no loss.
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
        raise TypeError(f"loss: model needs a model that returns its loss, but it returned a {type(outputs).__name__}")
    return found


def check_loss(loss: Any) -> None:
    """Check that a loss is a scalar tensor.

    Raises:
        ExperimentError: it is not.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ExperimentError(f"the loss must be one number, a mean over the batch, but is {shape}")


BUILT_IN_LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "mse": mse, "model": model_loss}
