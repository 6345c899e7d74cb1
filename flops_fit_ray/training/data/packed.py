"""Data made of tensors as plain arrays, which many processes can read from one place in memory.

Ray keeps an array once per node and gives it to any process there without a copy; of a tensor every process makes its
own. What comes back is the same dataset over memory that nobody may write to; batches are copies of its rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from flops_fit_ray.training.data.dataset import Data, PreparedData, SingleTensorDataset, TensorDictDataset


@dataclass(frozen=True)
class _Array:
    """A tensor; `dtype` is torch's name where numpy has no such numbers."""

    numbers: NDArray[Any]
    dtype: str = ""


@dataclass(frozen=True)
class Packed:
    """A dataset: its kind, the arrays in it, and what it is a part of."""

    kind: str
    arrays: Mapping[str, _Array]
    indices: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class PackedData:
    """The data of a sweep; a training and a held-out part of the same tensors share them here too."""

    train: Packed
    held_out: Packed | None
    source: str

    @property
    def nbytes(self) -> int:
        """Of all arrays, each counted once."""
        both = [packed for packed in (self.train, self.held_out) if packed is not None]
        arrays = {id(a.numbers): a.numbers.nbytes for packed in both for a in packed.arrays.values()}
        return sum(arrays.values()) + sum(p.indices.nbytes for p in both if p.indices is not None)


def pack_data(prepared: PreparedData) -> PackedData | None:
    """The data of a sweep as arrays; None where not all of them are plainly made of tensors."""
    known: dict[int, _Array] = {}
    train, held_out = _pack(prepared.train, known), _pack(prepared.held_out, known)
    if train is None or (held_out is None and prepared.held_out is not None):
        return None
    return PackedData(train, held_out, prepared.source)


def unpack_data(packed: PackedData) -> PreparedData:
    """The data again, over the same memory."""
    held_out = None if packed.held_out is None else _unpack(packed.held_out)
    return PreparedData(train=_unpack(packed.train), held_out=held_out, source=packed.source)


def _pack(data: Data | None, known: dict[int, _Array]) -> Packed | None:
    """A dataset as arrays; `known` are those that are packed already, by their tensors."""
    if type(data) is Subset:
        inner = _pack(data.dataset, known)
        if inner is None or inner.indices is not None:
            return None
        return Packed(inner.kind, inner.arrays, np.asarray(data.indices, dtype=np.int64))
    tensors = _tensors(data)
    if not tensors or any(t.is_cuda or t.requires_grad or not t.is_contiguous() for t in tensors.values()):
        return None
    for tensor in tensors.values():
        if id(tensor) not in known:
            known[id(tensor)] = _array(tensor)
    return Packed(type(data).__name__, {name: known[id(tensor)] for name, tensor in tensors.items()})


def _unpack(packed: Packed) -> Data:
    tensors = {name: _tensor(array) for name, array in packed.arrays.items()}
    data: Any
    if packed.kind == TensorDataset.__name__:
        data = TensorDataset(*tensors.values())
    else:
        data = (
            TensorDictDataset(tensors)
            if packed.kind == TensorDictDataset.__name__
            else SingleTensorDataset(tensors[""])
        )
    return data if packed.indices is None else Subset(data, packed.indices)  # type: ignore[arg-type] # as split_held_out


def _tensors(data: Any) -> dict[str, Tensor]:
    """Of the kinds that are known, and of no class derived from them."""
    if type(data) is TensorDataset:
        return {str(number): tensor for number, tensor in enumerate(data.tensors)}
    if type(data) is TensorDictDataset:
        return data.columns
    return {"": data.rows} if type(data) is SingleTensorDataset else {}


def _array(tensor: Tensor) -> _Array:
    try:
        return _Array(tensor.numpy())
    except TypeError:  # bfloat16, float8
        return _Array(tensor.view(torch.uint8).numpy(), str(tensor.dtype).removeprefix("torch."))


def _tensor(array: _Array) -> Tensor:
    with warnings.catch_warnings():  # torch would rather have memory that can be written to
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array.numbers)
    return tensor.view(getattr(torch, array.dtype)) if array.dtype else tensor
