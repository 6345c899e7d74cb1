"""Torch's counter of FLOPs, without what it asks anew at each of ten thousand operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode


class FlopCounter(FlopCounterMode):
    """The same counts. Operations that nothing but a kernel can run are run at once."""

    def __enter__(self) -> FlopCounter:
        self.flop_counts.clear()
        self.mod_tracker.__enter__()  # type: ignore[no-untyped-call]
        self.mode = CountingMode(self)
        self.mode.__enter__()  # type: ignore[no-untyped-call]
        return self


class CountingMode(_FlopCounterMode):
    """The mode of `FlopCounter`."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__(counter)  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._plain: dict[Any, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        plain = self._plain.get(func)
        if plain is None:
            plain = self._plain[func] = _is_plain(func)
        if not plain:
            return super().__torch_dispatch__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        out = func(*args, **kwargs)
        return self.counter._count_flops(func._overloadpacket, out, args, kwargs)  # type: ignore[no-untyped-call]


def _is_plain(func: Any) -> bool:
    """Return True for an operation that returns tensors, and is not made of others."""
    if not isinstance(func, OpOverload) or func._can_decompose():
        return False
    returns = func._schema.returns
    return bool(returns) and all(isinstance(r.type, torch.TensorType) for r in returns)
