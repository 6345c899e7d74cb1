"""Hashes of functions and classes that travel by value: of a script, a notebook, or another function.

They have no file of their own that a worker reads, and a script's file holds its budgets too. So it is their byte code
that counts, with the constants, functions and classes of their module that it names.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

MAX_ITEMS = 1000  # of a constant; a longer one is data
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))


def travels_by_value(value: Any) -> bool:
    """Return True for a function or class that a worker cannot import by its name."""
    if not isinstance(value, FunctionType | type):
        return False
    if value.__module__ == "__main__" or "<locals>" in value.__qualname__:
        return True
    found: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is not value


def hash_by_value(value: Any, others: Callable[[Any], None]) -> str:
    """Return the hash of a function or class that travels by value, or of plain values, and of what goes with it.

    Args:
        others: told of each object that it names and that lies in a module.
    """
    hashed = hashlib.sha256()
    seen: set[int] = set()
    left = [value]
    while left:
        here = left.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        for part in _parts(here):
            if isinstance(part, str):
                hashed.update(part.encode(errors="surrogatepass") + b"\0")
            elif travels_by_value(part):
                hashed.update(part.__qualname__.encode() + b"\0")
                left.append(part)
            else:
                others(part)
    return hashed.hexdigest()[:16]


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, type):
        return _class_parts(value)
    return _function_parts(value) if isinstance(value, FunctionType) else _value_parts(value)


def _function_parts(function: FunctionType) -> Iterator[Any]:
    code = function.__code__
    yield from _code_parts(code)
    cells = [c.cell_contents for c in function.__closure__ or () if _is_filled(c)]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    named = {name: function.__globals__[name] for name in sorted(_names(code)) if name in function.__globals__}
    for value in (*cells, *defaults, *named.values()):
        yield from _value_parts(value)


def _class_parts(kind: type) -> Iterator[Any]:
    yield from kind.__bases__
    for name, value in sorted(vars(kind).items()):
        function = getattr(value, "__func__", value)
        function = getattr(function, "fget", None) or getattr(function, "func", None) or function
        if not name.startswith("__") or isinstance(function, FunctionType):
            yield name
            yield from _function_parts(function) if isinstance(function, FunctionType) else _value_parts(function)


def _value_parts(value: Any) -> Iterator[Any]:
    """Yield a plain value as text, and what has code as it is; anything else is data."""
    if isinstance(value, _PLAIN):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, tuple) and len(value) <= MAX_ITEMS:
        for item in value:
            yield from _value_parts(item)
    elif isinstance(value, functools.partial):
        yield from _value_parts(value.func)
        yield from _value_parts(value.args)
        yield from _value_parts(tuple(value.keywords.values()))
    elif isinstance(value, ModuleType | FunctionType | type | BuiltinFunctionType):
        yield value
    elif inspect.ismethod(value):
        yield from (value.__func__, type(value.__self__))
    else:
        yield type(value)


def _code_parts(code: CodeType) -> Iterator[str]:
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    yield f"{code.co_name} {code.co_code.hex()} {names} {code.co_flags}"
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _code_parts(value)
        else:
            yield repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _names(value)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
