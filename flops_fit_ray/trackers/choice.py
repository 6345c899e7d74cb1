"""The trackers that a spec asks for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

from flops_fit_ray.errors import SpecError
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.ledger.watch import Watcher
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import is_remote, local_path
from flops_fit_ray.trackers.mlflow import Mlflow
from flops_fit_ray.trackers.tensorboard import TensorBoard
from flops_fit_ray.trackers.tracked import Tracked, Tracker
from flops_fit_ray.trackers.wandb import Wandb

POLL_SECONDS = 5.0  # between looks at the ledger
PATIENCE = 30.0  # seconds that a tracker has to come to its end, once the sweep has


def check_installed(spec: SweepSpec) -> None:
    """Make sure that what was asked for by name can be imported.

    Raises:
        SpecError: it is not installed.
    """
    asked = [name for name in ("wandb", "mlflow") if getattr(spec.trackers, name) is not None]
    faults = [
        f"trackers.{name}: {name} is not installed; pip install 'flops-fit-ray[{name}]', or leave it out"
        for name in asked
        if importlib.util.find_spec(name) is None
    ]
    if faults:
        raise SpecError("spec", faults)


def watchers_for(spec: SweepSpec, paths: SweepPaths, say: Callable[[str], None]) -> list[Watcher]:
    """Those who tell each tracker, every one in a thread of its own."""
    ledger = Ledger(paths)
    return [
        Watcher(
            Tracked(tracker, ledger, say), poll_seconds=POLL_SECONDS, time_limit=PATIENCE, name=tracker.name, say=say
        )
        for tracker in _trackers(spec, paths)
    ]


def _trackers(spec: SweepSpec, paths: SweepPaths) -> Iterator[Tracker]:
    asked = spec.trackers
    if asked.tensorboard and not is_remote(paths.root):  # its files grow line by line, which no object store lets them
        yield TensorBoard(local_path(paths.tensorboard))
    if asked.wandb is not None:
        yield Wandb(asked.wandb, spec.name, None if is_remote(paths.root) else local_path(paths.wandb))
    if asked.mlflow is not None:
        yield Mlflow(asked.mlflow, spec.name)
