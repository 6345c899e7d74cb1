"""One writer of a directory in an object store: a lease that its owner renews, because object stores have no locks.

Whoever wants it claims its name first (storage/_claims.py), and goes on if the lease has not changed meanwhile. A
process that is held up for too long in between and then goes on as if nothing had happened finds the lease of the owner
since then, and the other one its: both stop their sweeps.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from flops_fit_ray.errors import StorageError
from flops_fit_ray.storage._claims import claimed
from flops_fit_ray.storage._owner import LockOwner, read_owner_file, renewing, this_process
from flops_fit_ray.storage.atomic import storage_error, with_retries, write_json
from flops_fit_ray.storage.codec import Count
from flops_fit_ray.storage.object_store import ObjectPath

BEAT_SECONDS = 5.0  # between renewals
SILENT_SECONDS = 30.0  # after which an owner is taken for dead


@dataclass(frozen=True, kw_only=True)
class Lease(LockOwner):
    """Content of the lease file."""

    token: str
    beat: Count  # renewals so far


class LeaseHeldError(Exception):
    """Another process has the lease: `owner`, where it can be read."""

    def __init__(self, owner: Lease | None) -> None:
        super().__init__("held")
        self.owner = owner


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
    mine = Lease(**vars(this_process(host)), token=secrets.token_hex(8), beat=0)

    def look() -> None:
        now = read_owner_file(Lease, path)
        if now is not None and now != before:
            raise LeaseHeldError(now)

    try:
        with claimed(path, with_retries, look):
            write_json(path, asdict(mine))
    except OSError as e:
        raise storage_error(path, "written", e) from e
    beat = 0

    def renew() -> bool:
        nonlocal beat
        found = read_owner_file(Lease, path)
        if found is not None and found.token != mine.token:
            os.kill(os.getpid(), signal.SIGTERM)  # the sweep has another owner: stop as for any signal
            return False
        beat += 1
        write_json(path, asdict(replace(mine, beat=beat, renewed_at=time.time())))
        return True

    try:
        with renewing(renew, BEAT_SECONDS):
            yield before
    finally:
        with contextlib.suppress(StorageError, OSError):
            found = read_owner_file(Lease, path)
            if found is not None and found.token == mine.token:
                path.unlink(missing_ok=True)


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
