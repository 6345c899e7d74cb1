"""Ray's processes that a local cluster leaves behind when its head dies. On Linux; elsewhere there are none to see."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

_RAYS = (b"ray::", b"/ray/", b"raylet")  # in the command line of everything that Ray starts
HEAD = b"gcs_server"  # and of its head


def ray_descendants(besides: bytes | None = None) -> set[int]:
    """Ray's processes among those that descend from this one.

    Args:
        besides: words in the command line of those that are not meant.
    """
    commands = {pid: _command(pid) for pid in descendants(os.getpid())}
    return {pid for pid, command in commands.items() if _is_rays(command) and not (besides and besides in command)}


def descendants(pid: int) -> set[int]:
    """The processes that descend from one."""
    parents = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # it may end while it is looked at
            after_name = (directory / "stat").read_text().rpartition(")")[2]
            parents[int(directory.name)] = int(after_name.split()[1])
    found: set[int] = set()
    grown = {pid}
    while grown:
        grown = {child for child, parent in parents.items() if parent in grown and child not in found}
        found |= grown
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def _is_rays(command: bytes) -> bool:
    return any(word in command for word in _RAYS)


def end_all(pids: set[int]) -> None:
    """End those that are still Ray's."""
    for pid in pids:
        if _is_rays(_command(pid)):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
