"""Changes to how Ray starts and connects, each for the time of a block."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

from flops_fit_ray.engine.interrupt import keeping_handlers

IDLE_SERVICES = ("start_monitor", "start_api_server", "start_log_monitor")  # of Ray's Node


@contextlib.contextmanager
def keeping_sigterm() -> Iterator[None]:
    """Keep our handlers while the block runs: Ray begins with one that exits with the number of SIGTERM."""
    utils: Any = importlib.import_module("ray._private.utils")
    take = getattr(utils, "set_sigterm_handler", None)
    if take is not None:
        utils.set_sigterm_handler = lambda _: None
    try:
        with keeping_handlers():  # another version of Ray may take it in another way
            yield
    finally:
        if take is not None:
            utils.set_sigterm_handler = take


@contextlib.contextmanager
def without_idle_services() -> Iterator[None]:
    """Leave out, while the block runs, what Ray would start and nobody uses: autoscaler, dashboard and log monitor.

    A session of one driver on one machine has nothing to scale and prints no worker's log. They cost half of the CPU
    time of a start. Another version of Ray, which starts them by other names, starts them all.
    """
    node = importlib.import_module("ray._private.node").Node
    kept = {name: getattr(node, name) for name in IDLE_SERVICES if hasattr(node, name)}
    for name in kept:
        setattr(node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in kept.items():
            setattr(node, name, start)


@contextlib.contextmanager
def sessions_of_their_own() -> Iterator[None]:
    """Start Ray's processes, while the block runs, where a signal to our process group does not reach them.

    Terminals, `timeout` and Slurm signal the whole group. The signal is for this process: Ray has to live until its
    experiments are saved. The kernel still ends it with us, which on other systems takes the group itself.
    """
    services: Any = importlib.import_module("ray._private.services")
    popen = services.ConsolePopen
    if sys.platform == "linux":
        services.ConsolePopen = functools.partial(popen, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = popen


@contextlib.contextmanager
def native_stderr_to(file: IO[bytes]) -> Iterator[None]:
    """Send to `file` what native code writes to stderr while the block runs; Python's own lines go where they went.

    Ray's core says in a page of lines, and nowhere else, why it cannot connect.
    """
    try:
        shared = os.path.sameopenfile(sys.stderr.fileno(), 2)
    except (OSError, ValueError):  # a stream that is no file
        shared = False
    if not shared:
        yield
        return
    ours, kept = sys.stderr, os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding)
    ours.flush()
    os.dup2(file.fileno(), 2)
    sys.stderr = kept
    try:
        yield
    finally:
        sys.stderr = ours
        kept.flush()
        os.dup2(kept.fileno(), 2)
        kept.close()
