"""The `Tracker` interface, the values that trackers log, and the view that feeds a tracker."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Protocol, TypeAlias

from flops_fit_ray.ledger import Event, ExperimentResult, Failure, Ledger, Progress
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.planning import Experiment, Plan
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.paths import SCHEMA_VERSION

MAX_FAILURES = 3  # in a row; then a tracker is given up
CURVE = {"train_loss": "loss/train", "eval_loss": "loss/held_out", "lr": "lr", "grad_norm": "grad_norm"}


LoggedPoints: TypeAlias = Sequence[tuple[int, Mapping[str, float]]]  # step and values by name, in order of the steps


class Tracker(Protocol):
    """An external log of a sweep, with a run per experiment, kept over resumes. Methods may raise, or be slow."""

    name: str

    def progress(self, e: Experiment, points: LoggedPoints) -> None:
        """Log what a running experiment has come to, beyond the points that were logged before."""

    def outcome(self, e: Experiment, record: ExperimentResult | Failure, points: LoggedPoints) -> None:
        """Log the end of an experiment, with the points that are left."""

    def close(self) -> None:
        """Finish logging; runs that are open were interrupted."""


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


def curve_metrics(curve: Sequence[Mapping[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    """Return (step, values by metric name) for each step of a curve; training and evaluation may have a row each."""
    points: dict[int, dict[str, float]] = {}
    for row in curve:
        known = {tag: float(row[name]) for name, tag in CURVE.items() if row.get(name) is not None}
        points.setdefault(int(row["step"]), {}).update({**known, "tokens": float(row["tokens"])})
    return sorted(points.items())


class TrackerView:
    """A view of the ledger that feeds one tracker, and gives up after MAX_FAILURES errors in a row.

    `notes` holds the last step that was logged of each open experiment, so that a resumed sweep logs no point twice.
    """

    every = 10.0

    def __init__(self, tracker: Tracker, ledger: Ledger, say: Callable[[str], None]) -> None:
        self._tracker, self._ledger, self._say = tracker, ledger, say
        self._experiments: dict[str, Experiment] = {}
        self._notes = ledger.paths.tracked(tracker.name)
        self._logged: dict[str, int] = {}
        self._failures = 0  # in a row
        self._lost = 0
        self._warned = False

    def begin(self) -> None:
        """Read what was logged before. A tracker connects when it logs first."""
        known = (read_json(self._notes) or {}).get("steps")
        pairs = known.items() if isinstance(known, dict) else ()
        self._logged = {key: step for key, step in pairs if isinstance(step, int)} | self._logged

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
        """Log the points that the running experiments have come to since they were logged last."""
        before = dict(self._logged)
        for progress in running:
            e = self._experiments.get(progress.key)
            points = [] if e is None else self._points(progress.key)[:-1]  # the last step may yet be evaluated
            if e is None or not points:
                continue
            speed = progress.tokens_per_second
            steps, samples = e.rates(speed)
            now = {"tokens_per_second": speed, "steps_per_second": steps, "samples_per_second": samples}
            now["mfu"] = progress.mfu
            points[-1][1].update({name: value for name, value in now.items() if value is not None})
            if self._try(functools.partial(self._tracker.progress, e, points)):
                self._logged[e.key] = points[-1][0]
        self._note(before)

    def outcome(self, record: ExperimentResult | Failure, done: int, total: int) -> None:
        """Log the end of an experiment."""
        if (e := self._experiments.get(record.key)) is None:
            return
        points, before = self._points(e.key), dict(self._logged)
        if self._try(lambda: self._tracker.outcome(e, record, points), counts=True):
            if isinstance(record, ExperimentResult):
                self._logged.pop(e.key, None)  # logged again, it is another training
            elif points:
                self._logged[e.key] = points[-1][0]
        self._note(before)

    def _note(self, before: Mapping[str, int]) -> None:
        if self._logged != before:
            write_json(self._notes, {"schema_version": SCHEMA_VERSION, "steps": self._logged}, sealed=True)

    def _points(self, key: str) -> list[tuple[int, dict[str, float]]]:
        last = self._logged.get(key, -1)
        return [point for point in curve_metrics(self._ledger.curve_rows(key)) if point[0] > last]

    def end(self) -> None:
        """Close the tracker, and report what it did not log."""
        if self._failures < MAX_FAILURES:
            self._try(self._tracker.close)
        if self._lost:
            self._say(f"{self._tracker.name}: {self._lost} experiments were not logged; results.csv has them")

    def _try(self, act: Callable[[], None], *, counts: bool = False) -> bool:
        """Call a tracker, and return True if it did what it was asked for."""
        if self._failures >= MAX_FAILURES:
            self._lost += counts
            return False
        try:
            act()
        except Exception as e:  # noqa: BLE001 - third-party code; training does not depend on it
            self._failures += 1
            self._lost += counts
            if not self._warned:  # once: a call that succeeds in between does not make the next failure news
                self._warned = True
                self._say(f"{self._tracker.name} failed ({_first_line(e)}); training continues")
            return False
        if counts:  # an end that was logged: only that is worth going on for
            self._failures = 0
        return True


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
