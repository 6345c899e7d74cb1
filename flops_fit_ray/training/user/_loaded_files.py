"""Source files as this process has loaded them: an edit since is code that others would train, and not this process."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from flops_fit_ray.errors import SpecError
from flops_fit_ray.formatting import listed

SHOWN = 4  # files in a line

_loaded: dict[Path, tuple[Any, str]] = {}  # the import that loaded each file, and its hash when it was looked at


def note_loaded(module: str, file: Path, content: bytes, hashed: str) -> bool:
    """Note a file of a module. Returns True if it is not what this process has loaded.

    Of the first look at a file that is as far as its functions tell; later it is known by its hash.

    Args:
        hashed: what Python reads in its content.
    """
    loaded = sys.modules.get(module)
    imported = getattr(loaded, "__spec__", None)  # another one after a reload
    before = _loaded.get(file)
    if loaded is None or imported is None:
        return False
    if before is None or before[0] is not imported:
        if _has_other_functions(loaded, file, content):
            return True
        _loaded[file] = imported, hashed
        return False
    return before[1] != hashed


def _has_other_functions(module: ModuleType, file: Path, content: bytes) -> bool:
    """Tell whether a function of a module is not in the source that it was loaded from."""
    own = vars(module)
    if type(own.get("__loader__")) is not SourceFileLoader:  # others may change what they load
        return False
    try:
        written = set(map(_content, _nested(compile(content, str(file), "exec", dont_inherit=True))))
    except (SyntaxError, ValueError):
        return True
    held = [value for value in own.values() if isinstance(value, FunctionType | type)]
    inside = [vars(value).values() for value in held if isinstance(value, type) and value.__module__ == module.__name__]
    functions = [f for f in (*held, *itertools.chain(*inside)) if isinstance(f, FunctionType)]
    here = [f.__code__ for f in functions if f.__code__.co_filename == own.get("__file__")]
    return any(_content(code) not in written for code in here)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _content(code: CodeType) -> tuple[object, ...]:
    """Return what a function does, without its place in the file and its docstring."""
    first, *rest = code.co_consts or (None,)
    kept = rest if first is None or isinstance(first, str) else code.co_consts
    constants = [_content(c) if isinstance(c, CodeType) else (type(c), repr(c)) for c in kept]
    return code.co_qualname, code.co_code, code.co_names, code.co_varnames, code.co_freevars, tuple(constants)


def refuse_stale(names: list[str]) -> None:
    """Refuse to plan by code that is not that of the files any more.

    Raises:
        SpecError: there are such files.
    """
    if names:
        fault = (
            f"{listed(names, SHOWN)}: edited after this process imported it: it would plan by the code of before, and "
            "train that of now; restart it (in a notebook the kernel), or importlib.reload and import again"
        )
        raise SpecError("code", [fault])
