"""Tensors of the made-up device, and what each operation on them does."""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

aten = torch.ops.aten
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

# The host has to know a number or a shape: it waits until the device has come so far
READS = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
ON_HOST_TOO = COPIES | INDEXED | {aten.set_.source_Tensor}  # which take tensors of both places


class MadeUpTensor(Tensor):
    """A tensor that says it lies on "cuda:0". `held` has its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment] # as torch documents it

    @staticmethod
    def __new__(cls, held: Tensor) -> MadeUpTensor:
        made: MadeUpTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=CUDA,
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None: ...

    def __repr__(self, **_: Any) -> str:  # type: ignore[override] # torch writes its stubs so
        return f"{self.held!r} on {CUDA}"

    def __reduce_ex__(self, protocol: Any) -> Any:  # in a file there are only numbers
        the_device().wait("save")
        return self.held.__reduce_ex__(protocol)  # type: ignore[no-untyped-call] # torch leaves it untyped

    def __tensor_flatten__(self) -> tuple[list[str], None]:  # so `Module.to` swaps parameters for these
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> MadeUpTensor:
        return MadeUpTensor(inner["held"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch calls it so
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return the_device().run(func, args, kwargs or {})


@dataclass
class Wait:
    """A wait of the host for the device."""

    operation: str
    stack: list[str] = field(repr=False)  # `file:function` of each caller, the innermost last

    def within(self, *places: str) -> bool:
        """Return whether one of these `file:function` is among its callers."""
        return any(place in self.stack for place in places)


class MadeUpDevice:
    """Runs every operation that its tensors meet."""

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        self._capture: tuple[Capture, threading.Thread, str] | None = None  # with its thread and mode
        self.operations = 0
        self.emptied = 0  # times that torch gave back what it keeps

    def empty_cache(self) -> None:
        """Count the times."""
        self.emptied += 1

    @property
    def capture(self) -> Capture | None:
        """The graph that this thread captures, or that the backward pass of such a thread belongs to.

        A GPU captures by stream, and torch's own threads, which Python knows by no more than a dummy, go on in the
        stream of the forward pass. Any other thread has a stream of its own.
        """
        here = threading.current_thread()
        if self._capture is None or (here is not self._capture[1] and type(here) is not threading._DummyThread):
            return None
        return self._capture[0]

    def begin(self, capture: Capture, mode: str) -> None:
        """Capture what this thread does; `mode` is a cudaStreamCaptureMode and says what others may do."""
        self._capture = (capture, threading.current_thread(), mode)

    def end(self) -> None:
        """Capture no longer."""
        self._capture = None

    def wait(self, operation: str) -> None:
        """Record that the host waits; while a graph is captured nothing can be waited for."""
        if self.capture is not None:
            raise _not_permitted(operation)
        callers: list[str] = []
        frame = sys._getframe(1).f_back
        while frame is not None:
            callers.append(f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_code.co_name}")
            frame = frame.f_back
        self.waits.append(Wait(operation, callers[::-1]))

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation on the CPU's copies.

        Raises:
            RuntimeError: its tensors lie in two places, or it would wait while a graph is captured, or another thread
                captures one in a mode that forbids it.
        """
        if self._capture is not None and self.capture is None and self._capture[2] == "global":
            raise _not_permitted(str(func))  # a GPU says so where memory is to be allocated
        tensors = [t for t in _leaves((args, kwargs)) if isinstance(t, Tensor)]
        ours = [t for t in tensors if isinstance(t, MadeUpTensor)]
        device = kwargs.get("device")
        asked = None if device is None else torch.device(device)
        self.operations += 1
        self._check_places(func, tensors, ours)
        to_host = func is aten.copy_.default and not isinstance(args[0], MadeUpTensor)
        to_host |= asked is not None and asked.type == "cpu"
        if to_host or func in READS or (func in INDEXED and _masks(args[1])):
            self.wait(str(func))
        if asked is not None and asked.type == "cuda":
            kwargs = {**kwargs, "device": CPU}
        if to_host:
            return _on_cpu(func)(*_held(args), **_held(kwargs))
        if self.capture is not None:
            return self.capture.record(func, args, kwargs)
        return compute(func, args, kwargs)

    def _check_places(self, func: Any, tensors: list[Tensor], ours: list[MadeUpTensor]) -> None:
        others = [t for t in tensors if not isinstance(t, MadeUpTensor) and t.ndim]
        if ours and others and func not in ON_HOST_TOO:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
                f"{others[0].device}! (when checking {func})"
            )


def _not_permitted(operation: str) -> RuntimeError:
    return RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {operation}")


def compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what an operation gives, as tensors of the device."""
    found = _on_cpu(func)(*_held(args), **_held(kwargs))
    made = _mapped(found, Tensor, MadeUpTensor)
    return return_and_correct_aliasing(func, args, kwargs, made)  # type: ignore[no-untyped-call] # torch leaves it so


def _held(value: Any) -> Any:
    return _mapped(value, MadeUpTensor, operator.attrgetter("held"))


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The same arguments or returns with every tensor of a kind changed; lists and tuples hold tensors only."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)([_mapped(v, kind, change) for v in value])
    return {k: _mapped(v, kind, change) for k, v in value.items()} if isinstance(value, dict) else value


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for v in value for leaf in _leaves(v)]
    return [leaf for v in value.values() for leaf in _leaves(v)] if isinstance(value, dict) else [value]


def _masks(indices: Any) -> bool:
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)


def _on_cpu(func: Any) -> Callable[..., Any]:
    found: Callable[..., Any] = _INSTEAD.get(func, func)
    return found


def _lstm_cell(gates: Tensor, hidden_gates: Tensor, cx: Tensor, bias: Any = None, hidden_bias: Any = None) -> Any:
    """CUDA's fused cell (ATen/native/cuda/RNN.cu): (h, c) and the gates that its gradient needs."""
    whole = gates + hidden_gates
    whole = whole if bias is None else whole + bias + hidden_bias
    i, f, g, o = whole.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat([i, f, g, o], 1)


def _lstm_cell_gradient(grad_hy: Any, grad_cy: Any, cx: Tensor, cy: Tensor, gates: Tensor, has_bias: bool) -> Any:
    i, f, g, o = gates.chunk(4, 1)
    tanh = cy.tanh()
    of_h = torch.zeros_like(cy) if grad_hy is None else grad_hy
    of_c = of_h * o * (1 - tanh**2) + (0 if grad_cy is None else grad_cy)
    parts = [of_c * g * i * (1 - i), of_c * cx * f * (1 - f), of_c * i * (1 - g**2), of_h * tanh * o * (1 - o)]
    of_gates = torch.cat(parts, 1)
    return of_gates, of_c * f, of_gates.sum(0) if has_bias else None


# Operations that only a GPU has, or that choose among kernels by the device
_INSTEAD: dict[Any, Callable[..., Any]] = {
    aten._fused_sdp_choice.default: lambda *args, **kwargs: 0,  # attention as its formula says
    aten._thnn_fused_lstm_cell.default: _lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: _lstm_cell_gradient,
}


class Capture:
    """What a CUDA graph holds: operations that were asked for while it was captured, to be run at every replay.

    A GPU does not run what it captures. Here shapes follow from numbers, so it is run, and what it changed in tensors
    that were there before is put back at the end.
    """

    def __init__(self) -> None:
        self._recorded: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # by storage: a tensor over it, and its numbers
        self._own: set[int] = set()
        self._random = torch.get_rng_state()

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation once, and keep it."""
        for tensor in _leaves(list(_written(func, args, kwargs))):
            if isinstance(tensor, MadeUpTensor):
                self._keep(tensor.held)
        given = {_storage(t.held) for t in _leaves((args, kwargs)) if isinstance(t, MadeUpTensor)}
        found = compute(func, args, kwargs)
        outs = [t.held for t in _leaves(found) if isinstance(t, MadeUpTensor)]
        self._own |= {_storage(held) for held in outs} - given
        self._recorded.append((func, _held(args), _held(kwargs), outs))
        return found

    def _keep(self, held: Tensor) -> None:
        place = _storage(held)
        if place not in self._own and place not in self._before:
            whole = torch.empty(0, dtype=held.dtype).set_(held.untyped_storage())
            self._before[place] = (whole, whole.clone())

    def end(self) -> None:
        """Put back what was there before the capture."""
        for whole, numbers in self._before.values():
            whole.copy_(numbers)
        torch.set_rng_state(self._random)

    def replay(self) -> None:
        """Run the operations into the tensors that they gave when they were captured."""
        for func, args, kwargs, outs in self._recorded:
            found = _leaves(_on_cpu(func)(*args, **kwargs))
            for new, out in zip([t for t in found if isinstance(t, Tensor)], outs, strict=True):
                if new.data_ptr() != out.data_ptr():
                    out.copy_(new)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """What an operation writes to, by its schema."""
    unsaid = ("running_mean", "running_var") if func is aten.native_batch_norm.default else ()
    for position, argument in enumerate(func._schema.arguments):
        if argument.name in unsaid or (argument.alias_info is not None and argument.alias_info.is_write):
            yield args[position] if position < len(args) else kwargs.get(argument.name)


def _made(operation: Any) -> Callable[..., MadeUpTensor]:
    """The operation that makes a tensor, for "cuda"."""

    def make(*args: Any, **kwargs: Any) -> MadeUpTensor:
        the_device().operations += 1
        return MadeUpTensor(operation(*args, **{**kwargs, "device": CPU, "pin_memory": False}))

    return make


# Everything that is asked for on "cuda" is made by these, and then filled
_library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call] # torch leaves it untyped
_library.impl("empty.memory_format", _made(aten.empty.memory_format), "CUDA")  # type: ignore[no-untyped-call] # torch leaves it untyped
_library.impl("empty_strided", _made(aten.empty_strided.default), "CUDA")  # type: ignore[no-untyped-call] # torch leaves it untyped

_device = [MadeUpDevice()]


def the_device() -> MadeUpDevice:
    """Return the device of this process."""
    return _device[-1]


@contextmanager
def new_device() -> Iterator[MadeUpDevice]:
    """Have another device for the block, of which nothing was asked before."""
    _device.append(MadeUpDevice())
    try:
        yield _device[-1]
    finally:
        _device.pop()
