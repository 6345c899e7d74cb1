"""Connecting to Ray, and leaving it as it was found."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from flops_fit_ray.errors import ResourceError

# Read by Ray and Tune when they are imported or started; the user's own settings win.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0 the only silent pair
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # else workers change directory under the user's relative paths
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they import torch in the driver and write files nobody asked for
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours stops the sweep gracefully
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",  # the ledger holds what matters
}


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Ray for the time of a sweep: the given or surrounding cluster, else a local one that ends with the sweep.

    Raises:
        ResourceError: the cluster at `address` cannot be reached.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():  # the user's own program has started it, and ends it
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    local = where == "local"
    try:
        ray.init(
            address=where,
            include_dashboard=False if local else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise ResourceError(
            f"no Ray cluster could be reached at {where!r}: {e}; leave --address out to run here"
        ) from e
    try:
        yield
    finally:
        ray.shutdown()
