"""The `Tracker` interface, the values that trackers log, and the view that feeds a tracker."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Protocol

from flops_fit_ray.ledger import Event, ExperimentResult, Failure, Ledger, Progress
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.planning import Experiment, Plan
from flops_fit_ray.storage.codec import columns_of

MAX_FAILURES = 3  # in a row; then a tracker is given up
CURVE = {"train_loss": "loss/train", "eval_loss": "loss/held_out", "lr": "lr", "grad_norm": "grad_norm"}


class Tracker(Protocol):
    """An external log of a sweep. Methods may raise and may be slow."""

    name: str

    def progress(self, e: Experiment, progress: Progress) -> None:
        """Log the progress of a running experiment."""

    def outcome(self, e: Experiment, record: ExperimentResult | Failure, curve: Sequence[Mapping[str, Any]]) -> None:
        """Log the result or failure of an experiment; `curve` has a row per point."""

    def close(self) -> None:
        """Finish logging."""


def run_name(e: Experiment) -> str:
    """Return the name of an experiment's run, the same each time it is logged."""
    role = {"grid": "", "seed": f"-seed{e.recipe.seed}"}.get(e.role, f"-{e.role}")
    size = "".join(c if c.isalnum() or c in "._-" else "-" for c in str(e.size))
    return f"C{e.budget:.3g}-size{size}{role}-{e.key[:8]}"


def config_of(e: Experiment) -> dict[str, float | int | str]:
    """Return the hyperparameters of an experiment as a flat dict."""
    recipe = e.recipe
    return {
        "budget": e.budget,
        "size": e.size,
        "params": e.params,
        "tokens": e.tokens,
        "steps": e.steps,
        "batch_size": recipe.batch_size,
        "lr": recipe.lr,
        "optimizer": recipe.optimizer,
        "schedule": recipe.schedule,
        "precision": recipe.precision,
        "seed": recipe.seed,
        "role": e.role,
    }


def measured_of(record: ExperimentResult) -> dict[str, float]:
    """Return the measured values as floats: FLOPs may exceed the 64-bit integers of some trackers."""
    tracked = (name for name, column in columns_of(ExperimentResult).items() if column.tracked)
    found = {**{name: getattr(record, name) for name in tracked}, **record.metrics}
    return {name: float(value) for name, value in found.items() if value is not None}


def curve_metrics(curve: Sequence[Mapping[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    """Return (step, values by metric name) for each point of a curve."""
    points = []
    for row in curve:
        known = {tag: float(row[name]) for name, tag in CURVE.items() if row.get(name) is not None}
        points.append((int(row["step"]), {**known, "tokens": float(row["tokens"])}))
    return points


class TrackerView:
    """A view of the ledger that feeds one tracker, and gives up after MAX_FAILURES errors in a row."""

    every = 10.0

    def __init__(self, tracker: Tracker, ledger: Ledger, say: Callable[[str], None]) -> None:
        self._tracker, self._ledger, self._say = tracker, ledger, say
        self._experiments: dict[str, Experiment] = {}
        self._failures = 0  # in a row
        self._lost = 0
        self._warned = False

    def begin(self) -> None:
        """Do nothing: a tracker connects when it logs first."""

    def plan(self, plan: Plan, done: int) -> None:
        """Remember the planned experiments."""
        self._experiments |= {e.key: e for e in plan.experiments}

    def cluster(self, cluster: Cluster) -> None:
        """Do nothing: trackers do not log the cluster."""

    def reopened(self, keys: Set[str]) -> None:
        """Do nothing: the run of an experiment that is tried again is gone on with."""

    def event(self, event: Event) -> None:
        """Do nothing: trackers do not log events."""

    def progress(self, running: list[Progress], done: int, total: int) -> None:
        """Log the progress of the running experiments."""
        for progress in running:
            if (e := self._experiments.get(progress.key)) is not None:
                self._try(functools.partial(self._tracker.progress, e, progress))

    def outcome(self, record: ExperimentResult | Failure, done: int, total: int) -> None:
        """Log the end of an experiment."""
        if (e := self._experiments.get(record.key)) is not None:
            self._try(lambda: self._tracker.outcome(e, record, self._ledger.curve_rows(e.key)), counts=True)

    def end(self) -> None:
        """Close the tracker, and report what it did not log."""
        if self._failures < MAX_FAILURES:
            self._try(self._tracker.close)
        if self._lost:
            self._say(f"{self._tracker.name}: {self._lost} experiments were not logged; results.csv has them")

    def _try(self, act: Callable[[], None], *, counts: bool = False) -> None:
        if self._failures >= MAX_FAILURES:
            self._lost += counts
            return
        try:
            act()
        except Exception as e:  # noqa: BLE001 - third-party code; training does not depend on it
            self._failures += 1
            self._lost += counts
            if not self._warned:  # once: a call that succeeds in between does not make the next failure news
                self._warned = True
                self._say(f"{self._tracker.name} failed ({_first_line(e)}); training continues")
        else:
            if counts:  # progress is nothing to some trackers, and then always succeeds
                self._failures = 0


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
