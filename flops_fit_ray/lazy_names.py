"""Packages whose names are loaded on first use, so that a command imports what it needs and no more."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable


def lazily(package: str) -> Callable[[str], object]:
    """Return the `__getattr__` of a package whose imports stand below `if TYPE_CHECKING:`, for type checkers alone.

    The module of a name is imported when the name is first asked for. No module of the package may be called as one of
    the names: its import would hide the name.
    """
    homes: dict[str, str] = {}

    def get(name: str) -> object:
        if not homes:
            homes.update(_homes(package))
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get


def _homes(package: str) -> dict[str, str]:
    """Return the module of each name that a package imports for type checkers."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.loader is not None
    source: str = spec.loader.get_source(package)  # type: ignore[attr-defined] # of every loader of files and zips
    blocks = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module)
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
