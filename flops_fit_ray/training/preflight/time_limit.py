"""A limit to how long the user's data may keep planning waiting."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def time_limit(seconds: float, words: str) -> Iterator[None]:
    """Raise TimeoutError with `words` when the block takes longer.

    By the process's alarm, which only the main thread can set; anywhere else there is no limit. What blocks in native
    code and never comes back to Python is not interrupted.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def on_alarm(number: int, frame: Any) -> None:
        raise TimeoutError(words)

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
