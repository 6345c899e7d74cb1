"""Operations on the meta device that are not run again: what they return, and which ones are run each time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from flops_fit_ray.training.preflight._known_shapes import KnownShapes

aten: Any = torch.ops.aten
META = torch.device("meta")


class Counted:
    """An operation that counts how often it is run."""

    def __init__(self, func: Any) -> None:
        self._func, self._schema, self.tags, self.times = func, func._schema, func.tags, 0

    def __hash__(self) -> int:
        return hash(self._func)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counted) and other._func is self._func

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.times += 1
        return self._func(*args, **kwargs)


class Compared(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Compares what is told of earlier operations with what each gives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self.shapes, self.run, self.known = KnownShapes(), 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        counted: Any = Counted(func)
        out = self.shapes.run(counted, args, kwargs or {})
        if counted.times:
            self.run += 1
            return out
        self.known += 1
        again = func(*args, **(kwargs or {}))
        assert type(again) is type(out)
        pairs = zip(again, out, strict=True) if isinstance(out, tuple) else [(again, out)]
        assert all(described(a) == described(b) for a, b in pairs)
        return out


def described(tensor: Tensor | None) -> Any:
    return tensor if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, type(tensor))


def recurrent() -> tuple[nn.Module, Tensor]:
    return nn.LSTM(8, 16, batch_first=True), torch.randn(4, 12, 8, device=META)


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), torch.randn(4, 12, 16, device=META)


def convolution() -> tuple[nn.Module, Tensor]:
    layers = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.GELU()) for _ in range(3)]
    return nn.Sequential(*layers), torch.randn(2, 3, 8, 8, device=META).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("made", [recurrent, transformer, convolution])
def test_results_have_the_shapes_that_the_operations_give(made: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    with META:
        module, x = made()
    with Compared() as compared:
        out = module(x)
        (out[0] if isinstance(out, tuple) else out).float().pow(2).sum().backward()
    assert compared.known > compared.run / 4, (compared.known, compared.run)


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.add_.Tensor, lambda x: (x, x)),  # changes its argument
        (aten.view.default, lambda x: (x, [6])),  # is its argument
        (aten._unsafe_view.default, lambda x: (x, [6])),  # and this one does not say so
        (aten.bernoulli.p, lambda x: (x, 0.5)),  # takes from the generator
        (aten.mul.Tensor, lambda x: (x, torch.tensor(2.0))),  # a number that lies on the CPU
        (aten.add.Tensor, lambda x: (torch.ones(6), torch.ones(6))),  # not on the meta device at all
    ],
)
def test_what_shapes_do_not_tell_is_run_each_time(func: Any, args: Callable[[Tensor], Any]) -> None:
    shapes, counted = KnownShapes(), Counted(func)
    given: Any = args(torch.empty(2, 3, device=META))
    for _ in range(3):
        shapes.run(counted, given, {})  # type: ignore[arg-type] # it is called alike
    assert counted.times == 3


def test_arguments_of_another_kind_are_another_operation() -> None:
    shapes, x = KnownShapes(), torch.empty(2, 3, device=META)
    assert shapes.run(aten.sum.dim_IntList, (x, [0]), {}).shape == (3,)
    assert shapes.run(aten.sum.dim_IntList, (x, [1]), {}).shape == (2,)
    assert shapes.run(aten.sum.dim_IntList, (x, [1], True), {}).shape == (2, 1)
    assert shapes.run(aten.sum.dim_IntList, (x, [1]), {"dtype": torch.float64}).dtype == torch.float64
    assert shapes.run(aten.add.Tensor, (x.t(), x.t()), {}).stride() == (1, 3)
    assert shapes.run(aten.add.Tensor, (x.T.contiguous(), x.T.contiguous()), {}).stride() == (2, 1)
