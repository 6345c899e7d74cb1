"""The user's data as a map-style dataset or a stream, and batches of it by index."""

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
from flops_fit_ray.training.data._stream import Stream, loader_batch_size
from flops_fit_ray.training.data.batch import Batch
from flops_fit_ray.training.data.token_file import TokenFile

MapDataset: TypeAlias = Dataset[Any]
Data: TypeAlias = MapDataset | Stream


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Training and held-out data of a sweep, ready for experiments."""

    train: Data
    held_out: Data | None  # None: the smoothed training loss takes its place
    source: str  # of the held-out data, for people


class TensorDictDataset(Dataset[Any]):
    """Named tensors of one length; each sample is a dict of their rows."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def as_data(value: Any, key: str) -> Data:
    """Convert the user's data to a map-style dataset or a stream.

    Accepts tensors and arrays (one, a tuple, or a mapping of them), map-style and iterable datasets, DataLoaders and
    Hugging Face datasets.

    Raises:
        SpecError: it is none of these, it is empty, or it can be iterated only once.
    """
    value = _from_hugging_face(_from_arrays(value, key), key)
    if isinstance(value, DataLoader):
        if loader_batch_size(value) is None:
            raise _fault(key, "is a DataLoader without a batch_size; pass its dataset, or set batch_size")
        return Stream(value)
    by_index = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if isinstance(value, IterableDataset) or (hasattr(value, "__iter__") and not by_index):
        if hasattr(value, "__next__"):
            kind = type(value).__name__
            raise _fault(
                key, f"is a {kind}, which can be iterated only once; pass an object whose __iter__ starts over"
            )
        return Stream(value)
    if not by_index or isinstance(value, str | Mapping):
        kind = type(value).__name__
        raise _fault(key, f"{kind} has no __len__ and __getitem__, and no __iter__; pass a dataset")
    if len(value) == 0:
        raise _fault(key, "is empty; pass at least one sample")
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
    """One tensor without targets; each sample is a row of it."""

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
        raise _fault(key, f"has parts of different lengths: {', '.join(f'{k}: {n}' for k, n in lengths.items())}")


def _from_hugging_face(value: Any, key: str) -> Any:
    """Set the `torch` format of a Hugging Face dataset: its lists would collate into columns."""
    if not type(value).__module__.startswith("datasets."):
        return value
    if isinstance(value, Mapping):
        raise _fault(key, f"is a {type(value).__name__}; pass one of its splits: {', '.join(map(str, value))}")
    current = getattr(value, "format", None)
    return value if isinstance(current, Mapping) and current.get("type") is not None else value.with_format("torch")


def num_samples(dataset: MapDataset) -> int:
    """Return the length of a dataset; `as_data` has checked that it has one."""
    return len(cast(Sized, dataset))


def split_held_out(dataset: MapDataset, fraction: float) -> tuple[MapDataset, MapDataset]:
    """Split into training and held-out samples at random, the same for every seed of the sweep."""
    count = num_samples(dataset)
    held_out = max(1, round(count * fraction))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
    # Arrays: lists of millions of Python integers would be pickled to every worker
    kept, taken = (cast(Sequence[int], np.sort(part)) for part in (order[held_out:], order[:held_out]))
    return Subset(dataset, kept), Subset(dataset, taken)


def fetch(dataset: MapDataset, indices: NDArray[np.int64]) -> Batch:
    """Collate the samples at `indices` into a batch, as torch's DataLoader would."""
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
    if hasattr(dataset, "__getitems__"):  # torch's protocol for batched reads
        return default_collate(dataset.__getitems__(indices.tolist()))
    return default_collate([dataset[i] for i in indices.tolist()])


def index_rows(rows: Tensor, indices: NDArray[np.int64]) -> Tensor:
    """Index the rows of a tensor, on its device."""
    chosen = torch.from_numpy(indices)
    if rows.is_cuda:  # asynchronous copy of the indices
        chosen = chosen.pin_memory().to(rows.device, non_blocking=True)
    return rows[chosen]


def is_deterministic(dataset: MapDataset) -> bool:
    """Return True if reading a dataset is known to draw no random numbers: our own classes, and tensors."""
    inner = dataset
    while isinstance(inner, Subset):
        inner = inner.dataset
    return isinstance(inner, TensorDataset | TokenFile | TensorDictDataset | SingleTensorDataset)


def move_to_device(dataset: MapDataset, device: torch.device, max_bytes: int) -> MapDataset:
    """Move a dataset of tensors to a device if it fits into `max_bytes`; else return it as it is."""
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


def eval_batches(data: Data, count: int, batch_size: int, *, spread: bool = False) -> Iterator[Batch]:
    """Yield the first `count` samples in batches; the last one may be smaller.

    Args:
        spread: evenly spaced samples in place of the first; a stream has its first in any case.
    """
    if not isinstance(data, Stream):
        chosen = np.arange(count)
        if spread:
            chosen = chosen * num_samples(data) // count
        for start in range(0, count, batch_size):
            yield fetch(data, chosen[start : start + batch_size])
        return
    items = data.begin_epoch(0)
    while count > 0 and (batch := data.next_batch(items, min(batch_size, count))) is not None:
        part = batch.split(count)[0] if batch.num_samples > count and batch.splits else batch
        count -= part.num_samples
        yield part
