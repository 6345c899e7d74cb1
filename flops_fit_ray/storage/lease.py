"""One writer of a directory in an object store: a note that its owner renews, because there are no locks.

Two processes that come in the same moment both write a note; the later one stands, and each looks who that is after a
pause. An owner that finds another's note, because it was cut off for half a minute, stops its sweep.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from flops_fit_ray.errors import StorageError
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.object_store import ObjectPath

BEAT_SECONDS = 5.0  # between renewals
SILENT_SECONDS = 30.0  # after which an owner is taken for dead
SETTLE_SECONDS = 1.5  # after which a note that was written at the same time can be seen


class LeaseHeldError(Exception):
    """Somebody else has it. `owner` is its note."""

    def __init__(self, owner: dict[str, Any]) -> None:
        super().__init__("held")
        self.owner = owner


@contextlib.contextmanager
def leased(note: ObjectPath, host: str) -> Iterator[dict[str, Any] | None]:
    """Be the owner of a note while the block runs. Yields the note of the one before, where it ended without a word.

    Raises:
        LeaseHeldError: somebody else is.
        StorageError: the store does not answer.
    """
    before = read_json(note)
    if before is not None and not is_dead(before, host) and _is_renewed(note, before):
        raise LeaseHeldError(before)
    mine = {"token": secrets.token_hex(8), "host": host, "pid": os.getpid(), "started_at": time.time(), "beat": 0}
    write_json(note, mine)
    time.sleep(SETTLE_SECONDS)
    found = read_json(note)
    if found is None or found.get("token") != mine["token"]:
        raise LeaseHeldError(found or {})
    done = threading.Event()
    thread = threading.Thread(target=_renew, args=(note, mine, done), daemon=True)
    thread.start()
    try:
        yield before
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(StorageError, OSError):
            if (read_json(note) or {}).get("token") == mine["token"]:
                note.unlink(missing_ok=True)


def _renew(note: ObjectPath, mine: dict[str, Any], done: threading.Event) -> None:
    beat = 0
    while not done.wait(BEAT_SECONDS):
        with contextlib.suppress(StorageError, OSError):  # a bad moment of the store; the next beat is soon
            found = read_json(note)
            if found is not None and found.get("token") != mine["token"]:
                os.kill(os.getpid(), signal.SIGTERM)  # the sweep has another owner: stop as for any signal
                return
            beat += 1
            write_json(note, {**mine, "beat": beat})


def is_dead(owner: Mapping[str, Any], host: str) -> bool:
    """Whether a note is of a process of this machine that is gone."""
    if owner.get("host") == host and isinstance(owner.get("pid"), int):
        with contextlib.suppress(PermissionError, OverflowError):  # somebody else's, or no process at all
            try:
                os.kill(owner["pid"], 0)
            except ProcessLookupError:
                return True
    return False


def _is_renewed(note: ObjectPath, before: dict[str, Any]) -> bool:
    """Whether its owner gives a sign of life. Clocks are not compared: it is watched until it beats, or has not."""
    ends = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < ends:
        time.sleep(min(1.0, BEAT_SECONDS / 5))
        now = read_json(note)
        if now is None:
            return False
        if (now.get("token"), now.get("beat")) != (before.get("token"), before.get("beat")):
            return True
    return False
