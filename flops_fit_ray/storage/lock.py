"""One writer per sweep directory. Readers take no lock, and wait for nobody."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flops_fit_ray import formatting as fmt
from flops_fit_ray.errors import DirectoryError, StorageError
from flops_fit_ray.storage.atomic import read_sealed, write_json
from flops_fit_ray.storage.codec import Count, Record, value_of
from flops_fit_ray.storage.lease import LeaseHeldError, is_dead, leased
from flops_fit_ray.storage.object_store import ObjectPath
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, is_remote, local_path

if TYPE_CHECKING:
    from filelock import BaseFileLock

LEASE_SECONDS = 30.0  # without a sign of life, where the file system knows no locks
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


@dataclass(frozen=True, kw_only=True)
class LockOwner(Record):
    """The process that writes a directory."""

    host: str
    pid: Count
    started_at: float  # seconds since the epoch


def hostname() -> str:
    """This machine's name, as results and locks carry it."""
    return socket.gethostname()


@contextlib.contextmanager
def exclusive(paths: SweepPaths) -> Iterator[str | None]:
    """Be the one writer of a directory, or say who is. Yields the last one, where it ended without a word.

    The kernel's lock ends with its owner. Where the file system has none, a lease that is renewed every few seconds
    takes its place: an owner of this machine that is dead is recognised at once, one of another machine after half a
    minute of silence.

    Raises:
        DirectoryError: another process is writing, or the directory cannot be written.
    """
    if isinstance(paths.lock_owner, ObjectPath):
        with _leased(paths.lock_owner) as before:
            yield before
        return
    with _held(paths):
        dead_owner = _owner(paths)  # a living one would hold the lock
        write_json(paths.lock_owner, {"host": hostname(), "pid": os.getpid(), "started_at": time.time()})
        try:
            yield dead_owner
        finally:
            with contextlib.suppress(OSError):
                paths.lock_owner.unlink(missing_ok=True)


@contextlib.contextmanager
def _leased(note: ObjectPath) -> Iterator[str | None]:
    with contextlib.ExitStack() as stack:
        try:
            before = stack.enter_context(leased(note, hostname()))
        except LeaseHeldError as e:
            raise _in_use(note.parent, _in_words(e.owner)) from e
        except StorageError as e:
            raise DirectoryError(f"{e}, or choose another --output") from e
        yield None if before is None else _in_words(before)


@contextlib.contextmanager
def _held(paths: SweepPaths) -> Iterator[None]:
    from filelock import Timeout

    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        lock = _acquire(paths)
    except Timeout as e:
        raise _in_use(paths.root, _owner(paths) or "another process") from e
    except OSError as e:
        raise DirectoryError(f"{paths.root}: cannot be written: {e.strerror}; choose another --output") from e
    try:
        yield
    finally:
        lock.release()


def _in_use(root: StoragePath, owner: str) -> DirectoryError:
    return DirectoryError(f"{root}: {owner} is writing here; wait for it, stop it, or choose another --output")


def refuse_second_writer(paths: SweepPaths) -> None:
    """Say at once that somebody is writing, before anything is worked out for nothing.

    Raises:
        DirectoryError: another process is writing.
    """
    if not is_remote(paths.root) and (paths.lock.exists() or paths.lease.exists()):
        with _held(paths):
            pass


def read_owner(paths: SweepPaths) -> LockOwner | None:
    """Return the note of whoever holds the lock or held it last; None where there is none that can be read."""
    with contextlib.suppress(ValueError):
        return value_of(LockOwner, read_sealed(paths.lock_owner) or b"")
    return None


def living_owner(paths: SweepPaths) -> str | None:
    """Who writes a directory now, in words, without asking for the lock. A dead process of this machine is nobody."""
    found = read_owner(paths)
    return None if found is None or is_dead(asdict(found), hostname()) else _in_words(asdict(found))


def _acquire(paths: SweepPaths) -> BaseFileLock:
    from filelock import FileLock, SoftFileLease

    try:
        lock = FileLock(local_path(paths.lock), fallback_to_soft=False)
        lock.acquire(timeout=0)
        return lock
    except OSError as e:
        if e.errno not in NO_LOCKS:
            raise
    lease = SoftFileLease(local_path(paths.lease), lease_duration=LEASE_SECONDS)
    lease.acquire(timeout=1.2 * LEASE_SECONDS if _looks_old(paths) else 1.0)
    return lease


def _looks_old(paths: SweepPaths) -> bool:
    """Whether nobody has renewed the lease for a while: then it is worth waiting until that is certain."""
    with contextlib.suppress(OSError):
        return abs(time.time() - local_path(paths.lease).stat().st_mtime) > LEASE_SECONDS
    return False


def _owner(paths: SweepPaths) -> str | None:
    """Who holds the lock, or held it, in words."""
    found = read_owner(paths)
    return None if found is None else _in_words(asdict(found))


def _in_words(owner: Mapping[str, Any]) -> str:
    started = owner.get("started_at")
    since = f", since {fmt.local_time(started)}" if isinstance(started, float) else ""
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}{since}"
