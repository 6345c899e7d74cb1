"""One batch, as the data gave it: a tensor, a tuple, a mapping, nested as it likes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TARGET_NAMES = ("labels", "targets", "target", "label", "y")  # of a mapping, the first that is there
IGNORE_INDEX = -100  # torch's own word for a target that the cross-entropy leaves out


@dataclass(frozen=True)
class Batch:
    """`content` is what the dataset's samples collate to; the last part of a tuple, or `labels`, is the target."""

    content: Any
    num_samples: int

    @property
    def target(self) -> Any:
        """What outputs are compared to: the last of a tuple, `labels` (or the like) of a mapping; else None."""
        if isinstance(self.content, Mapping):
            name = self._target_name
            return None if name is None else self.content[name]
        return self.content[-1] if self._has_parts else None

    @property
    def has_target(self) -> bool:
        """Whether inputs and target can be told apart."""
        return self._target_name is not None if isinstance(self.content, Mapping) else self._has_parts

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model is called with, without the target: positional for a tuple, by name for a mapping."""
        if isinstance(self.content, Mapping):
            return (), {str(k): v for k, v in self.content.items() if k != self._target_name}
        return (tuple(self.content[:-1]), {}) if self._has_parts else ((self.content,), {})

    @property
    def all_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a model that computes its own loss is called with: everything."""
        if isinstance(self.content, Mapping):
            return (), {str(k): v for k, v in self.content.items()}
        return (tuple(self.content), {}) if isinstance(self.content, tuple | list) else ((self.content,), {})

    @property
    def _has_parts(self) -> bool:
        return isinstance(self.content, tuple | list) and len(self.content) >= 2

    @property
    def _target_name(self) -> Any:
        return next((name for name in TARGET_NAMES if name in self.content), None)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        on_gpu = device.type == "cuda"
        return Batch(map_tensors(self.content, lambda t: t.to(device, non_blocking=on_gpu)), self.num_samples)

    def pin_memory(self) -> Batch:
        """The same batch in memory that a GPU reads without the CPU's help."""
        return Batch(map_tensors(self.content, lambda t: t if t.is_cuda else t.pin_memory()), self.num_samples)

    def split(self, size: int) -> list[Batch]:
        """Parts of at most `size` samples each; what has no sample axis goes with every part."""
        if size >= self.num_samples:
            return [self]
        starts = range(0, self.num_samples, size)
        ends = [min(start + size, self.num_samples) for start in starts]
        return [
            Batch(map_tensors(self.content, self._slicer(start, end)), end - start)
            for start, end in zip(starts, ends, strict=True)
        ]

    def _slicer(self, start: int, end: int) -> Callable[[Tensor], Tensor]:
        return lambda t: t[start:end] if t.ndim and t.shape[0] == self.num_samples else t

    def num_tokens(self) -> int:
        """D of this batch by the default rule.

        A target that is a row of whole numbers (next tokens, or a label per position) has one token per number, and so
        has a batch that is nothing but such rows; anything else is one token per sample.
        """
        rows = self.target if self.has_target else self.content
        return int(rows.numel()) if has_tokens(rows) else self.num_samples

    def loss_weight(self) -> Tensor | int:
        """How much this batch counts in a mean over several: its targets that are not ignored, else its samples.

        A tensor stays on its device, so that nobody waits for it.
        """
        target = self.target
        return (target != IGNORE_INDEX).sum() if is_integer_tensor(target) else self.num_samples


def is_integer_tensor(value: Any) -> bool:
    """Whether a value is a tensor of whole numbers."""
    whole = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
    return whole and value.dtype is not torch.bool


def has_tokens(target: Any) -> bool:
    """Whether a batch's target holds whole numbers per position, not one label per sample."""
    return is_integer_tensor(target) and target.ndim >= 2


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nested value with every tensor changed and every tuple and list of the kind it was; mappings become dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: map_tensors(v, change) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a namedtuple
        return type(value)(*(map_tensors(v, change) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(v, change) for v in value)
    return value


def count_samples(content: Any) -> int:
    """The number of samples of a ready batch: the length of the first tensor in it.

    Raises:
        TypeError: there is no tensor in it.
    """
    if isinstance(content, Tensor) and content.ndim:
        return content.shape[0]
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, tuple | list) else ()
    for part in parts:
        try:
            return count_samples(part)
        except TypeError:
            continue
    raise TypeError(f"a batch must hold a tensor whose first axis is the samples, but is a {type(content).__name__}")
