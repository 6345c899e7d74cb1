"""Loops in threads of their own, for as long as a block runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def looping(loop: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Run `loop` in a thread beside the block, and wait for its end.

    Args:
        loop: returns soon once the event that it is given is set, which is done when the block ends.
        name: of the thread.
    """
    done = threading.Event()
    thread = threading.Thread(target=loop, args=(done,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
