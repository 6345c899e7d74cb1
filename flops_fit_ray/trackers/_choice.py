"""Trackers of a spec."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

from flops_fit_ray.errors import SpecError
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.ledger.watch import Watcher
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import is_remote, local_path
from flops_fit_ray.trackers._mlflow import Mlflow
from flops_fit_ray.trackers._tensorboard import TensorBoard
from flops_fit_ray.trackers._tracked import Tracker, TrackerView
from flops_fit_ray.trackers._wandb import Wandb

POLL_SECONDS = 5.0  # between reads of the ledger
CLOSE_SECONDS = 30.0  # for a tracker to finish after the sweep


def check_installed(spec: SweepSpec) -> None:
    """Check that the trackers of a spec are installed.

    Raises:
        SpecError: one is not.
    """
    asked = [name for name in ("wandb", "mlflow") if getattr(spec.trackers, name) is not None]
    faults = [
        f"trackers.{name}: {name} is not installed; run pip install 'flops-fit-ray[{name}]', or remove trackers.{name}"
        for name in asked
        if importlib.util.find_spec(name) is None
    ]
    if faults:
        raise SpecError("spec", faults)


def watchers_for(spec: SweepSpec, paths: SweepPaths, say: Callable[[str], None]) -> list[Watcher]:
    """Create a watcher per tracker, each with its own thread."""
    ledger = Ledger(paths)
    return [
        Watcher(
            TrackerView(tracker, ledger, say),
            poll_seconds=POLL_SECONDS,
            time_limit=CLOSE_SECONDS,
            name=tracker.name,
            say=say,
        )
        for tracker in _trackers(spec, paths)
    ]


def _trackers(spec: SweepSpec, paths: SweepPaths) -> Iterator[Tracker]:
    asked = spec.trackers
    if asked.tensorboard and not is_remote(paths.root):  # its files are appended to, which object stores do not support
        yield TensorBoard(local_path(paths.tensorboard))
    if asked.wandb is not None:
        yield Wandb(asked.wandb, spec.name, None if is_remote(paths.root) else local_path(paths.wandb))
    if asked.mlflow is not None:
        yield Mlflow(asked.mlflow, spec.name)
