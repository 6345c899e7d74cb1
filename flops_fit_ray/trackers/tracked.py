"""What a tracker is told, and the View that tells it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from flops_fit_ray.ledger import Event, ExperimentResult, Failure, Ledger, Progress
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.planning import Experiment, Plan
from flops_fit_ray.storage.codec import columns_of

MAX_FAILURES = 3  # in a row, after which a tracker is not asked any more
CURVE = {"train_loss": "loss/train", "eval_loss": "loss/held_out", "lr": "lr", "grad_norm": "grad_norm"}


class Tracker(Protocol):
    """Somebody else's record of a sweep. Every method may raise and may take its time."""

    name: str

    def progress(self, e: Experiment, progress: Progress) -> None:
        """How far an experiment is."""

    def outcome(self, e: Experiment, record: ExperimentResult | Failure, curve: Sequence[Mapping[str, Any]]) -> None:
        """How it ended; `curve` has a row per point, as the ledger has it."""

    def close(self) -> None:
        """Nothing more will come."""


def run_name(e: Experiment) -> str:
    """The name of an experiment among the runs of a tracker: the same whenever it is told of."""
    role = {"grid": "", "seed": f"-seed{e.recipe.seed}"}.get(e.role, f"-{e.role}")
    size = "".join(c if c.isalnum() or c in "._-" else "-" for c in str(e.size))
    return f"C{e.budget:.3g}-size{size}{role}-{e.key[:8]}"


def config_of(e: Experiment) -> dict[str, float | int | str]:
    """What an experiment was made of, flat: what trackers call parameters or configuration."""
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
    """What came out, as floats: an integer beyond 64 bits, such as FLOPs, is too much for some of them."""
    tracked = (name for name, column in columns_of(ExperimentResult).items() if column.tracked)
    found = {**{name: getattr(record, name) for name in tracked}, **record.metrics}
    return {name: float(value) for name, value in found.items() if value is not None}


def points_of(curve: Sequence[Mapping[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    """Optimizer step, and the figures that are known there by the names that trackers show."""
    points = []
    for row in curve:
        known = {tag: float(row[name]) for name, tag in CURVE.items() if row.get(name) is not None}
        points.append((int(row["step"]), {**known, "tokens": float(row["tokens"])}))
    return points


class Tracked:
    """A View that hands on to one tracker, and gives up on it when it fails again and again."""

    every = 10.0

    def __init__(self, tracker: Tracker, ledger: Ledger, say: Callable[[str], None]) -> None:
        self._tracker, self._ledger, self._say = tracker, ledger, say
        self._experiments: dict[str, Experiment] = {}
        self._failures = 0
        self._lost = 0

    def begin(self) -> None:
        """Whatever it needs, it gets when it is told the first thing."""

    def plan(self, plan: Plan, done: int) -> None:
        """For the names of what comes."""
        self._experiments |= {e.key: e for e in plan.experiments}

    def cluster(self, cluster: Cluster) -> None:
        """Nothing that trackers know of."""

    def event(self, event: Event) -> None:
        """As above."""

    def progress(self, running: list[Progress], done: int, total: int) -> None:
        """How far everything is."""
        for progress in running:
            if (e := self._experiments.get(progress.key)) is not None:
                self._try(functools.partial(self._tracker.progress, e, progress))

    def outcome(self, record: ExperimentResult | Failure, done: int, total: int) -> None:
        """One experiment ended."""
        if (e := self._experiments.get(record.key)) is not None:
            self._try(lambda: self._tracker.outcome(e, record, self._ledger.curve_rows(e.key)), counts=True)

    def end(self) -> None:
        """Nothing more will come."""
        if self._failures < MAX_FAILURES:
            self._try(self._tracker.close)
        if self._lost:
            self._say(f"{self._tracker.name}: {self._lost} experiments could not be told; the ledger has them")

    def _try(self, act: Callable[[], None], *, counts: bool = False) -> None:
        if self._failures >= MAX_FAILURES:
            self._lost += counts
            return
        try:
            act()
        except Exception as e:  # noqa: BLE001 - somebody else's code, that no training depends on
            self._failures += 1
            self._lost += counts
            if self._failures == 1:
                self._say(f"{self._tracker.name} failed, and training goes on: {_first_line(e)}")
        else:
            self._failures = 0


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
