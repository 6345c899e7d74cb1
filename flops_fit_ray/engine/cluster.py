"""Connection to Ray for the time of a sweep."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from flops_fit_ray.engine.interrupt import AskedToStop, keeping_handlers
from flops_fit_ray.engine.processes import HEAD, end_all, ray_descendants
from flops_fit_ray.errors import HeadLostError, ResourceError

CONNECT_SECONDS = 5.0
HEAD_POLL_SECONDS = 2.0
HEAD_LOST_SECONDS = 10.0
SHUTDOWN_SECONDS = 10.0

# Read by Ray and Tune when they are imported or started; the user's own settings win.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # silences Tune together with verbose=0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # else workers change directory under the user's relative paths
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they import torch in the driver, and write files of their own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours stops the sweep gracefully
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",  # the ledger holds the results
}


def check_port(host: str, port: int) -> None:
    """Open and close a connection.

    Raises:
        OSError: the port cannot be reached.
    """
    socket.create_connection((host.strip("[]"), port), timeout=CONNECT_SECONDS).close()


class Head:
    """The head of the cluster, and whether it is still reachable.

    Ray itself tries for a minute, and then ends the process with no advice on how to resume.
    """

    def __init__(self, address: str, *, local: bool) -> None:
        self.address = address
        self.local = local  # started on this machine, for the time of the sweep
        self._tried = self._reached = time.monotonic()

    def grows_to(self, max_slots: int | None) -> int | None:
        """Return the number of slots that an autoscaler may be asked for; None if the cluster does not grow."""
        return None if self.local else max_slots

    def is_reachable(self) -> bool:
        """Try to connect now."""
        host, _, port = self.address.rpartition(":")
        try:
            check_port(host, int(port))
        except OSError:
            return False
        return True

    def check(self) -> None:
        """Try to connect every few seconds. Fast, unless the head is unreachable.

        Raises:
            HeadLostError: it has been unreachable for a while.
        """
        now = time.monotonic()
        if now - self._tried < HEAD_POLL_SECONDS:
            return
        self._tried = now
        if self.is_reachable():
            self._reached = time.monotonic()
        elif time.monotonic() - self._reached > HEAD_LOST_SECONDS:
            raise HeadLostError(f"the head of the Ray cluster at {self.address} is not reachable any more")


def runs_here(address: str | None) -> bool:
    """Tell whether a sweep would start Ray on this machine, for its own time."""
    ray = sys.modules.get("ray")
    running = ray is not None and ray.is_initialized()
    return not running and _where(address) == "local"


def _where(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or "local"


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[Head]:
    """Connect to the given or surrounding cluster, else to a local one that is started here and ends with the block.

    Raises:
        ResourceError: the cluster at `address` cannot be reached.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():  # the user's own program started it, and stops it
        yield _head(local=False)
        return
    where = _where(address)
    local = where == "local"
    if not local:
        check_reachable(where)
    try:
        with keeping_handlers():  # Ray takes SIGTERM for itself
            ray.init(
                address=where,
                include_dashboard=False if local else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise ResourceError(
            f"no Ray cluster could be reached at {where!r}: {e}; leave out --address to run on this machine"
        ) from e
    # Tune would log a page per trial, all of which is in its results too; and what Ray logs while it is shut down in
    # the middle of something would follow our last line.
    logs = [logging.getLogger(name) for name in ("ray.tune", "ray._private.services")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    head = _head(local=local)
    try:
        yield head
    except AskedToStop:
        if local:  # Ray's own shutdown waits for each of its processes, which takes too long now
            end_all(ray_descendants(besides=HEAD))  # without the head, the shutdown takes longer
        raise
    finally:
        _shut_down(head)
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _head(*, local: bool) -> Head:
    import ray

    return Head(str(ray.get_runtime_context().gcs_address), local=local)


def _shut_down(head: Head) -> None:
    """Shut Ray down. Without a head that may take for ever, so it is given a limited time."""
    import ray

    if head.is_reachable():
        ray.shutdown()
        return
    orphans = ray_descendants() if head.local else set()  # found while their parents are alive
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(SHUTDOWN_SECONDS)
    end_all(orphans)


def check_reachable(address: str) -> None:
    """Check that a cluster's address is reachable: Ray itself tries for many minutes.

    Raises:
        ResourceError: it is not, or it is of a kind that is not supported.
    """
    way_out = "leave out --address (and unset RAY_ADDRESS) to run on this machine"
    if "://" in address:
        raise ResourceError(f"{address!r} is a Ray client address, which is not supported; submit a job, or {way_out}")
    if address == "auto":
        temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - Ray's own choice
        note = Path(temporary) / "ray" / "ray_current_cluster"
        try:
            address = note.read_text().strip()
        except OSError as e:
            raise ResourceError(f"no Ray cluster is running on this machine; {way_out}") from e
    host, _, port = address.rpartition(":")
    try:
        check_port(host, int(port))
    except ValueError as e:
        raise ResourceError(f"{address!r} is not host:port, 'auto' or 'local'; correct it, or {way_out}") from e
    except OSError as e:
        raise ResourceError(f"{address} cannot be reached: {e}; start the cluster, or {way_out}") from e
