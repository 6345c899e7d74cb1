"""Connecting to Ray, and leaving it as it was found."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil

from flops_fit_ray.engine._authentication import ensure_token, token_fault
from flops_fit_ray.engine._crash import reason_of
from flops_fit_ray.engine._local_limits import own_temporary, short_temporary, usable_cores
from flops_fit_ray.engine._ray_start import (
    keeping_sigterm,
    native_stderr_to,
    sessions_of_their_own,
    without_idle_services,
)
from flops_fit_ray.engine.interrupt import AskedToStop
from flops_fit_ray.engine.processes import HEAD, end_all, ray_descendants
from flops_fit_ray.errors import HeadLostError, InterruptedSweepError, ResourceError, first_line
from flops_fit_ray.waiting import tell, waiting

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job server
CLIENT_WAY_OUT = "which is not supported; submit a job (flops-fit-ray submit)"
CONNECT_SECONDS = 5.0
HEAD_ASK_SECONDS = 2.0
HEAD_LOST_SECONDS = 10.0
LEAVE_SECONDS = 10.0
SIGNAL_SECONDS = 1.0  # for the signal to arrive that ended the raylet: whoever signals everything signals us
RAY_SECONDS = 10.0  # that Ray may take to start on this machine without a word about it

# Read by Ray and Tune when they are imported or started; the user's own settings win.
_DEFAULTS = {
    "PYTHONHASHSEED": "0",  # of all workers, so that the order of a set of strings is the same in each
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0 the only silent pair
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # else workers change directory under the user's relative paths
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray starts an idle worker per core in advance; Tune's workers have an environment of their own and never use them
    "RAY_prestart_worker_first_driver": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they import torch in the driver and write files nobody asked for
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours stops the sweep gracefully
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",  # the ledger holds what matters
}


def knock(host: str, port: int) -> None:
    """Make sure that somebody listens there.

    Raises:
        OSError: nobody does.
    """
    socket.create_connection((host.strip("[]"), port), timeout=CONNECT_SECONDS).close()


class Head:
    """The head of the cluster, and whether it still answers.

    Ray itself tries for a minute, and then ends the process without a word of how to go on.
    """

    def __init__(self, address: str, *, local: bool, raylet: psutil.Process | None = None) -> None:
        self.address = address
        self.local = local  # it is this machine alone, for the time of the sweep
        self._raylet = raylet  # of this machine, without which Ray ends this process; None: not known
        self._asked = self._answered = time.monotonic()
        self._lost_at: float | None = None

    def grows_to(self, max_slots: int | None) -> int | None:
        """The experiments at a time that the cluster may be asked to grow to; None where it does not grow."""
        return None if self.local else max_slots

    @property
    def lost_raylet(self) -> bool:
        """Return True if the raylet of this machine has died: Ray ends this process some 10 s after it."""
        if self._raylet is None:
            return False
        try:
            return self._raylet.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def answers(self) -> bool:
        """Return True if the head answers now."""
        host, _, port = self.address.rpartition(":")
        try:
            knock(host, int(port))
        except OSError:
            return False
        return True

    def check(self) -> None:
        """Ask now and then. Quick, unless nobody answers.

        Raises:
            HeadLostError: nobody has answered for a while, or this machine has left the cluster.
        """
        now = time.monotonic()
        if self.lost_raylet:
            self._lost_at = self._lost_at or now
            if now - self._lost_at > SIGNAL_SECONDS:
                raise HeadLostError("the raylet of this machine has died, and Ray with it")
            return
        if now - self._asked < HEAD_ASK_SECONDS:
            return
        self._asked = now
        if self.answers():
            self._answered = time.monotonic()
        elif time.monotonic() - self._answered > HEAD_LOST_SECONDS:
            raise HeadLostError(f"the head of the Ray cluster at {self.address} does not answer any more")


def runs_here(address: str | None) -> bool:
    """Return True if Ray would be started on this machine alone, for the time of a sweep."""
    ray = sys.modules.get("ray")
    running = ray is not None and ray.is_initialized()
    return not running and _where(address) == "local"


def _where(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or "local"


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[Head]:
    """Ray for the time of a sweep: the given or surrounding cluster, else a local one that ends with the sweep.

    Raises:
        ResourceError: the cluster at `address` cannot be reached, or Ray cannot be started here.
        InterruptedSweepError: a process of Ray died that the block waited for.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():  # the user's own program has started it, and ends it
        from ray.util.client import ray as client

        if client.is_connected():  # type: ignore[no-untyped-call] # Ray leaves it untyped
            raise ResourceError(f"this program is connected to Ray as a client, {CLIENT_WAY_OUT}")
        with _quiet_logs(), deaths_in_words():
            yield _head(local=False)
        return
    where = _where(address)
    local = where == "local"
    _start_here() if local else _connect(where)
    with _quiet_logs():
        head = _head(local=local)
        try:
            with deaths_in_words():
                yield head
        except AskedToStop:
            if local:  # nobody waits for anything any more, and Ray's own shutdown waits for each of its processes
                end_all(ray_descendants(besides=HEAD))  # without its head it takes longer
            raise
        finally:
            _leave(head)


@contextlib.contextmanager
def deaths_in_words() -> Iterator[None]:
    """Turn what Ray raises where one of its processes or nodes is lost into one line. What a worker raised stays.

    Raises:
        InterruptedSweepError: such a loss.
    """
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayError as e:
        if isinstance(e, RayTaskError):
            raise
        raise InterruptedSweepError(f"Ray lost a process that was waited for: {reason_of(str(e))}") from e


def _connect(where: str) -> None:
    import ray

    check_reachable(where)
    with tempfile.TemporaryFile() as native:
        try:
            with (
                waiting(f"connecting to the Ray cluster at {where}"),
                keeping_sigterm(),
                native_stderr_to(native),
            ):
                ray.init(
                    address=where,
                    runtime_env=_worker_environment(),
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except Exception as e:  # Ray raises ConnectionError, ValueError, RuntimeError and errors of its own
            native.seek(0)
            said = native.read().decode(errors="replace")
            fault = token_fault(f"{e}\n{said}", where)
            if fault is None:
                fault = f"no Ray cluster could be reached at {where!r}: {first_line(e)}"
            raise ResourceError(f"{fault}; leave --address out to run here") from e


def _start_here() -> None:
    import ray

    own = own_temporary()
    temporary, reason = short_temporary(own)
    if reason:
        tell(reason)
    if kept := ensure_token():
        tell(kept)
    cores, there = usable_cores(), os.cpu_count() or 1
    if cores < there:
        tell(f"{cores} of the {there} cores of this machine may be used (affinity or CPU quota)")
    try:
        with (
            waiting("starting Ray", RAY_SECONDS),
            keeping_sigterm(),
            sessions_of_their_own(),
            without_idle_services(),
        ):
            ray.init(
                address="local",
                num_cpus=cores,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(temporary / "ray") if reason else None,
            )
    except AskedToStop:
        end_all(ray_descendants())
        raise
    except Exception as e:  # Ray raises OSError, RuntimeError and Exception itself, with a page of words
        way_out = f"its logs are in {temporary}/ray/session_latest/logs, and RAY_TMPDIR moves its files"
        if "RAY_AUTH_TOKEN_PATH" in str(e):
            way_out = "unset RAY_AUTH_TOKEN_PATH, or let it name a file with a token"
        elif "timed out" in str(e):
            way_out = f"where a machine is only slow, RAY_raylet_start_wait_time_s=120 gives it longer; {way_out}"
        raise ResourceError(f"Ray could not be started here: {first_line(e)}; {way_out}") from e


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep what Ray and Tune log from the terminal.

    What Tune says of its trials is read from its results; its log would print a page for each. And what Ray finds to
    say while it is ended in the middle of something would come after our last line.
    """
    logs = [logging.getLogger(name) for name in ("ray.tune", "ray._private.services")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _worker_environment() -> dict[str, Any] | None:
    """Return the runtime environment of our workers on a cluster that runs already; None where the job sets it."""
    job = os.environ.get(JOB_CONFIG) or "{}"
    if "PYTHONHASHSEED" in json.dumps(json.loads(job).get("runtime_env") or {}):
        return None  # Ray refuses a variable that is set twice
    return {"env_vars": {"PYTHONHASHSEED": os.environ["PYTHONHASHSEED"]}}


def _head(*, local: bool) -> Head:
    import ray

    return Head(str(ray.get_runtime_context().gcs_address), local=local, raylet=_own_raylet())


def _own_raylet() -> psutil.Process | None:
    """Find the process of Ray that this one depends on; None where it cannot be seen."""
    node = getattr(importlib.import_module("ray._private.worker"), "_global_node", None)
    socket_name = str(getattr(node, "raylet_socket_name", ""))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if (
                socket_name
                and words
                and words[0].endswith("raylet")
                and any(word.endswith(socket_name) for word in words)
            ):
                return process
    return None


def _leave(head: Head) -> None:
    """End our part of Ray. Without a head that may take for ever, and is not waited for."""
    import ray

    if head.answers() and not head.lost_raylet:
        ray.shutdown()
        return
    orphans = ray_descendants() if head.local else set()  # while their parents live
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(LEAVE_SECONDS)
    end_all(orphans)


def check_reachable(address: str) -> None:
    """Make sure that somebody answers at a cluster's address: Ray itself tries for many minutes.

    Raises:
        ResourceError: nobody does, or the address is of a kind that is not supported.
    """
    way_out = "leave --address out (and RAY_ADDRESS unset) to run here"
    if "://" in address:
        raise ResourceError(f"{address!r} is a Ray client address, {CLIENT_WAY_OUT}, or {way_out}")
    if address == "auto":
        note = own_temporary() / "ray" / "ray_current_cluster"
        try:
            address = note.read_text().strip()
        except OSError as e:
            raise ResourceError(f"no Ray cluster runs on this machine; {way_out}") from e
    host, _, port = address.rpartition(":")
    try:
        knock(host, int(port))
    except ValueError as e:
        raise ResourceError(f"{address!r} is not host:port, 'auto' or 'local'; {way_out}") from e
    except OSError as e:
        raise ResourceError(f"nobody answers at {address}: {e}; {way_out}") from e
