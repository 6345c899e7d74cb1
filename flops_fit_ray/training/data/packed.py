"""Datasets of tensors packed as numpy arrays, to be shared by all processes of a node.

Ray's object store keeps an array once per node and maps it into every process without a copy; a tensor would be copied
into each. An unpacked dataset is a read-only view of that memory; batches are copies of its rows.
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
    """A tensor as an array; `dtype` is torch's name of a type that numpy lacks."""

    numbers: NDArray[Any]
    dtype: str = ""


@dataclass(frozen=True)
class Packed:
    """A dataset: the name of its class, its arrays, and the indices of a subset."""

    kind: str
    arrays: Mapping[str, _Array]
    indices: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class PackedData:
    """Packed data of a sweep. Training and held-out subsets of the same tensors share their arrays."""

    train: Packed
    held_out: Packed | None
    source: str

    @property
    def nbytes(self) -> int:
        """Total size of the arrays, each counted once."""
        both = [packed for packed in (self.train, self.held_out) if packed is not None]
        arrays = {id(a.numbers): a.numbers.nbytes for packed in both for a in packed.arrays.values()}
        return sum(arrays.values()) + sum(p.indices.nbytes for p in both if p.indices is not None)


def pack_data(prepared: PreparedData) -> PackedData | None:
    """Pack the data of a sweep; None unless all of them are datasets of CPU tensors."""
    known: dict[int, _Array] = {}
    train, held_out = _pack(prepared.train, known), _pack(prepared.held_out, known)
    if train is None or (held_out is None and prepared.held_out is not None):
        return None
    return PackedData(train, held_out, prepared.source)


def unpack_data(packed: PackedData) -> PreparedData:
    """Return the datasets as views of the packed arrays."""
    held_out = None if packed.held_out is None else _unpack(packed.held_out)
    return PreparedData(train=_unpack(packed.train), held_out=held_out, source=packed.source)


def _pack(data: Data | None, known: dict[int, _Array]) -> Packed | None:
    """Pack a dataset; `known` holds the arrays already packed, by the id of their tensor."""
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
    """Return the tensors of a known dataset class. A subclass may read them differently, so it has none."""
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
    with warnings.catch_warnings():  # torch warns of read-only arrays
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array.numbers)
    return tensor.view(getattr(torch, array.dtype)) if array.dtype else tensor
