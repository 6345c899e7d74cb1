"""Datasets in the form that a sweep reads them: by index, or as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from flops_fit_ray.errors import SpecError
from flops_fit_ray.training.data.batch import Batch
from flops_fit_ray.training.data.stream import Stream, loader_batch_size
from flops_fit_ray.training.data.token_file import TokenFile

MapDataset: TypeAlias = Dataset[Any]
Data: TypeAlias = MapDataset | Stream


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """The data of a sweep as experiments use them."""

    train: Data
    held_out: Data | None  # None: the smoothed training loss stands in
    source: str  # of the held-out part, in words


class TensorDictDataset(Dataset[Any]):
    """Named arrays of one length, as samples that are mappings."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def as_data(value: Any, key: str) -> Data:
    """What the user gave, as a dataset with a length and an index or as a stream.

    Tensors and arrays (one, a tuple of them, or a mapping of them), map-style and iterable datasets, ready loaders,
    Hugging Face datasets.

    Raises:
        SpecError: it is nothing of the kind, it is empty, or it can be read only once.
    """
    value = _from_hugging_face(_from_arrays(value, key), key)
    if isinstance(value, DataLoader):
        if loader_batch_size(value) is None:
            raise _fault(key, "is a DataLoader that does not say its batch_size; give its dataset, or set batch_size")
        return Stream(value)
    by_index = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if isinstance(value, IterableDataset) or (hasattr(value, "__iter__") and not by_index):
        if hasattr(value, "__next__"):
            raise _fault(
                key,
                f"is a {type(value).__name__}, which can be read only once; give an object whose __iter__ starts anew",
            )
        return Stream(value)
    if not by_index or isinstance(value, str | Mapping):
        kind = type(value).__name__
        raise _fault(key, f"{kind} has no __len__ and __getitem__, and no __iter__; give a dataset")
    if len(value) == 0:
        raise _fault(key, "is empty")
    return cast(MapDataset, value)


def _fault(key: str, what: str) -> SpecError:
    return SpecError("spec", [f"{key}: {what}"])


def _from_arrays(value: Any, key: str) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return SingleTensorDataset(_tensor(value))
    if isinstance(value, tuple) and value and all(isinstance(a, Tensor | np.ndarray) for a in value):
        parts = [_tensor(a) for a in value]
        _same_length({str(i): len(a) for i, a in enumerate(parts)}, key)
        return TensorDataset(*parts)
    if isinstance(value, Mapping) and value and all(isinstance(a, Tensor | np.ndarray) for a in value.values()):
        columns = {str(name): _tensor(a) for name, a in value.items()}
        _same_length({name: len(a) for name, a in columns.items()}, key)
        return TensorDictDataset(columns)
    return value


class SingleTensorDataset(Dataset[Any]):
    """One tensor: each sample is a row of it, and there is no target."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Tensor:
        return self.rows[index]


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))


def _same_length(lengths: Mapping[str, int], key: str) -> None:
    if len(set(lengths.values())) > 1:
        raise _fault(key, f"has parts of several lengths: {', '.join(f'{k}: {n}' for k, n in lengths.items())}")


def _from_hugging_face(value: Any, key: str) -> Any:
    """A Hugging Face dataset gives lists, which collate into columns; asked for tensors, it gives samples."""
    if not type(value).__module__.startswith("datasets."):
        return value
    if isinstance(value, Mapping):
        raise _fault(key, f"is a {type(value).__name__}; choose one of its splits: {', '.join(map(str, value))}")
    given = getattr(value, "format", None)
    return value if isinstance(given, Mapping) and given.get("type") is not None else value.with_format("torch")


def num_samples(dataset: MapDataset) -> int:
    """Its length; `as_data` made sure that there is one."""
    return len(cast(Sized, dataset))


def split_held_out(dataset: MapDataset, fraction: float) -> tuple[MapDataset, MapDataset]:
    """Training and held-out part: a fixed random choice of samples, the same for every seed of the sweep."""
    count = num_samples(dataset)
    held_out = max(1, round(count * fraction))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
    # Arrays, because a list of many million numbers would travel to every worker
    kept, taken = (cast(Sequence[int], np.sort(part)) for part in (order[held_out:], order[:held_out]))
    return Subset(dataset, kept), Subset(dataset, taken)


def fetch(dataset: MapDataset, indices: NDArray[np.int64]) -> Batch:
    """The samples at `indices` as one batch, as torch's DataLoader would collate them."""
    return Batch(_collated(dataset, indices), len(indices))


def _collated(dataset: MapDataset, indices: NDArray[np.int64]) -> Any:
    if isinstance(dataset, Subset):
        return _collated(dataset.dataset, np.asarray(dataset.indices)[indices])
    if isinstance(dataset, TokenFile):
        return dataset.batch(indices)
    if isinstance(dataset, TensorDataset):
        return tuple(index_rows(t, indices) for t in dataset.tensors)
    if isinstance(dataset, TensorDictDataset):
        return {name: index_rows(column, indices) for name, column in dataset.columns.items()}
    if isinstance(dataset, SingleTensorDataset):
        return index_rows(dataset.rows, indices)
    if hasattr(dataset, "__getitems__"):  # torch's own protocol for many samples at once
        return default_collate(dataset.__getitems__(indices.tolist()))
    return default_collate([dataset[i] for i in indices.tolist()])


def index_rows(rows: Tensor, indices: NDArray[np.int64]) -> Tensor:
    """Rows of a tensor by their numbers, on the tensor's own device."""
    chosen = torch.from_numpy(indices)
    if rows.is_cuda:  # from pinned memory nobody waits for the copy
        chosen = chosen.pin_memory().to(rows.device, non_blocking=True)
    return rows[chosen]


def is_deterministic(dataset: MapDataset) -> bool:
    """Whether reading a dataset is known to draw no random numbers: it is ours, or tensors."""
    inner = dataset
    while isinstance(inner, Subset):
        inner = inner.dataset
    return isinstance(inner, TensorDataset | TokenFile | TensorDictDataset | SingleTensorDataset)


def move_to_device(dataset: MapDataset, device: torch.device, max_bytes: int) -> MapDataset:
    """The same dataset with its tensors on `device`, where it is made of tensors that fit into `max_bytes` bytes."""
    if isinstance(dataset, Subset):
        return Subset(move_to_device(dataset.dataset, device, max_bytes), dataset.indices)
    if isinstance(dataset, TokenFile) and 16 * len(dataset) * dataset.context <= max_bytes:
        dataset = TensorDataset(*dataset.all_tokens())
    if isinstance(dataset, TensorDataset) and sum(map(_bytes, dataset.tensors)) <= max_bytes:
        return TensorDataset(*(t.to(device) for t in dataset.tensors))
    if isinstance(dataset, TensorDictDataset) and sum(map(_bytes, dataset.columns.values())) <= max_bytes:
        return TensorDictDataset({name: column.to(device) for name, column in dataset.columns.items()})
    return dataset


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def eval_batches(data: Data, count: int, batch_size: int) -> Iterator[Batch]:
    """The first `count` samples in batches, the last one smaller where it must be."""
    if not isinstance(data, Stream):
        for start in range(0, count, batch_size):
            yield fetch(data, np.arange(start, min(start + batch_size, count)))
        return
    items = data.begin_epoch(0)
    while count > 0 and (batch := data.next_batch(items, min(batch_size, count))) is not None:
        part = batch.split(count)[0] if batch.num_samples > count else batch
        count -= part.num_samples
        yield part
