"""The operating system's files, with one thing going wrong at a time."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

CHANGING = ("fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir")  # functions of os
CRASHES = """
import ctypes, os, sys
from flops_fit_ray.engine._crash import crashes_noted
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import storage_path

_, root, how, rank = sys.argv

def forward():
    if how == "hang":
        ctypes.PyDLL(None).sleep(60)  # a call that holds Python's lock, unlike those of ctypes.CDLL
    os.abort()

paths = SweepPaths(storage_path(root))
with crashes_noted(paths, "key", 1.0, int(rank)):
    pass
assert not paths.crashes("key")
with crashes_noted(paths, "key", 1.0, int(rank)):
    forward()
"""
KILL = "kill"  # instead of an errno: the process ends where it stands


def drawn_points(operations: Sequence[str], seed: int) -> list[int]:
    """Numbers of some operations, drawn so that each function and each file is among them."""
    numbers = list(range(len(operations)))
    random.Random(seed).shuffle(numbers)
    seen, drawn = set[str](), []
    for n in numbers:
        function, _, path = operations[n].partition(" ")
        kinds = {function, re.sub(r"\b\d+\b", "N", re.sub(r"\b[0-9a-f]{16}\b", "KEY", path))}
        if kinds - seen:
            seen |= kinds
            drawn.append(n + 1)
    return sorted(drawn)


def crashing(root: str, how: str = "abort", *, rank: int = 0, **variables: str) -> int:
    """Let a process that trains experiment "key" of a sweep crash or hang. Returns its exit status."""
    command = [sys.executable, "-c", CRASHES, root, how, str(rank)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, env=environment, check=False, capture_output=True, timeout=50).returncode


class _File:
    """A file whose first two writes are counted; everything else is the real one's."""

    def __init__(self, file: Any, count: Callable[[str, Any], None]) -> None:
        self._file, self._count, self._writes = file, count, 0

    def write(self, content: Any) -> Any:
        self._writes += 1
        if self._writes <= 2:  # an archive of tensors has hundreds
            self._count("write", self._file.name)
        return self._file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Faults:
    """Counts everything that changes files under `root`, and makes one of these operations fail or kill.

    Args:
        at: the number, from 1, of the operation that fails; 0 for none.
        what: an errno, or KILL.
    """

    def __init__(self, root: Path, at: int = 0, what: int | str = errno.EIO) -> None:
        self._root, self._at, self._what = str(root), at, what
        self.operations: list[str] = []

    def _count(self, name: str, *paths: Any) -> None:
        named = [str(Path(f"/proc/self/fd/{p}").readlink()) if name == "fsync" else str(p) for p in paths[:2]]
        inside = [path for path in named if path.startswith(self._root)]
        if not inside:
            return
        self.operations.append(f"{name} {inside[0].removeprefix(self._root)}")
        if len(self.operations) != self._at:
            return
        if self._what == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        assert isinstance(self._what, int)
        raise OSError(self._what, os.strerror(self._what), inside[0])

    @contextlib.contextmanager
    def armed(self) -> Iterator[Faults]:
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGING:
                patch.setattr(os, name, self._counting(name, getattr(os, name)))
            patch.setattr(io, "open", self._opening(io.open))
            yield self

    def _counting(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            self._count(name, *arguments)
            return real(*arguments, **more)

        return call

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, mode: str = "r", *arguments: Any, **more: Any) -> Any:
            if not set(mode) & set("wax+") or not str(path).startswith(self._root):
                return real(path, mode, *arguments, **more)
            self._count("open", path)
            return _File(real(path, mode, *arguments, **more), self._count)

        return call
