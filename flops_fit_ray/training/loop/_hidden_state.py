"""State of the user's code that no state_dict holds: counters and tensors of modules, and globals.

A process serves many experiments, and trunks and checkpoints hand a model from one to another. Such state would make a
result depend on what ran before.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.rng import RandomState
from flops_fit_ray.training.user.parts import UserParts

MAX_ITEMS = 1000  # of a list or a mapping that is looked at
CLOSE = 1e-4  # relative: two runs of one model on a GPU
INSTALLED = ("site-packages", "dist-packages")

# Globals of modules of the user's by their id, and their plain ones as they were when they were first used
_initial: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}


def reset_globals(user: UserParts) -> None:
    """Give the plain globals of the user's modules the values that they had before the first experiment."""
    for names in _modules_of(user):
        if id(names) not in _initial:
            _initial[id(names)] = names, _plain(names)
        _restore(*_initial[id(names)])


def lost_state(model: nn.Module, user: UserParts, size: Mapping[str, Any], batch: Batch, device: torch.device) -> str:
    """Name the state by which a model differs from a new one with its state_dict; empty if it is the same.

    Both compute the loss of one batch in train mode with the same random numbers; the model is left as it was. Where
    that fails nothing is found.
    """
    outside = RandomState.capture()
    try:
        with torch.no_grad(), _kept(model), _kept_globals(user):
            with _kept_globals(user):
                reset_globals(user)
                fresh = user.model(**size).to(device)
            fresh.train()
            fresh.load_state_dict(model.state_dict())
            names = _differences(model, fresh)
            live = _loss(user, model, batch)
            reset_globals(user)
            loaded = _loss(user, fresh, batch)
    except Exception:  # noqa: BLE001 - the user's code may raise anything where a loss is computed twice
        return ""
    finally:
        RandomState.restore(outside)
    same = live == loaded or (device.type == "cuda" and math.isclose(live, loaded, rel_tol=CLOSE))
    return "" if same or math.isnan(live) else ", ".join(names[:3]) or "globals of its module"


def _loss(user: UserParts, model: nn.Module, batch: Batch) -> float:
    RandomState.seed(0)
    return float(user.objective(model, batch))


def _differences(model: nn.Module, fresh: nn.Module) -> list[str]:
    """Return the attributes and buffers outside of the state_dict that differ."""
    saved = model.state_dict().keys()
    others = dict(fresh.named_modules())
    names = []
    for path, module in model.named_modules():
        mine, its = ({**_own(m), **m._buffers} for m in (module, others.get(path, module)))
        for name, value in mine.items():
            full = f"{path}.{name}" if path else name
            if full not in saved and name != "training" and not _equal(value, its.get(name)):
                names.append(full)
    return names


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return not _is_plain(one) or bool(one == other)


def _own(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that are not torch's."""
    return {name: value for name, value in vars(module).items() if not name.startswith(("_parameters", "_modules"))
            and name not in _TORCHS}  # fmt: skip


_TORCHS = frozenset(vars(nn.Module()))


@contextlib.contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Restore buffers and attributes of all modules after the block."""
    attributes = [(m, {name: _copied(value) for name, value in _own(m).items()}) for m in model.modules()]
    buffers = [(m, dict(m._buffers), {n: b.clone() for n, b in m._buffers.items() if b is not None})
               for m in model.modules()]  # fmt: skip
    try:
        yield
    finally:
        for module, values in attributes:
            for name in set(_own(module)) - set(values):
                del module.__dict__[name]
            for name, put_back in values.items():
                module.__dict__[name] = put_back()
        for module, refs, contents in buffers:
            for name, content in contents.items():
                tensor = refs[name]
                assert tensor is not None
                tensor.copy_(content)
            module._buffers.clear()
            module._buffers.update(refs)


def _copied(value: Any) -> Callable[[], Any]:
    """Return a function that gives the value back as it is now."""
    if isinstance(value, Tensor) and not value.requires_grad:
        content = value.clone()
        return lambda: value.copy_(content)
    if isinstance(value, list):
        items = list(value)
        return lambda: _refill_list(value, items)
    if isinstance(value, dict):
        pairs = dict(value)
        return lambda: _refill_dict(value, pairs)
    return lambda: value


def _refill_list(value: list[Any], items: list[Any]) -> list[Any]:
    value[:] = items
    return value


def _refill_dict(value: dict[Any, Any], pairs: dict[Any, Any]) -> dict[Any, Any]:
    value.clear()
    value.update(pairs)
    return value


# Globals


@contextlib.contextmanager
def _kept_globals(user: UserParts) -> Iterator[None]:
    before = [(names, _plain(names)) for names in _modules_of(user)]
    try:
        yield
    finally:
        for names, values in before:
            _restore(names, values)


def _modules_of(user: UserParts) -> list[dict[str, Any]]:
    """Return the globals of the modules that define the user's model, loss and hooks; installed packages are left."""
    found: dict[int, dict[str, Any]] = {}
    model = getattr(user.model, "func", user.model)
    for part in (model, user.loss, user.optimizer, user.schedule, *user.metrics.values()):
        names = _globals_of(part)
        if names is not None and not _is_installed(names):
            found[id(names)] = names
    return list(found.values())


def _globals_of(part: Any) -> dict[str, Any] | None:
    part = getattr(part, "func", part)
    for function in (
        part,
        getattr(part, "forward", None),
        getattr(part, "__init__", None),
        getattr(type(part), "__call__", None),  # noqa: B004 - its globals are read
    ):
        names = getattr(function, "__globals__", None)
        if isinstance(names, dict):
            return names
    module = sys.modules.get(getattr(part, "__module__", None) or "")
    return None if module is None else vars(module)


def _is_installed(names: Mapping[str, Any]) -> bool:
    file, name = str(names.get("__file__") or ""), str(names.get("__name__") or "")
    return any(place in file for place in INSTALLED) or name.partition(".")[0] in ("flops_fit_ray", "torch")


def _plain(names: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: copy.deepcopy(value)
        for name, value in list(names.items())
        if not name.startswith("__") and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return len(value) <= MAX_ITEMS and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return len(value) <= MAX_ITEMS and all(map(_is_plain, value))
    return value is None or type(value) in (int, float, bool, str)


def _restore(names: dict[str, Any], before: Mapping[str, Any]) -> None:
    for name, value in before.items():
        now = names.get(name)
        if isinstance(now, dict) and isinstance(value, dict):
            if now != value:
                _refill_dict(now, copy.deepcopy(value))
        elif isinstance(now, list) and isinstance(value, list):
            if now != value:
                _refill_list(now, copy.deepcopy(value))
        elif now is not value and now != value:
            names[name] = value
