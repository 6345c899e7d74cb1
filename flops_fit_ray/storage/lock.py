"""One writer per sweep directory. Readers take no lock, and never wait."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from flops_fit_ray.errors import DirectoryError, StorageError
from flops_fit_ray.storage._lease import LeaseHeldError, leased
from flops_fit_ray.storage._owner import LockOwner, read_owner_file, renewing, this_process
from flops_fit_ray.storage.atomic import make_directory, write_json
from flops_fit_ray.storage.object_store import ObjectPath
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, is_remote, local_path

if TYPE_CHECKING:
    from filelock import BaseFileLock, LeaseCompromise

BEAT_SECONDS = 20.0  # between renewals of the note that names the owner
LEASE_SECONDS = 30.0  # without renewal, after which a lease ends; where the file system has no locks
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


def hostname() -> str:
    """Return the name of this machine, as results and locks carry it."""
    return socket.gethostname()


@contextlib.contextmanager
def exclusive(paths: SweepPaths) -> Iterator[str | None]:
    """Hold the lock of a directory while the block runs. Yields its last owner, if it exited without releasing it.

    The kernel's lock ends with its owner. Where the file system has none, a lease that is renewed every few seconds
    takes its place: an owner of this machine and container that has exited is recognised at once, another after half a
    minute without renewal.

    Raises:
        DirectoryError: another process is writing, or the directory cannot be written.
    """
    if isinstance(paths.lock_owner, ObjectPath):
        with _leased(paths.lock_owner) as before:
            yield before
        return
    with _held(paths):
        last = read_owner(paths)  # it has exited, or it would hold the lock
        owner = this_process(hostname())

        def renew() -> bool:
            write_json(paths.lock_owner, asdict(replace(owner, renewed_at=time.time())))
            return True

        write_json(paths.lock_owner, asdict(owner))
        try:
            with renewing(renew, BEAT_SECONDS):
                yield None if last is None else str(last)
        finally:
            with contextlib.suppress(OSError):
                paths.lock_owner.unlink(missing_ok=True)


@contextlib.contextmanager
def _leased(path: ObjectPath) -> Iterator[str | None]:
    with contextlib.ExitStack() as stack:
        try:
            before = stack.enter_context(leased(path, hostname()))
        except LeaseHeldError as e:
            raise _in_use(path.parent, e.owner) from e
        except StorageError as e:
            raise DirectoryError(f"{e}, or choose another --output") from e
        yield None if before is None else str(before)


@contextlib.contextmanager
def _held(paths: SweepPaths) -> Iterator[None]:
    from filelock import Timeout

    try:
        make_directory(local_path(paths.root))
        lock = _acquire(paths)
    except Timeout as e:
        raise _in_use(paths.root, read_owner(paths)) from e
    except OSError as e:
        raise DirectoryError(f"{paths.root}: cannot be written: {e.strerror}; choose another --output") from e
    try:
        yield
    finally:
        lock.release()


def _in_use(root: StoragePath, owner: LockOwner | None) -> DirectoryError:
    who = "another process" if owner is None else owner
    return DirectoryError(f"{root}: {who} is writing here; wait for it, stop it, or choose another --output")


def refuse_second_writer(paths: SweepPaths) -> None:
    """Raise at once if another process writes the directory, before anything is computed in vain.

    Raises:
        DirectoryError: another process is writing.
    """
    if not is_remote(paths.root) and (paths.lock.exists() or paths.lease.exists()):
        with _held(paths):
            pass


def read_owner(paths: SweepPaths) -> LockOwner | None:
    """Return who holds the lock, or exited without releasing it; None where no file of it can be read."""
    return read_owner_file(LockOwner, paths.lock_owner)


def living_owner(paths: SweepPaths) -> str | None:
    """Return who writes a directory now, without taking the lock; None if it has exited.

    Of another machine, or in another container of this one, that is known by the time of its last note alone.
    """
    found = read_owner(paths)
    return None if found is None or found.has_exited(hostname()) or found.is_unheard_of() else str(found)


def _acquire(paths: SweepPaths) -> BaseFileLock:
    from filelock import FileLock, SoftFileLease

    try:
        lock = FileLock(local_path(paths.lock), fallback_to_soft=False)
        lock.acquire(timeout=0)
        return lock
    except OSError as e:
        if e.errno not in NO_LOCKS:
            raise
    lease = SoftFileLease(local_path(paths.lease), lease_duration=LEASE_SECONDS, on_compromise=_stop)
    lease.acquire(timeout=1.2 * LEASE_SECONDS if _looks_old(paths) else 1.0)
    return lease


def _stop(_: LeaseCompromise) -> None:
    os.kill(os.getpid(), signal.SIGTERM)  # the sweep may have another owner: stop as for any signal


def _looks_old(paths: SweepPaths) -> bool:
    """Tell whether the lease has not been renewed for a while: then it is worth waiting until that is certain."""
    with contextlib.suppress(OSError):
        return abs(time.time() - local_path(paths.lease).stat().st_mtime) > LEASE_SECONDS
    return False
