"""torch.compile's modules are imported when something is compiled, not by the first optimizer of a process.

Torch tells its compiler to look away from some of its functions, and imports it for that at their first call: a second
of CPU, with sympy and all, in every process that measures or trains. While nothing has imported the compiler, nothing
can be traced, and there is nobody who would have to look away.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType
from typing import Any

import torch

COMPILER = "torch._dynamo"
LOOKED_AWAY = "__dynamo_disable"  # where torch._compile keeps what it calls in place of such a function
# Modules of functions that run where we measure and train; one that is not imported is not needed
HOLDERS = ("torch.utils.checkpoint", "torch._refs", "torch._refs.nn.functional", "torch._refs.special")


@functools.cache
def import_compiler_late(*modes: type) -> None:
    """Let torch run without its compiler until that is imported, from this call on.

    Another version of torch, which keeps this elsewhere, imports its compiler as before.

    Args:
        modes: dispatch modes that are in use, whose operations the compiler does not see either.
    """
    if COMPILER in sys.modules:
        return
    holders = [torch.optim.Optimizer, *modes, *(sys.modules[name] for name in HOLDERS if name in sys.modules)]
    for shown, function in (pair for holder in holders for pair in _not_compiled(holder)):
        if not hasattr(function, LOOKED_AWAY):
            setattr(function, LOOKED_AWAY, _until_imported(shown, function))
    for kind in vars(torch.optim).values():
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            _step_without_compiler(kind)


def _not_compiled(holder: object) -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
    """Yield the functions of a module or class that the compiler looks away from, as they are called and as written.

    They are looked for where decorators keep what they decorate; `__wrapped__` may be several of them further inside.
    """
    zero_grad: Any = torch.optim.Optimizer.zero_grad
    code = zero_grad.__code__  # one for all of them
    left = [value for value in vars(holder).values() if isinstance(value, FunctionType)]
    seen: set[FunctionType] = set()
    while left:
        shown = left.pop()
        if shown in seen:
            continue
        seen.add(shown)
        if (function := _inside(shown, code, "fn")) is not None:
            yield shown, function
        left += [cell.cell_contents for cell in shown.__closure__ or () if _holds_function(cell)]


def _holds_function(cell: CellType) -> bool:
    try:
        return isinstance(cell.cell_contents, FunctionType)
    except ValueError:  # an empty one
        return False


def _inside(shown: Any, code: CodeType, name: str) -> Callable[..., Any] | None:
    """Return what a function of this code calls by that name; None for one of other code."""
    if getattr(shown, "__code__", None) is not code or name not in code.co_freevars:
        return None
    found: Callable[..., Any] = shown.__closure__[code.co_freevars.index(name)].cell_contents
    return found


def _until_imported(shown: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if COMPILER not in sys.modules:
            return function(*args, **kwargs)
        if getattr(function, LOOKED_AWAY, None) is call:
            delattr(function, LOOKED_AWAY)
        return shown(*args, **kwargs)  # which asks the compiler, once

    return call


def _step_without_compiler(kind: type[torch.optim.Optimizer]) -> None:
    """Let a step set whether gradients are recorded, as torch's own does, which breaks the compiler's graph for it."""
    guarded = getattr(sys.modules[torch.optim.Optimizer.__module__], "_use_grad_for_differentiable", None)
    shown = vars(kind).get("step")
    function = None if guarded is None else _inside(shown, guarded(len).__code__, "func")
    if shown is None or function is None:
        return

    @functools.wraps(shown)
    def step(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        if COMPILER in sys.modules:
            return shown(self, *args, **kwargs)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return function(self, *args, **kwargs)

    kind.step = step  # type: ignore[method-assign]
