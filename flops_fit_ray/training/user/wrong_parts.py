"""Wrong models and losses named as what they are: an instance for a class, a class for an instance, a misspelt name."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from flops_fit_ray.formatting import did_you_mean
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.training.user.losses import BUILT_IN_LOSSES

LOSS_NAMES = {  # as others spell them, without "loss", case and separators
    "cross_entropy": "ce xent crossentropy softmaxcrossentropy categoricalcrossentropy sparsecategoricalcrossentropy",
    "mse": "mse meansquarederror meansquared l2",
}
SIGNATURES = "(outputs, targets) or (model, batch)"


# Models


def model_kind_faults(model: Any) -> list[str]:
    """Return what is wrong with a model before any is built: one that is built already."""
    if not isinstance(model, nn.Module):
        return []
    name = type(model).__name__
    return [f"model.target: is a {name} that is built already; give the class, {name}, of which each size is built"]


def no_module_fault(model: Any, made: Any, size: str) -> str:
    """Return the fault of a class or factory that made no nn.Module."""
    while isinstance(model, functools.partial):
        model = model.func
    if isinstance(model, type):
        return f"model.target: the class {model.__name__} is no torch.nn.Module; derive it from nn.Module"
    return f"model.target: {size} made a {type(made).__name__}, not an nn.Module"


def arguments_of_spec(spec: SweepSpec) -> list[tuple[str, str]]:
    """Return the arguments that a spec gives the model's constructor, with the keys that name them."""
    given = [("model.kwargs", name) for name in spec.model.kwargs]
    if spec.model.size_param is not None:
        given.append(("model.size_param", spec.model.size_param))
    sizes = [*(spec.model.sizes or ()), *(size for budget in spec.budgets for size in budget.sizes or ())]
    return [*given, *(("model.sizes", name) for size in sizes if isinstance(size, Mapping) for name in size)]


def argument_faults(function: Any, given: Iterable[tuple[str, str]], home: str) -> list[str]:
    """Return the arguments that a class or function does not take, with those that it takes, and those that it lacks.

    Nothing is told of a function that takes any keyword.

    Args:
        given: names of arguments, each after the key of the spec that names it.
        home: key under which an argument that is missing can be given.
    """
    while isinstance(function, functools.partial):
        function = function.func
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have none
        return []
    if any(p.kind is p.VAR_KEYWORD for p in found):
        return []
    taken = [p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names, called = [p.name for p in taken], getattr(function, "__name__", type(function).__name__)
    takes = f"takes {', '.join(names) or 'none'}"
    given = list(dict.fromkeys(given))
    wrong = [(key, name) for key, name in given if name not in names]
    if wrong:
        hints = (did_you_mean(name, names) or did_you_mean(name.lower(), names) for _, name in wrong)
        return [
            f"{key}: {called} takes no argument {name!r}; {f'{hint} It' if hint else 'it'} {takes}"
            for (key, name), hint in zip(wrong, hints, strict=True)
        ]
    lacks = [p.name for p in taken if p.default is p.empty and p.name not in {name for _, name in given}]
    return [f"{home}: {called} needs {', '.join(map(repr, lacks))} too; it {takes}"] if lacks else []


# Losses


def unknown_loss(name: str) -> str:
    """Return the fault of a name that no built-in loss has, with what may be meant."""
    *modules, last = name.split(".")
    plain = re.sub(r"[^a-z0-9]", "", last.lower())
    plain = plain.removesuffix("loss") or plain
    fault = f"loss: {name!r} is none of {', '.join(BUILT_IN_LOSSES)}"
    known = next((loss for loss, names in LOSS_NAMES.items() if plain in names.split()), "")
    if not modules or modules[-1] in ("nn", "F", "functional", "torch"):
        if known or (hint := did_you_mean(name, BUILT_IN_LOSSES)):
            return f"{fault}; {f'did you mean {known!r}?' if known else hint}"
        if last.lower().endswith("loss") or hasattr(nn.functional, last):
            home = "torch.nn" if hasattr(nn, last) else "torch.nn.functional" if hasattr(nn.functional, last) else ""
            if home:
                return f"{fault}; write {home}:{last}"
    elif all(part.isidentifier() for part in (*modules, last)):
        return f"{fault}; for a loss of your own write {'.'.join(modules)}:{last}"
    return f"{fault}; write your own as module:attribute"


def loss_faults(loss: Any) -> list[str]:
    """Return what is wrong with a loss before it is called."""
    return list(_loss_faults(loss))


def _loss_faults(loss: Any) -> Iterator[str]:
    inner = loss
    while isinstance(inner, functools.partial):
        inner = inner.func
    if isinstance(inner, type):
        yield f"loss: {inner.__name__} is a class; give an object of it, {inner.__name__}(...)"
    elif isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        yield "loss: has trainable parameters; move them into the model, where N counts them"
    elif not _takes_two(loss):
        name = getattr(loss, "__name__", type(loss).__name__)
        yield f"loss: {name} cannot be called as {SIGNATURES}; if it makes a loss, give what {name}() returns"


def _takes_two(loss: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(loss, follow_wrapped=False)
    except (TypeError, ValueError):  # some builtins have none
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


def loss_object(name: str, kind: type, faults: list[str]) -> Any:
    """Return an object of a loss that is named by its class; None after a fault, which is appended to `faults`."""
    if not any("__call__" in vars(base) for base in kind.__mro__):
        faults.append(f"loss: {name!r} is a class whose objects cannot be called; give them __call__(outputs, targets)")
        return None
    if lacks := argument_faults(kind, (), "loss"):
        faults.append(f"{lacks[0]}; make an object of it in its module, and name that")
        return None
    return kind()
