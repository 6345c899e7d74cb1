"""The process that writes a directory: who it is, and whether it is known to have exited.

A pid means one process only in its own PID namespace and since its machine's last start: another container of the same
host name has others. Where that differs, only time tells: an owner renews its note every few seconds.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field

from flops_fit_ray import formatting as fmt
from flops_fit_ray.background import looping
from flops_fit_ray.errors import StorageError
from flops_fit_ray.storage.atomic import read_sealed
from flops_fit_ray.storage.codec import Count, Record, Timestamp, value_of
from flops_fit_ray.storage.storage_path import StoragePath

UNHEARD_SECONDS = 120.0  # after which an owner that only time can tell of is taken for dead; clocks may differ a little


@dataclass(frozen=True, kw_only=True)
class LockOwner(Record):
    """Process that writes a directory. Its text is what messages call it."""

    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    started_at: Timestamp
    # Of Linux; not in files of earlier versions
    boot: str = ""  # id of the machine's last start
    pid_namespace: str = ""
    pid_ticks: Count | None = None  # start of the process, in clock ticks after that of the machine
    renewed_at: Timestamp | None = None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {fmt.local_time(self.started_at)}"

    def has_exited(self, host: str) -> bool:
        """Tell whether it is a process that this one could see, on the machine `host`, and is gone."""
        if self.host != host or (self.boot and (self.boot, self.pid_namespace) != (_boot(), _pid_namespace())):
            return False
        import psutil

        if not psutil.pid_exists(self.pid):
            return True
        return self.pid_ticks is not None and _ticks(self.pid) not in (None, self.pid_ticks)  # a later process

    def is_unheard_of(self) -> bool:
        """Tell whether it has not renewed its note for long; an owner of an earlier version never does."""
        return self.renewed_at is not None and abs(time.time() - self.renewed_at) > UNHEARD_SECONDS


Owner = TypeVar("Owner", bound=LockOwner)


def this_process(host: str) -> LockOwner:
    """Return the owner that this process is."""
    now, pid = time.time(), os.getpid()
    return LockOwner(
        host=host,
        pid=pid,
        started_at=now,
        boot=_boot(),
        pid_namespace=_pid_namespace(),
        pid_ticks=_ticks(pid),
        renewed_at=now,
    )


def read_owner_file(kind: type[Owner], path: StoragePath) -> Owner | None:
    """Return the owner that a file names; None where there is none that can be read.

    Raises:
        StorageError: the object store does not answer.
    """
    with contextlib.suppress(ValueError):
        return value_of(kind, read_sealed(path) or b"")
    return None


def renewing(renew: Callable[[], bool], seconds: float) -> contextlib.AbstractContextManager[None]:
    """Call `renew` every few seconds in a thread while the block runs, until it returns False."""

    def go_on(done: threading.Event) -> None:
        goes_on = True
        while goes_on and not done.wait(seconds):
            with contextlib.suppress(StorageError, OSError):  # it may fail for a moment; the next time is soon
                goes_on = renew()

    return looping(go_on, "renewing a lock")


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _pid_namespace() -> str:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _ticks(pid: int) -> int | None:
    """Return the start of a process in ticks, which no clock that is set moves; None where it is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        _, _, fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")  # a name may hold anything
        return int(fields.split()[19])
    return None
