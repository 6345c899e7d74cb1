"""Source files that the user's code writes itself while it is loaded: no two processes would find the same."""

from __future__ import annotations

import os
from pathlib import Path

_LEFT_OUT = {"__pycache__", "node_modules", "site-packages", "venv", "runs"}  # and what begins with a dot
MAX_DIRECTORIES = 5_000

_State = dict[str, tuple[int, int, int]]  # of each source file of a directory: time, size and number


class SourceWatch:
    """The source files below a directory as they were before the user's code was loaded."""

    def __init__(self, base: Path) -> None:
        self._before: dict[str, _State] = {}
        for place, names, _ in os.walk(base.resolve()):
            names[:] = [name for name in names if name not in _LEFT_OUT and name[0] != "."]
            self._before[place] = _sources(place)
            if len(self._before) >= MAX_DIRECTORIES:
                break

    def was_written(self, file: Path) -> bool:
        """Return True if a file was made or written since; False where nobody looked."""
        real = file.resolve()
        before = self._before.get(str(real.parent))
        return before is not None and before.get(real.name) != _sources(str(real.parent)).get(real.name)


def _sources(place: str) -> _State:
    found = {}
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    state = entry.stat()
                    found[entry.name] = (state.st_mtime_ns, state.st_size, state.st_ino)
    except OSError:  # what cannot be read here is imported from nowhere
        pass
    return found
