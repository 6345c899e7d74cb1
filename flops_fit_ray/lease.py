"""One writer of a directory in an object store: a note that its owner renews, because there are no locks.

Two processes that come in the same moment both write a note; the later one stands, and each looks who that is after a
pause. An owner that finds another's note, because it was cut off for half a minute, stops its sweep.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flops_fit_ray.files import patiently
from flops_fit_ray.places import ObjectPath

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
        OSError: the store does not answer.
    """
    before = _read(note)
    if before is not None and not _is_dead(before, host) and _is_renewed(note, before):
        raise LeaseHeldError(before)
    mine = {"token": secrets.token_hex(8), "host": host, "pid": os.getpid(), "started_at": time.time(), "beat": 0}
    _write(note, mine)
    time.sleep(SETTLE_SECONDS)
    found = _read(note)
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
        with contextlib.suppress(OSError):
            if (_read(note) or {}).get("token") == mine["token"]:
                note.unlink(missing_ok=True)


def _renew(note: ObjectPath, mine: dict[str, Any], done: threading.Event) -> None:
    beat = 0
    while not done.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # a bad moment of the store; the next beat is soon
            found = _read(note)
            if found is not None and found.get("token") != mine["token"]:
                os.kill(os.getpid(), signal.SIGTERM)  # the sweep has another owner: stop as for any signal
                return
            beat += 1
            _write(note, {**mine, "beat": beat})


def _is_dead(owner: dict[str, Any], host: str) -> bool:
    """Whether it was a process of this machine that is gone."""
    if owner.get("host") != host or not isinstance(owner.get("pid"), int):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _is_renewed(note: ObjectPath, before: dict[str, Any]) -> bool:
    """Whether its owner gives a sign of life. Clocks are not compared: it is watched until it beats, or has not."""
    ends = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < ends:
        time.sleep(min(1.0, BEAT_SECONDS / 5))
        now = _read(note)
        if now is None:
            return False
        if (now.get("token"), now.get("beat")) != (before.get("token"), before.get("beat")):
            return True
    return False


def _read(note: ObjectPath) -> dict[str, Any] | None:
    try:
        found = json.loads(patiently(note.read_bytes))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(note: ObjectPath, content: dict[str, Any]) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(json.dumps(content).encode())
        file.flush()
        patiently(lambda: note.put(Path(file.name)))
