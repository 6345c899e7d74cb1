"""The losses that a spec can name with one word. Both are means over all tokens of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flops_fit_ray.errors import ExperimentError


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats; outputs (..., classes), targets (...) of class numbers."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten().long())


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error; outputs and targets of the same number of elements, one of them may lack a last axis of 1."""
    if outputs.numel() != targets.numel():
        raise ValueError(f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ in size")
    return functional.mse_loss(outputs.reshape(targets.shape), targets.to(outputs.dtype))


def check_loss(loss: Any) -> None:
    """Make sure that a loss, built in or the user's, is one number.

    Raises:
        ExperimentError: it is not.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ExperimentError(f"the loss must be one number, a mean over the batch, but is {shape}")


BUILT_IN: dict[str, Callable[[Tensor, Tensor], torch.Tensor]] = {"cross_entropy": cross_entropy, "mse": mse}
