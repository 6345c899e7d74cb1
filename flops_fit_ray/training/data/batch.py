"""One collated batch: a tensor, a tuple or a mapping, nested in any way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flops_fit_ray.planning import Average

TARGET_NAMES = ("labels", "targets", "target", "label", "y")  # keys of a mapping; the first that exists is the target
IGNORE_INDEX = -100  # default `ignore_index` of torch's cross_entropy
AUTO = Average()


@dataclass(frozen=True)
class Batch:
    """Collated samples. The target is the last part of a tuple, or `labels` (or the like) of a mapping."""

    content: Any
    num_samples: int
    splits: bool = True  # False where the first axis of a tensor is not the samples, as in a batch of graphs

    @property
    def target(self) -> Any:
        """Return the target; None where inputs and target cannot be told apart."""
        if isinstance(self.content, Mapping):
            name = self._target_name
            return None if name is None else self.content[name]
        return self.content[-1] if self._has_parts else None

    @property
    def has_target(self) -> bool:
        """True for a mapping with a target key, and a tuple of two parts or more."""
        return self._target_name is not None if isinstance(self.content, Mapping) else self._has_parts

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the model's arguments without the target: positional for a tuple, keywords for a mapping."""
        if isinstance(self.content, Mapping):
            return (), {str(k): v for k, v in self.content.items() if k != self._target_name}
        return (tuple(self.content[:-1]), {}) if self._has_parts else ((self.content,), {})

    @property
    def all_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a model that computes its own loss: the target is one of them."""
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
        """Copy the batch to a device."""
        on_gpu = device.type == "cuda"
        return replace(self, content=map_tensors(self.content, lambda t: t.to(device, non_blocking=on_gpu)))

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory, from which a GPU copies asynchronously."""
        return replace(self, content=map_tensors(self.content, lambda t: t if t.is_cuda else t.pin_memory()))

    def split(self, size: int) -> list[Batch]:
        """Split into micro-batches of at most `size` samples; values without a sample axis go into each.

        Raises:
            ValueError: the first axis of a tensor is not the samples.
        """
        if size >= self.num_samples:
            return [self]
        if not self.splits:
            raise ValueError(
                f"a batch of {self.num_samples} samples cannot be split into parts of {size}: the first axis of its "
                "tensors is not the samples (graphs); lower train.batch_size instead"
            )
        starts = range(0, self.num_samples, size)
        ends = [min(start + size, self.num_samples) for start in starts]
        return [
            Batch(self._part(self.content, start, end), end - start) for start, end in zip(starts, ends, strict=True)
        ]

    def _part(self, value: Any, start: int, end: int) -> Any:
        if isinstance(value, list) and len(value) == self.num_samples and not any(isinstance(v, Tensor) for v in value):
            return value[start:end]  # texts
        if isinstance(value, Mapping):
            return {name: self._part(part, start, end) for name, part in value.items()}
        return map_tensors(value, lambda t: t[start:end] if t.ndim and t.shape[0] == self.num_samples else t)

    def num_tokens(self) -> int:
        """Count tokens by the default rule.

        Targets that are rows of integers (next tokens, or a label per position) have one token per integer, and so has
        a batch that is only such rows. Anything else has one token per sample.
        """
        rows = self.target if self.has_target else self.content
        return int(rows.numel()) if has_tokens(rows) else self.num_samples

    def loss_weight(self, average: Average = AUTO) -> Tensor | int:
        """Return the weight of this batch in a mean over several.

        A count of tensors on a GPU stays there as a tensor, which saves a synchronisation.
        """
        rows = self.target if self.has_target else self.content
        if average.over == "auto":
            return (self.target != IGNORE_INDEX).sum() if is_integer_tensor(self.target) else self.num_samples
        if average.over == "targets" and is_integer_tensor(rows):
            return _class_weights(_positions(rows, average), average).sum()
        if average.over == "present":
            present: Tensor = ~rows.isnan()
            return present.sum()
        if average.over == "mask":
            mask: Tensor = self.part(average.mask)
            return _positions(mask, average).double().sum()
        return self.num_samples

    def part(self, path: str) -> Any:
        """Return the part of the content at a path of keys and numbers, with dots between."""
        found = self.content
        for step in path.split(".") if path else ():
            found = found[step] if isinstance(found, Mapping) else found[int(step)]
        return found


def _positions(rows: Tensor, average: Average) -> Tensor:
    return rows[:, 1:] if average.skip_first else rows


def _class_weights(targets: Tensor, average: Average) -> Tensor:
    """Return the weight of each target: 1 or that of its class, 0 where it is ignored."""
    counts = torch.ones_like(targets, dtype=torch.bool)
    for value in average.ignored:
        counts &= targets != value
    if not average.class_weights:
        return counts
    table = torch.tensor(average.class_weights, dtype=torch.float64, device=targets.device)
    return table[targets.clamp(0, len(table) - 1)] * counts


def without_empty_parts(batch: Batch, size: int, weights: Sequence[Tensor]) -> list[Batch]:
    """Split a batch on a GPU as `Batch.split` does, and put the heaviest part where one weighs nothing.

    The loss of a part without targets is 0 / 0, and NaN times its weight of 0 is NaN. The replacement gives 0, and
    unlike leaving the part out it needs no look at the weight, which would wait for the device.
    """
    stacked = torch.stack([weight.double() for weight in weights])
    starts = torch.arange(0, batch.num_samples, size, device=stacked.device)
    heaviest = starts.index_select(0, stacked.argmax().unsqueeze(0))  # starts[argmax] would read the number
    starts = torch.where(stacked == 0, heaviest, starts)
    found = []
    for part, start in zip(batch.split(size), starts, strict=True):
        rows = (start + torch.arange(part.num_samples, device=stacked.device)).clamp(max=batch.num_samples - 1)
        found.append(Batch(map_tensors(batch.content, _chooser(rows, batch.num_samples)), part.num_samples))
    return found


def _chooser(rows: Tensor, samples: int) -> Callable[[Tensor], Tensor]:
    """Return a function that takes the rows of a tensor with a sample axis."""

    def choose(tensor: Tensor) -> Tensor:
        has_samples = tensor.ndim and tensor.shape[0] == samples
        return tensor.index_select(0, rows.to(tensor.device)) if has_samples else tensor

    return choose


def is_integer_tensor(value: Any) -> bool:
    """Return True for a tensor of integers; bool is none."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        return False
    return value.dtype is not torch.bool


def has_tokens(target: Any) -> bool:
    """Return True for integers per position, of two axes or more; one label per sample is none."""
    return is_integer_tensor(target) and target.ndim >= 2


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to every tensor of a nested value. Tuples and lists keep their type; mappings become dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: map_tensors(v, change) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a namedtuple
        return type(value)(*(map_tensors(v, change) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(v, change) for v in value)
    return value


def loaded_batch(content: Any, batch_size: int | None) -> Batch:
    """Return a batch that a loader has collated, with its number of samples: the length of its first tensor.

    Where that is not the loader's batch size, as with graphs, whose nodes are in one axis, a shorter target or
    `num_graphs` in a mapping tells the number of samples.

    Raises:
        TypeError: it holds no tensor.
    """
    first = _first_length(content)
    if first is None:
        raise TypeError(
            "a batch must hold a tensor whose first axis is the samples, in a tuple (input, ..., target) or a mapping, "
            f"but is a {type(content).__name__}; return one of these from collate_fn"
        )
    if batch_size is None or first == batch_size:
        return Batch(content, first)
    target = Batch(content, first).target
    graphs = content.get("num_graphs") if isinstance(content, Mapping) else None
    if isinstance(graphs, Tensor):
        graphs = int(graphs) if graphs.numel() == 1 else None
    shorter = len(target) if isinstance(target, Tensor) and target.ndim and len(target) < first else None
    count = graphs if isinstance(graphs, int) and graphs != first else shorter
    return Batch(content, first) if count is None else Batch(content, count, splits=False)


def _first_length(content: Any) -> int | None:
    if isinstance(content, Tensor):
        return content.shape[0] if content.ndim else None
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, tuple | list) else ()
    return next((length for part in parts if (length := _first_length(part)) is not None), None)


def batch_device(batch: Batch) -> torch.device:
    """Return the device of the first tensor of a batch."""
    devices: list[torch.device] = []
    map_tensors(batch.content, lambda t: devices.append(t.device) or t)  # type: ignore[func-returns-value] # notes, and keeps t
    return devices[0] if devices else torch.device("cpu")


def num_elements(content: Any) -> int:
    """Count the numbers in all tensors of a nested value."""
    counts: list[int] = []
    map_tensors(content, lambda t: counts.append(t.numel()) or t)  # type: ignore[func-returns-value] # counts, and keeps t
    return sum(counts)
