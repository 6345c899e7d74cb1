"""Modules that a worker has to import: those of functions and classes that are pickled by their names.

A module that was loaded from its file, or by `runpy`, may have a name by which no other process finds it, or finds
another file: a worker would fail, or train with other code than was planned.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path


def import_fault(name: str) -> str | None:
    """Describe why a worker would not import the module of this name as it is loaded here; None if it would."""
    loaded = sys.modules.get(name)
    file = None if loaded is None else vars(loaded).get("__file__")
    if not isinstance(file, str):  # built in, or without a file of its own
        return None
    try:
        found = _spec_of(name)
    except Exception:  # noqa: BLE001 - a finder of the user's may raise anything; whether it finds it a worker will see
        return None
    way_out = (
        f"import it by its name, from a directory that is on sys.path ({Path(file).name} lies in {Path(file).parent})"
    )
    if found is None:
        return f"its module {name} was loaded from {file}, and by this name no other process finds it; {way_out}"
    if found.has_location and found.origin is not None and not _is_same(Path(found.origin), Path(file)):
        return f"its module {name} was loaded from {file}, and a worker would load {found.origin} instead; {way_out}"
    return None


def _spec_of(name: str) -> ModuleSpec | None:
    """Find a module as another process would, which has not loaded it yet."""
    places: Sequence[str] | None = None
    found: ModuleSpec | None = None
    words = name.split(".")
    for count in range(1, len(words) + 1):
        part = ".".join(words[:count])
        specs = (finder.find_spec(part, places) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        found = next((spec for spec in specs if spec is not None), None)
        if found is None:
            return None
        places = found.submodule_search_locations
        if places is None and count < len(words):
            return None
    return found


def _is_same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and other.exists() and one.samefile(other))
