"""Limits of this machine that Ray does not know of: cores that may really be used, and the length of socket paths."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

from flops_fit_ray.errors import ResourceError

SOCKET_BYTES = 107  # of the path of a Unix socket, on Linux
# What Ray adds to its temporary directory: /ray/session_2026-01-31_12-59-59_123456_4194304/sockets/plasma_store
RAY_ADDS_BYTES = len("/ray/session_") + len("2026-01-31_12-59-59_123456_4194304") + len("/sockets/plasma_store")
SHORT_PLACES = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))  # noqa: S108 - Ray makes a directory of its own there
CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Count the cores that this process may use: by its affinity (taskset, Slurm) and its CPU quota (containers)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(allowed, cpu_quota(CGROUPS, MEMBERSHIP))))


def cpu_quota(cgroups: Path, membership: Path) -> float:
    """Return the smallest CPU quota of this process's control groups, in cores; infinite without one.

    Args:
        cgroups: where control groups are mounted.
        membership: lines `number:controllers:path` of this process; version 2 has number 0 and no controllers.
    """
    quotas = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                quotas += _quotas(cgroups, path, "cpu.max")
            elif "cpu" in controllers.split(","):
                quotas += _quotas(cgroups / controllers, path, "cpu.cfs_quota_us")
                quotas += _quotas(cgroups / "cpu", path, "cpu.cfs_quota_us")
    return min(quotas)


def _quotas(mount: Path, path: str, name: str) -> Iterator[float]:
    """Yield the quota of a group and of those around it, as far as they can be seen from inside a container."""
    inner = Path(path.lstrip("/"))
    for group in (inner, *inner.parents):
        with contextlib.suppress(OSError, ValueError):
            words = (mount / group / name).read_text().split()
            if name != "cpu.max":
                words += (mount / group / "cpu.cfs_period_us").read_text().split()
            quota, period = words
            if quota not in ("max", "-1"):
                yield float(quota) / float(period)


def own_temporary() -> Path:
    """Return the temporary directory that Ray would take."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - Ray's own choice


def short_temporary(own: Path, places: tuple[Path, ...] = SHORT_PLACES) -> tuple[Path, str]:
    """Return a temporary directory for Ray's sockets and logs, and why it is not its `own`, or "".

    Raises:
        ResourceError: none is short enough and can be written.
    """
    most = SOCKET_BYTES - RAY_ADDS_BYTES
    length = len(os.fsencode(own.absolute()))
    if length > most:
        reason = f"{own} has {length} bytes, and Ray's sockets allow {most}"
    elif not _writable(own):
        reason = f"{own} cannot be written"
    else:
        return own, ""
    for place in places:
        if _writable(place):
            return place, f"{reason}: Ray's temporary files go to {place}"
    raise ResourceError(f"{reason}; set RAY_TMPDIR to a short directory that can be written")


def _writable(directory: Path) -> bool:
    there = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
