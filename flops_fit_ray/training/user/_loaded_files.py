"""Source files as this process has loaded them: an edit since is code that others would train, and not this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from flops_fit_ray.errors import SpecError
from flops_fit_ray.formatting import listed

SHOWN = 4  # files in a line

_loaded: dict[
    Path, tuple[Any, str]
] = {}  # by file: the import that loaded it, and its hash when it was first looked at


def note_loaded(module: str, file: Path, hashed: str) -> bool:
    """Note a file of a module. Returns True if it was another one when this process looked before, and is not reloaded.

    Args:
        hashed: what Python reads in it now.
    """
    imported = getattr(sys.modules.get(module), "__spec__", None)  # another one after a reload
    before = _loaded.get(file)
    if imported is None or before is None or before[0] is not imported:
        _loaded[file] = imported, hashed
        return False
    return before[1] != hashed


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
