"""Losses: the built-in ones that a spec can name, and the user's own behind one interface."""

from __future__ import annotations

import inspect
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flops_fit_ray.errors import ExperimentError, SpecError
from flops_fit_ray.planning import Average
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.data.batch import AUTO


@dataclass(frozen=True)
class Objective:
    """A loss with one interface, `(model, batch)`.

    A function whose first argument is named `model` takes `(model, batch)` itself; any other takes
    `(outputs, targets)`, the outputs as the model returned them.
    """

    function: Callable[..., Any]
    takes_model: bool
    average: Average = AUTO

    def __call__(self, model: nn.Module, batch: Batch) -> Any:
        """Return the loss of a batch."""
        return mean_of(self.evaluate(model, batch))

    def evaluate(self, model: nn.Module, batch: Batch) -> Any:
        """Return what the function returns for a batch: its loss, or its sum and count."""
        if self.takes_model:
            return self.function(model, batch.content)
        return self.function(outputs_of(model, batch), batch.target)

    def weight(self, batch: Batch) -> Tensor | int:
        """Return the weight of a batch in the loss of several."""
        return 1 if self.average.over == "sum" else batch.loss_weight(self.average)


def sum_and_count(value: Any) -> tuple[Any, Any] | None:
    """Return the two numbers of a loss that returns `{"sum": ..., "count": ...}`; None of any other."""
    if isinstance(value, Mapping) and value.keys() == {"sum", "count"}:
        return value["sum"], value["count"]
    return None


def mean_of(value: Any) -> Any:
    """Return a loss as one number: itself, or its sum by its count."""
    found = sum_and_count(value)
    return value if found is None else found[0] / found[1]


def as_objective(loss: Callable[..., Any], average: Average = AUTO) -> Objective:
    """Wrap a loss; the name of its first argument tells its signature."""
    called = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        first = next(iter(inspect.signature(called).parameters), "")
    except (TypeError, ValueError):  # some builtins have no signature
        first = ""
    return Objective(loss, first == "model", average)


def outputs_of(model: nn.Module, batch: Batch) -> Any:
    """Run the model on the inputs of a batch.

    Raises:
        SpecError: inputs and target cannot be told apart.
    """
    if not batch.has_target:
        raise SpecError(
            "spec",
            [
                "data.train: a sample must be a tuple (input, ..., target) or a mapping with labels, but is a "
                f"{type(batch.content).__name__}; return one of these, or use a loss (model, batch)"
            ],
        )
    positional, named = batch.arguments
    return model(*positional, **named)


def logits_of(outputs: Any) -> Tensor:
    """Return the logits among a model's outputs: a tensor itself, `.logits`, `["logits"]`, or the first of a tuple.

    Raises:
        TypeError: there are none, or several that could be.
    """
    found = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif hasattr(outputs, "logits"):
        found = outputs.logits
    elif isinstance(outputs, tuple | list) and outputs:
        found = outputs[0]
        alike = [o for o in outputs if isinstance(o, Tensor) and isinstance(found, Tensor) and o.shape == found.shape]
        if len(alike) > 1:
            raise TypeError(
                f"the model returns a {type(outputs).__name__} with {len(alike)} tensors of shape "
                f"{tuple(alike[0].shape)}, and a built-in loss takes one; say how they make the loss in a function "
                "(outputs, targets) of your own, or return one of them"
            )
    if not isinstance(found, Tensor):
        raise TypeError(f"model outputs are a {type(outputs).__name__} without logits; use a loss of your own")
    return found


def classes_last(logits: Sequence[int], targets: Sequence[int]) -> bool:
    """Return True if shapes fit as logits (..., classes) and class ids (...); axes of length 1 do not matter."""
    flat = len(logits) == 2 and logits[0] == math.prod(targets)
    return flat or _without_ones(logits[:-1]) == _without_ones(targets)


def classes_second(logits: Sequence[int], targets: Sequence[int]) -> bool:
    """Return True if shapes fit as torch's layout, logits (samples, classes, positions...) and ids (samples, ...)."""
    return len(logits) > 2 and (logits[0], *logits[2:]) == tuple(targets)


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [n for n in shape if n != 1]


def num_classes(outputs: Any, targets: Any, *, second: bool = False) -> int:
    """Return the number of classes of a model's logits.

    Raises:
        TypeError, ValueError: as `cross_entropy`.
    """
    logits = logits_of(outputs)
    return logits.shape[1 if _is_second(logits, targets, second) else -1]


def _is_second(logits: Tensor, targets: Tensor, second: bool) -> bool:
    """Return True for torch's layout. `second` decides where both fit.

    Raises:
        ValueError: neither fits.
    """
    last, torchs = classes_last(logits.shape, targets.shape), classes_second(logits.shape, targets.shape)
    if not (last or torchs):
        if logits.shape == targets.shape:
            raise ValueError(
                f"logits {tuple(logits.shape)} do not fit targets {tuple(targets.shape)} of {targets.dtype}: give "
                "class ids, .argmax(-1), or probabilities, .float()"
            )
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit targets {tuple(targets.shape)}: cross_entropy takes logits "
            "(..., classes) or (samples, classes, positions...) and class ids (samples, positions...)"
        )
    return torchs and (second or not last)


def cross_entropy(outputs: Any, targets: Tensor, *, second: bool = False) -> Tensor:
    """Return the mean cross-entropy in nats.

    Logits are (..., classes) or, as in torch, (samples, classes, positions...); targets are class ids of the other
    axes, where -100 is ignored, or probabilities of the logits' shape.

    Args:
        second: the second layout is meant where both fit.

    Raises:
        TypeError, ValueError: outputs and targets do not fit together.
    """
    logits = logits_of(outputs)
    if logits.ndim and logits.shape[-1] == 1 and not classes_second(logits.shape, targets.shape):
        raise ValueError(
            f"logits {tuple(logits.shape)} have one class, whose cross-entropy is always 0; for a yes or no take a "
            "loss of your own, such as torch.nn.functional:binary_cross_entropy_with_logits"
        )
    if targets.is_floating_point() and targets.shape == logits.shape:  # probabilities
        return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(0, -2).to(logits.dtype))
    if _is_second(logits, targets, second):
        logits = logits.movedim(1, -1)
    return functional.cross_entropy(logits.flatten(0, -2), class_ids(targets).flatten())


def class_ids(targets: Tensor) -> Tensor:
    """Return targets as class ids.

    Raises:
        ValueError: some are no whole numbers.
    """
    ids = targets.long()
    if not targets.is_floating_point() or targets.is_meta or _is_captured(targets):
        return ids
    wrong = targets != ids
    if bool(wrong.any()):
        example = targets[wrong][0].item()
        raise ValueError(f"targets are class ids, and {example:.4g} is none; for numbers take loss: mse")
    return ids


def _is_captured(tensor: Tensor) -> bool:
    """Return True while a CUDA graph is recorded, in which no number can be looked at; the steps before it are."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def mse(outputs: Any, targets: Tensor) -> Tensor:
    """Return the mean squared error of outputs and targets of one shape, up to axes that are flattened.

    Raises:
        TypeError, ValueError: outputs and targets do not fit together.
    """
    values = logits_of(outputs)
    if not _same_when_flat(values.shape, targets.shape):
        raise ValueError(
            f"outputs {tuple(values.shape)} and targets {tuple(targets.shape)} differ in shape; return outputs of the "
            "targets' shape"
        )
    return functional.mse_loss(values.reshape(targets.shape), targets.to(values.dtype))


def _same_when_flat(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return True if flattening axes of one shape gives the other: (8, 1) and (8,), or (8, 784) and (8, 28, 28)."""
    ends = [set(itertools.accumulate(_without_ones(shape), operator.mul)) for shape in (one, other)]
    return math.prod(one) == math.prod(other) and (ends[0] <= ends[1] or ends[1] <= ends[0])


def model_loss(model: nn.Module, batch: Any) -> Any:
    """Return the loss that the model computes from the whole batch: `.loss`, `["loss"]`, or the scalar in a tuple.

    A model may return `{"sum": ..., "count": ...}` as well.

    Raises:
        TypeError: its outputs hold no loss.
    """
    positional, named = Batch(batch, 0).all_arguments
    outputs = model(*positional, **named)
    if sum_and_count(outputs) is not None:
        return outputs
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
        if callable(loss):
            raise ExperimentError(f"the loss returned {shape}, another loss, and no number; name what it returns")
        raise ExperimentError(
            f"the loss must be one number, a mean over the batch, but is {shape}; return .mean() of a tensor, the loss "
            "alone of a tuple, or a mapping of sum and count"
        )


BUILT_IN_LOSSES: dict[str, Callable[..., Any]] = {"cross_entropy": cross_entropy, "mse": mse, "model": model_loss}
