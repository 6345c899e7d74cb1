"""Causes of death of a worker's process: Python's own stack where a signal or a hang ended it, else Ray's words."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import os
import re
import sysconfig
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from flops_fit_ray.background import looping
from flops_fit_ray.engine.resources import live_entries
from flops_fit_ray.errors import last_line
from flops_fit_ray.storage.atomic import read_json, write_bytes
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, is_remote, local_path

FETCH_SECONDS = 30.0  # for nodes to upload the stacks of a worker that died there
_NO_TRACE = "Worker unexpectedly exits with a connection error"  # Ray's words for any end that it does not know
_BROKEN = "is temporarily unavailable: RpcError"  # and for a node that is gone as well as for a process
_HUNG = "Timeout ("  # what the stack of a process begins with that gave no sign of life
_OUT_OF_MEMORY = re.compile(r"Memory on the node \(IP: ([^,)]+).*?was (\S+) used / (\S+) limit", re.DOTALL)
_NODE_DIED = re.compile(r"^.*\bnode\b.*\b(?:died|dead|terminated|preempted)\b.*$", re.MULTILINE | re.IGNORECASE)
KILLED = (
    "its process ended without a trace, as by SIGKILL: usually the kernel's out-of-memory killer (see dmesg), a limit "
    "of the container or scheduler, or a library that ends the process by itself"
)


@contextlib.contextmanager
def crashes_noted(paths: SweepPaths, key: str, timeout: float, rank: int = 0) -> Iterator[None]:
    """Let Python write its stack beside the experiment if a signal (SIGSEGV, SIGABRT, ...) or a hang ends the process.

    A process that crashes sends no request, so for a sweep in an object store the stack lies on its machine: a driver
    there reads it, one elsewhere has it uploaded (`upload_stacks`), and so does the next attempt on that machine.

    Args:
        timeout: seconds after which a process is ended in which no thread has run.
        rank: of the worker among those of the experiment.
    """
    path = _place_here(paths, key, rank)
    with contextlib.ExitStack() as until:
        with contextlib.suppress(OSError):  # a full disk: the training will hear of it
            if _take_up(paths, key, rank, path):
                until.callback(paths.crash(key, rank).unlink, missing_ok=True)
            file = until.enter_context(path.open("w"))  # a new attempt forgets the crash of the last
            faulthandler.enable(file, all_threads=False)
            until.callback(faulthandler.enable, all_threads=False)  # to stderr, as Ray has it
            until.callback(path.unlink, missing_ok=True)
            until.enter_context(_ended_if_hung(file, timeout))
        yield


def _place_here(paths: SweepPaths, key: str, rank: int) -> Path:
    """Return the file of this machine that a stack is written to."""
    noted = paths.crash(key, rank)
    if not is_remote(noted):
        return local_path(noted)
    sweep = hashlib.sha256(str(paths.root).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"flops-fit-ray-{os.getuid()}" / sweep / key / noted.name


def _take_up(paths: SweepPaths, key: str, rank: int, path: Path) -> bool:
    """Upload what an earlier attempt has left on this machine, or remove what its other workers have left.

    Returns:
        True if the store has a stack of an earlier attempt.
    """
    if not is_remote(paths.root):
        for other in paths.crashes(key) if rank == 0 else ():
            other.unlink(missing_ok=True)
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    upload_stacks(paths, key)
    return paths.crash(key, rank).exists()


def upload_stacks(paths: SweepPaths, key: str) -> None:
    """Move the stacks of an experiment that lie on this machine into the object store of its sweep.

    Raises:
        StorageError, OSError: they cannot be read or written.
    """
    for left in sorted(_place_here(paths, key, 0).parent.glob("crash*.txt")):
        if trace := left.read_bytes():
            write_bytes(paths.experiments / key / left.name, trace)
            left.write_bytes(b"")


def fetch_stacks(paths: SweepPaths, key: str, workers: int) -> None:
    """Have the stacks of an experiment whose process died uploaded by its node, unless they can be read from here.

    Args:
        workers: of the experiment; of several, each may have died on a node of its own.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not is_remote(paths.root) or _trace_of(paths, key):
        return
    host = (read_json(paths.attempt(key, paths.num_attempts(key))) or {}).get("host")
    tasks = []
    for name, node in live_entries().items():
        if workers > 1 or node["NodeManagerHostname"] == host:
            there = NodeAffinitySchedulingStrategy(name, soft=False)
            task = ray.remote(max_calls=1)(upload_stacks).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            tasks.append(task.remote(paths, key))
    if tasks:
        ray.wait(tasks, num_returns=len(tasks), timeout=FETCH_SECONDS)


def _ended_if_hung(file: TextIO, timeout: float) -> contextlib.AbstractContextManager[None]:
    """End the process, with its stack in `file`, once no thread of Python has run for `timeout` seconds.

    A call into C that holds Python's lock (the GIL) and does not return stops every thread, those too that give signs
    of life. The one that ends the process is not Python's. This one does nothing but put it off.
    """

    def put_off(done: threading.Event) -> None:
        while not done.is_set():
            faulthandler.dump_traceback_later(timeout, exit=True, file=file)
            done.wait(min(1.0, timeout / 20))
        faulthandler.cancel_dump_traceback_later()

    return looping(put_off, "hang watch")


def describe_death(paths: SweepPaths, key: str, said: str) -> tuple[str, str]:
    """Return in one line why the worker of an experiment died, and all that is known of it.

    Args:
        said: Ray's words; empty where it says nothing.
    """
    trace = _trace_of(paths, key)
    if trace:
        what, place = trace.splitlines()[0], _place(trace)
        if is_hang(trace):
            what = (
                f"no sign of life for {what.removeprefix(_HUNG).rstrip(')!')}, as a call holds Python's lock (the GIL)"
            )
        return what + (f" ({place})" if place else ""), "\n".join(filter(None, (trace, said)))
    return reason_of(said), said


def _trace_of(paths: SweepPaths, key: str) -> str:
    """Return the stack that a process of an experiment has left; empty without one."""
    here: Sequence[StoragePath] = ()
    if is_remote(paths.root):
        here = sorted(_place_here(paths, key, 0).parent.glob("crash*.txt"))
    with contextlib.suppress(OSError):
        for path in (*here, *paths.crashes(key)):
            if trace := path.read_bytes().decode(errors="replace").strip():
                return trace
    return ""


def is_hang(trace: str) -> bool:
    """Return True for the stack of a process that was ended because it gave no sign of life."""
    return trace.startswith(_HUNG)


def _place(trace: str) -> str:
    """Return the innermost line of the user's own code in a stack; else of a library's."""
    files = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    standard = sysconfig.get_path("stdlib")
    others = [f for f in files if "flops_fit_ray" not in f and (standard not in f or "site-packages" in f)]
    return next((place for place in others if "site-packages" not in place), others[0] if others else "")


def reason_of(said: str) -> str:
    """Return one line of Ray's page about the death of an actor."""
    if found := _OUT_OF_MEMORY.search(said):
        node, used, limit = found.groups()
        return (
            f"Ray's memory monitor killed it: {used} of {limit} were in use on its node {node}; let fewer run there at "
            "a time (--slots, or more in resources_per_trial), or take a node with more memory"
        )
    if found := _NODE_DIED.search(said):
        return f"its node was lost: {found.group().strip()}"
    if _BROKEN in said:
        return "the connection to its process broke: its node was lost, or the process was killed"
    words = last_line(said)
    return KILLED if not words or _NO_TRACE in words else words
