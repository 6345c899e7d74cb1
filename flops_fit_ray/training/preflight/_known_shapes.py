"""Results of operations on the meta device, told by the shapes of their arguments.

Meta kernels are Python, and take some hundred microseconds each. A recurrent layer calls the same ones once per step of
its sequence, and a stack of blocks once per block: the second time the result is made of what the first one was.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import Parameter

_PLAIN = (int, float, bool, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
_TAGS = (torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class KnownShapes:
    """Runs operations, and those of plain tensors on the meta device once per kind of arguments."""

    def __init__(self) -> None:
        self._pure: dict[OpOverload, bool] = {}
        self._known: dict[Hashable, _Result | None] = {}  # None: it is to be run each time

    def run(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what the operation returns: known results are new tensors of the same shapes, strides and dtypes."""
        if func not in self._pure:
            self._pure[func] = _is_pure(func)
        if not self._pure[func]:
            return func(*args, **kwargs)
        try:
            key = (func, _kind(args), _kind(tuple(kwargs.items())))
        except _UnknownKind:
            return func(*args, **kwargs)
        known = self._known.get(key)
        if known is not None:
            return known.again()
        out = func(*args, **kwargs)
        if key not in self._known:
            self._known[key] = _Result.of(out, args)
        return out


@dataclass(frozen=True)
class _Result:
    tensors: list[tuple[Any, ...] | None]  # size, stride and dtype of each, or None in its place
    is_tuple: bool

    @classmethod
    def of(cls, out: Any, args: tuple[Any, ...]) -> _Result | None:
        """Describe a result; None unless it is of new plain tensors on the meta device alone."""
        given = {storage_of(t) for t in args}
        tensors: list[tuple[Any, ...] | None] = []
        for one in out if isinstance(out, tuple) else (out,):
            if one is None:
                tensors.append(None)
            elif type(one) is Tensor and _is_plain(one) and not one.storage_offset() and storage_of(one) not in given:
                tensors.append((one.shape, one.stride(), one.dtype))
            else:
                return None
        return cls(tensors, isinstance(out, tuple))

    def again(self) -> Any:
        """Make the result once more."""
        made = [t and torch.empty_strided(t[0], t[1], dtype=t[2], device="meta") for t in self.tensors]
        return tuple(made) if self.is_tuple else made[0]


class _UnknownKind(Exception):  # noqa: N818 - no fault
    """An argument of which shape and dtype do not say all."""


def _is_pure(func: OpOverload) -> bool:
    """Return True if all that an operation does is in its results, and these follow from its arguments' shapes."""
    schema = func._schema
    aliased = any(a.alias_info is not None for a in (*schema.arguments, *schema.returns))
    return not aliased and not any(tag in func.tags for tag in _TAGS)


def _kind(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, Parameter) or not _is_plain(value):
            raise _UnknownKind
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return (type(value), *map(_kind, value))
    if isinstance(value, _PLAIN):
        return (type(value), value)
    raise _UnknownKind


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_meta and tensor.layout is torch.strided and not tensor.is_conj() and not tensor.is_neg()


def storage_of(value: Any) -> int | None:
    """Return an id of a tensor's memory, the same for its views; None where it has none."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return None
    return int(value.untyped_storage()._cdata)
