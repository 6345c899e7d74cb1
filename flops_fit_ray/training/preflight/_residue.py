"""Removal of what a measured model leaves behind: tables that its code keeps between calls, without content.

A model that keeps a table of positions in an `lru_cache`, in a dict of its module or as an attribute of its class fills
it while it is measured on the meta device. Such tensors have no content, and would break whoever uses the code next.
"""

from __future__ import annotations

import functools
import gc
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

DEPTH = 4  # containers within containers that are looked into
LONGEST = 100_000  # entries of a list or dict that is looked into; a longer one is data
_ABSENT: Any = object()
_FOREIGN = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class Residue:
    """Tensors of the meta device that outlive a measurement, and the names that hold them.

    What is alive before is frozen (`gc.freeze`) until the end: what was made since is then seen without a walk over
    every object of the process, which would cost more than a small model's measurement.
    """

    def __init__(self, *parts: Any) -> None:
        """Note what the user's modules hold: those outside of the installed packages, and those of `parts`."""
        self._frozen = gc.get_freeze_count() == 0  # by us; what the user froze stays frozen
        self._known = [] if self._frozen else _living()[0]  # held: no other gets their ids
        self._held = {id(c): (c, entries) for c, entries in _containers(_user_modules(parts))}
        if self._frozen:
            gc.freeze()

    def remove(self) -> None:
        """Give names back the values they had where they hold a tensor without content now, and empty such caches."""
        gc.collect()  # what is garbage has left nothing behind
        tensors, caches = _living()
        left = {id(t) for t in tensors} - {id(t) for t in self._known}
        if left:
            self._give_back(left, caches)

    def close(self) -> None:
        """Remove what is left, and let go of what was noted."""
        try:
            self.remove()
        finally:
            if self._frozen:
                gc.unfreeze()

    def _give_back(self, left: set[int], caches: list[Any]) -> None:
        # What was frozen is not among the living: caches from before are found by their names, or thawed
        if self._frozen:
            gc.unfreeze()
            caches = _living()[1]
        named = [v for c, _ in self._held.values() for v in _entries(c).values()]
        for cache in {id(c): c for c in (*caches, *named) if type(c) is functools._lru_cache_wrapper}.values():
            if _holds(gc.get_referents(cache), left, DEPTH):
                cache.cache_clear()
        for container, before in self._held.values():
            for name, value in reversed(_entries(container).items()):  # the last of a list first: places stay
                if value is not before.get(name, _ABSENT) and _holds(value, left, DEPTH):
                    _put_back(container, name, before.get(name, _ABSENT))
        gc.collect()
        if self._frozen:
            gc.freeze()


def _living() -> tuple[list[Tensor], list[Any]]:
    """Return the tensors of the meta device and the caches of functions that there are."""
    tensors, caches = [], []
    for found in gc.get_objects():
        kind = type(found)
        if kind is functools._lru_cache_wrapper:
            caches.append(found)
        elif issubclass(kind, Tensor) and found.is_meta:
            tensors.append(found)
    return tensors, caches


def _user_modules(parts: tuple[Any, ...]) -> Iterator[types.ModuleType]:
    roots = {str(getattr(p, "__module__", "")).partition(".")[0] for p in parts}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        root = name.partition(".")[0]
        own = root in roots or name == "__main__" or (isinstance(file, str) and not file.startswith(_FOREIGN))
        if own and root not in ("torch", "flops_fit_ray") and isinstance(module, types.ModuleType):
            yield module


def _containers(modules: Iterator[types.ModuleType]) -> Iterator[tuple[Any, dict[Any, Any]]]:
    """Yield what a name or an entry of the modules may hold a tensor by, and what it holds: each once, down to `DEPTH`.

    A program holds tens of thousands of such values, of few types.
    """
    seen: set[int] = set()
    types_seen: dict[type, bool] = {}
    level: list[Any] = list(modules)
    for _ in range(DEPTH):
        below: list[Any] = []
        for container in level:
            if id(container) not in seen:
                seen.add(id(container))
                entries = _entries(container)
                yield container, entries
                for value in entries.values():
                    kind = type(value)
                    may = types_seen.get(kind)
                    if may is None:
                        may = types_seen[kind] = _is_container(kind)
                    if may and (not issubclass(kind, dict | list) or len(value) <= LONGEST):
                        below.append(value)
        level = below


def _is_container(kind: type) -> bool:
    """Return True if values of a type are looked into.

    By their type: an object of a library may answer any attribute with an error of its own.
    """
    if issubclass(kind, Mapping | list):
        return issubclass(kind, dict | list)
    if issubclass(kind, type | types.FunctionType | types.CellType):
        return True
    return not issubclass(kind, types.ModuleType | Tensor | tuple) and kind.__dictoffset__ != 0


def _entries(container: Any) -> dict[Any, Any]:
    """Return what a container holds, by name or place."""
    if isinstance(container, dict):
        return dict(container)
    if isinstance(container, list):
        return {i: v for i, v in enumerate(container) if len(container) <= LONGEST}
    if isinstance(container, types.CellType):
        try:
            return {"cell_contents": container.cell_contents}
        except ValueError:  # an empty one
            return {}
    try:
        found = dict(vars(container))
    except Exception:  # noqa: BLE001 - one of C without `__dict__` (asyncio.Future), or a library's own error
        return {}
    if isinstance(container, types.FunctionType):
        defaults = (*(container.__defaults__ or ()), *(container.__kwdefaults__ or {}).values())
        found |= {f"\0{i}": v for i, v in enumerate((*defaults, *(container.__closure__ or ())))}
    return found


def _put_back(container: Any, name: Any, value: Any) -> None:
    if isinstance(container, list):
        container[name : name + 1] = [] if value is _ABSENT else [value]
    elif isinstance(container, dict):
        container.pop(name) if value is _ABSENT else container.update({name: value})
    elif value is _ABSENT:
        delattr(container, name)
    else:
        setattr(container, name, value)


def _holds(value: Any, tensors: set[int], depth: int) -> bool:
    """Return True if a value is one of the tensors, or holds one."""
    if isinstance(value, Tensor):
        return id(value) in tensors
    if depth == 0 or isinstance(value, type | types.ModuleType | types.FunctionType | str | bytes | int | float):
        return False
    inside = gc.get_referents(value)
    return len(inside) <= LONGEST and any(_holds(v, tensors, depth - 1) for v in inside)
