"""Names in requests and their files: checked by pattern, inside the root, never through a symbolic link."""

from __future__ import annotations

import os
import re
import stat
from typing import BinaryIO

from flops_fit_ray.service.http.request_error import not_found
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.storage.opening import open_below
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, local_path

SWEEP = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
BINNED = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.[0-9a-f]{8}$"  # a deleted sweep
SPEC = r"^[0-9a-f]{16}$"
KEY = r"^[0-9a-f]{8,64}$"  # of an experiment
CHECKPOINT = r"^[0-9a-f]{8,64}-(?:[ct][0-9]{1,10}|w)$"  # experiment; checkpoint or trunk with its step, or weights


def sweep_directory(paths: ServicePaths, name: str) -> SweepPaths:
    """Return the directory of a sweep, which may not exist yet.

    Raises:
        RequestError: this cannot be a sweep's name, or it is a symbolic link.
    """
    found = paths.sweep(name)
    if not is_sweep(name) or local_path(found.root).is_symlink():
        raise not_found("sweep")
    return found


def opened(path: StoragePath, root: StoragePath, what: str) -> BinaryIO:
    """Open a file below `root` without following any symbolic link.

    Raises:
        RequestError: there is no regular file, or a link is in its path.
    """
    try:
        file = open_below(local_path(path), local_path(root))
    except OSError as e:
        raise not_found(what) from e
    if not _is_regular(file):
        os.close(file)
        raise not_found(what)
    return os.fdopen(file, "rb")


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def is_sweep(name: str) -> bool:
    """Return True if a sweep can have this name."""
    return re.fullmatch(SWEEP, name) is not None
