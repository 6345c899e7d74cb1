"""Ray's processes below this one, which outlive a local cluster whose head dies."""

from __future__ import annotations

import contextlib
import os

import psutil

_RAY_WORDS = ("ray::", "/ray/", "raylet")  # in the command line of everything that Ray starts
HEAD = "gcs_server"  # and of its head


def ray_descendants(besides: str | None = None) -> set[int]:
    """Return Ray's processes among the descendants of this one.

    Args:
        besides: words in the command line of those to leave out.
    """
    commands = {pid: _command(pid) for pid in descendants(os.getpid())}
    return {pid for pid, command in commands.items() if _is_rays(command) and not (besides and besides in command)}


def descendants(pid: int) -> set[int]:
    """Return the processes that descend from `pid`; none where it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return {child.pid for child in psutil.Process(pid).children(recursive=True)}
    return set()


def end_all(pids: set[int]) -> None:
    """Kill those of `pids` that are still Ray's."""
    for pid in pids:
        if _is_rays(_command(pid)):
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()


def _command(pid: int) -> str:
    with contextlib.suppress(psutil.Error):  # it may end at any moment
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def _is_rays(command: str) -> bool:
    return any(word in command for word in _RAY_WORDS)
