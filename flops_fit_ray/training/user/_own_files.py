"""Source files that the user's code writes itself while it is loaded: no two processes would find the same.

What is written later is an edit of the user's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_LEFT_OUT = {"__pycache__", "node_modules", "site-packages", "venv", "runs"}  # and what begins with a dot
MAX_DIRECTORIES = 5_000

_State = dict[str, tuple[int, int, int]]  # of each source file of a directory: time, size and number


class SourceWatch:
    """The source files below a directory as they were before the user's code was loaded, and after it."""

    def __init__(self, base: Path) -> None:
        self._base = base.resolve()
        self._before = _below(self._base)
        self._own: set[Path] | None = None  # files that were written by the time that the code was loaded

    def was_written(self, file: Path) -> bool:
        """Return True if a file was made or written while the code was loaded; False where nobody looked."""
        real = file.resolve()
        if self._own is not None:
            return real in self._own
        before = self._before.get(str(real.parent))
        return before is not None and before.get(real.name) != _sources(str(real.parent)).get(real.name)

    def settle(self) -> None:
        """Note that the code is loaded: its own files are those that were written until now."""
        if self._own is None:
            now = _below(self._base)
            self._own = set(_changed(self._before, now))
            self._before = now

    def edited(self) -> set[Path]:
        """Return the files that were written since, and not by the code itself."""
        return set(_changed(self._before, _below(self._base))) - (self._own or set())


def _below(base: Path) -> dict[str, _State]:
    found: dict[str, _State] = {}
    for place, names, _ in os.walk(base):
        names[:] = [name for name in names if name not in _LEFT_OUT and name[0] != "."]
        found[place] = _sources(place)
        if len(found) >= MAX_DIRECTORIES:
            break
    return found


def _changed(before: Mapping[str, _State], now: Mapping[str, _State]) -> Iterator[Path]:
    for place, files in now.items():
        known = before.get(place, {})
        yield from (Path(place) / name for name, state in files.items() if known.get(name) != state)


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
