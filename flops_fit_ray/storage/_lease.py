"""One writer of a directory in an object store: a lease that its owner renews, because object stores have no locks.

Two processes that start at the same moment both write the lease; the later one stands, and each reads it again after a
pause. An owner that finds another's lease, because it was cut off for half a minute, stops its sweep.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated, TypeVar

import psutil
from pydantic import Field

from flops_fit_ray import formatting as fmt
from flops_fit_ray.errors import StorageError
from flops_fit_ray.storage.atomic import read_sealed, write_json
from flops_fit_ray.storage.codec import Count, Record, Timestamp, value_of
from flops_fit_ray.storage.object_store import ObjectPath
from flops_fit_ray.storage.storage_path import StoragePath

BEAT_SECONDS = 5.0  # between renewals
SILENT_SECONDS = 30.0  # after which an owner is taken for dead
SETTLE_SECONDS = 1.5  # after which a lease that was written at the same time can be seen


@dataclass(frozen=True, kw_only=True)
class LockOwner(Record):
    """Process that writes a directory. Its text is what messages call it."""

    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    started_at: Timestamp

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {fmt.local_time(self.started_at)}"

    def has_exited(self, host: str) -> bool:
        """Tell whether it is a process of `host`, which is this machine, and is gone."""
        return self.host == host and not psutil.pid_exists(self.pid)


@dataclass(frozen=True, kw_only=True)
class Lease(LockOwner):
    """Content of the lease file."""

    token: str
    beat: Count  # renewals so far


Owner = TypeVar("Owner", bound=LockOwner)


class LeaseHeldError(Exception):
    """Another process has the lease: `owner`, where it can be read."""

    def __init__(self, owner: Lease | None) -> None:
        super().__init__("held")
        self.owner = owner


def read_owner_file(kind: type[Owner], path: StoragePath) -> Owner | None:
    """Return the owner that a file names; None where there is none that can be read.

    Raises:
        StorageError: the object store does not answer.
    """
    with contextlib.suppress(ValueError):
        return value_of(kind, read_sealed(path) or b"")
    return None


@contextlib.contextmanager
def leased(path: ObjectPath, host: str) -> Iterator[Lease | None]:
    """Hold the lease at `path` while the block runs. Yields the last owner's, if it exited without removing it.

    Raises:
        LeaseHeldError: another process has it.
        StorageError: the store does not answer.
    """
    before = read_owner_file(Lease, path)
    if before is not None and not before.has_exited(host) and _is_renewed(path, before):
        raise LeaseHeldError(before)
    mine = Lease(host=host, pid=os.getpid(), started_at=time.time(), token=secrets.token_hex(8), beat=0)
    write_json(path, asdict(mine))
    time.sleep(SETTLE_SECONDS)
    found = read_owner_file(Lease, path)
    if found is None or found.token != mine.token:
        raise LeaseHeldError(found)
    done = threading.Event()
    thread = threading.Thread(target=_renew, args=(path, mine, done), daemon=True)
    thread.start()
    try:
        yield before
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(StorageError, OSError):
            found = read_owner_file(Lease, path)
            if found is not None and found.token == mine.token:
                path.unlink(missing_ok=True)


def _renew(path: ObjectPath, mine: Lease, done: threading.Event) -> None:
    beat = 0
    while not done.wait(BEAT_SECONDS):
        with contextlib.suppress(StorageError, OSError):  # the store may fail for a moment; the next beat is soon
            found = read_owner_file(Lease, path)
            if found is not None and found.token != mine.token:
                os.kill(os.getpid(), signal.SIGTERM)  # the sweep has another owner: stop as for any signal
                return
            beat += 1
            write_json(path, asdict(replace(mine, beat=beat)))


def _is_renewed(path: ObjectPath, before: Lease) -> bool:
    """Watch until the owner renews its lease, or has not for too long. Clocks of machines are not compared."""
    ends = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < ends:
        time.sleep(min(1.0, BEAT_SECONDS / 5))
        now = read_owner_file(Lease, path)
        if now is None:
            return False
        if (now.token, now.beat) != (before.token, before.beat):
            return True
    return False
