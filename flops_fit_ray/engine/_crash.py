"""Causes of death of a worker's process: Python's own stack where a signal ended it, else what usually leaves none."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Iterator

from flops_fit_ray.errors import last_line
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import is_remote, local_path

_NO_TRACE = "Worker unexpectedly exits with a connection error"  # Ray's words for any end that it does not know
KILLED = (
    "its process ended without a trace, as by SIGKILL: usually the kernel's out-of-memory killer (see dmesg), a limit "
    "of the container or scheduler, or a library that ends the process by itself"
)


@contextlib.contextmanager
def crashes_noted(paths: SweepPaths, key: str) -> Iterator[None]:
    """Let Python write its stack beside the experiment if a signal (SIGSEGV, SIGABRT, ...) ends the process.

    In an object store nothing is written: a process that crashes sends no request.
    """
    if is_remote(paths.root):
        yield
        return
    path = local_path(paths.crash(key))
    with contextlib.ExitStack() as until:
        with contextlib.suppress(OSError):  # a full disk: the training will hear of it
            file = until.enter_context(path.open("w"))  # a new attempt forgets the crash of the last
            faulthandler.enable(file, all_threads=False)
            until.callback(faulthandler.enable, all_threads=False)  # to stderr, as Ray has it
            until.callback(path.unlink, missing_ok=True)
        yield


def describe_death(paths: SweepPaths, key: str, said: str) -> tuple[str, str]:
    """Return in one line why the worker of an experiment died, and all that is known of it.

    Args:
        said: Ray's words; empty where it says nothing.
    """
    trace = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        trace = paths.crash(key).read_bytes().decode().strip()
    lines = trace.splitlines()
    if lines:
        places = [line.strip() for line in lines if line.strip().startswith("File ") and "flops_fit_ray" not in line]
        place = next((place for place in places if "site-packages" not in place), places[0] if places else "")
        return lines[0] + (f" ({place})" if place else ""), "\n".join(filter(None, (trace, said)))
    words = last_line(said)
    return (KILLED if not words or _NO_TRACE in words else words), said
