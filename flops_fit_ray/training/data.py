"""The user's data: datasets, batches in a fixed order, and what one token is.

Batches are drawn by index in an order that depends on the seed and the number of samples alone: every size of a sweep
sees the same samples in the same order, and a smaller D is a prefix of a larger one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from flops_fit_ray.errors import SpecError

MapDataset: TypeAlias = Dataset[Any]
SPREAD_SAMPLES = 16  # that are looked at to know a dataset


@dataclass(frozen=True)
class Batch:
    """What the model is called with, and what the loss compares its output to."""

    inputs: tuple[Any, ...]
    target: Any
    num_samples: int

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(_moved(self.inputs, device), _moved(self.target, device), self.num_samples)

    def num_tokens(self, tokens_per_sample: int | None) -> int:
        """D of this batch, counted: `tokens_per_sample` for each sample where it is given, else in the targets.

        A target that is a row of whole numbers (next tokens, or a label per position) has one token per number;
        anything else is one token per sample.
        """
        if tokens_per_sample is not None:
            return self.num_samples * tokens_per_sample
        return self.target.numel() if has_tokens(self.target) else self.num_samples


def has_tokens(target: Any) -> bool:
    """Whether a batch's target holds whole numbers per position, not one label per sample."""
    whole = isinstance(target, Tensor) and not (target.is_floating_point() or target.is_complex())
    return whole and target.ndim >= 2 and target.dtype is not torch.bool


def as_dataset(value: Any, key: str) -> MapDataset:
    """A dataset with a length and an index, from what the user gave.

    Raises:
        SpecError: it has no length or no index, or it is empty.
    """
    if isinstance(value, DataLoader):
        raise SpecError("spec", [f"{key}: is a DataLoader; give its dataset, the sweep makes the batches itself"])
    if isinstance(value, IterableDataset):
        raise SpecError("spec", [f"{key}: is an IterableDataset; a dataset with __len__ and __getitem__ is needed"])
    if isinstance(value, tuple) and value and all(isinstance(t, Tensor) for t in value):
        value = TensorDataset(*value)
    if not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        raise SpecError("spec", [f"{key}: {type(value).__name__} has no __len__ and __getitem__; give a dataset"])
    if len(value) == 0:
        raise SpecError("spec", [f"{key}: is empty"])
    return cast(MapDataset, value)


def num_samples(dataset: MapDataset) -> int:
    """Its length; `as_dataset` made sure that there is one."""
    return len(dataset)  # type: ignore[arg-type] # torch's Dataset does not declare __len__


def split_held_out(dataset: MapDataset, fraction: float) -> tuple[MapDataset, MapDataset]:
    """Training and held-out part: a fixed random choice of samples, the same for every seed of the sweep."""
    count = num_samples(dataset)
    held_out = max(1, round(count * fraction))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
    # Arrays, because a list of many million numbers would travel to every worker
    kept, taken = (cast(Sequence[int], np.sort(part)) for part in (order[held_out:], order[:held_out]))
    return Subset(dataset, kept), Subset(dataset, taken)


def fetch(dataset: MapDataset, indices: Sequence[int]) -> Batch:
    """The samples at `indices` as one batch, as torch's DataLoader would collate them.

    Raises:
        TypeError: a sample is not a tuple of at least input and target.
    """
    samples = _collated(dataset, indices)
    if not isinstance(samples, tuple | list) or len(samples) < 2:
        raise TypeError(f"a sample must be a tuple (input, ..., target), but is a {type(samples).__name__}")
    return Batch(tuple(samples[:-1]), samples[-1], len(indices))


def _collated(dataset: MapDataset, indices: Sequence[int]) -> Any:
    if isinstance(dataset, Subset):
        return _collated(dataset.dataset, [int(dataset.indices[i]) for i in indices])
    if isinstance(dataset, TensorDataset):
        chosen = torch.tensor(indices)
        return tuple(t[chosen] for t in dataset.tensors)
    if hasattr(dataset, "__getitems__"):  # torch's own protocol for many samples at once
        return default_collate(dataset.__getitems__(list(indices)))
    return default_collate([dataset[i] for i in indices])


def batch_order(count: int, batch_size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Indices of each of `steps` batches. Every epoch is a new permutation; a batch may straddle two epochs."""
    epoch, order, position = 0, _permutation(count, seed, 0), 0
    for _ in range(steps):
        indices: list[int] = order[position : position + batch_size].tolist()
        position += batch_size
        while len(indices) < batch_size:
            epoch += 1
            order = _permutation(count, seed, epoch)
            position = batch_size - len(indices)
            indices += order[:position].tolist()
        yield indices


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed + epoch * 0x9E3779B97F4A7C15) % 2**63)
    return torch.randperm(count, generator=generator)


def spread_indices(count: int) -> list[int]:
    """A few indices from the first sample to the last, each once, evenly spread."""
    return sorted({i * (count - 1) // (SPREAD_SAMPLES - 1) for i in range(SPREAD_SAMPLES)})


def fingerprint(*datasets: MapDataset) -> str:
    """16 hex digits of the lengths and of some samples spread over each dataset.

    A dataset that gives another sample each time (random augmentation) is known by its length alone, else no
    experiment could ever be recognised.
    """
    digest = hashlib.sha256()
    for dataset in datasets:
        count = num_samples(dataset)
        digest.update(str(count).encode())
        indices = spread_indices(count)
        once, again = _sample_digest(dataset, indices), _sample_digest(dataset, indices)
        digest.update(once if once == again else b"random")
    return digest.hexdigest()[:16]


def _sample_digest(dataset: MapDataset, indices: Sequence[int]) -> bytes:
    digest = hashlib.sha256()
    for index in indices:
        _update(digest, _collated(dataset, [index]))
    return digest.digest()


def _update(digest: hashlib._Hash, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for name in value:
            digest.update(str(name).encode())
            _update(digest, value[name])
    elif isinstance(value, tuple | list):
        for part in value:
            _update(digest, part)
    else:
        digest.update(repr(value).encode())


def _moved(value: Any, device: torch.device) -> Any:
    """A nested value with every tensor of it on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {k: _moved(v, device) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_moved(v, device) for v in value)
    return value
