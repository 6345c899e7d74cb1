"""Lines on what a slow start waits for. The door chooses where they go; without one, nothing is written."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

QUIET_SECONDS = 2.0  # a start that takes less says nothing

Say = Callable[[str], None]
_say: ContextVar[Say | None] = ContextVar("say", default=None)


def to_stderr(line: str) -> None:
    """Write a line to stderr, which is no one's result; a closed stream is no error."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def told_to(say: Say | None) -> Iterator[None]:
    """Give the lines of the block to `say`; to nobody if it is None."""
    token = _say.set(say)
    try:
        yield
    finally:
        _say.reset(token)


def tell(line: str) -> None:
    """Write a line that a user has to know at the start."""
    say = _say.get()
    if say is not None:
        say(line)


@contextlib.contextmanager
def waiting(words: str, seconds: float | None = None) -> Iterator[None]:
    """Write `words` once if the block takes longer than `seconds`, by default QUIET_SECONDS.

    A thread writes them, because the block may never return; it ends with the block.
    """
    say = _say.get()
    if say is None:
        yield
        return
    timer = threading.Timer(QUIET_SECONDS if seconds is None else seconds, say, [f"{words} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
