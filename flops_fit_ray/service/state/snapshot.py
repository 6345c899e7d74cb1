"""One sweep directory at one moment, and its experiments as rows of a table."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flops_fit_ray.console.live_state import NodeUse, flops_under_way, measured_rates, node_uses, seconds_left
from flops_fit_ray.ledger import ExperimentResult, Failure, Ledger, Progress
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.planning import Experiment
from flops_fit_ray.service.http.redact import redacted
from flops_fit_ray.sweep.directory import Sweep

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One sweep directory at one moment. `version` grows with every outcome and with the plan."""

    sweep: Sweep
    version: str
    flops_planned: float
    rows: tuple[Row, ...]  # one per planned experiment, in the plan's order
    kept: dict[Any, list[Row]] = field(default_factory=dict)  # filtered and sorted rows, by the request

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """Numbers of experiments by status, without zeros."""
        return {status: number for status, number in self.sweep.counts.items() if number}

    @functools.cached_property
    def by_key(self) -> Mapping[str, Row]:
        """Rows by the keys of their experiments."""
        return {row["key"]: row for row in self.rows}

    @functools.cached_property
    def experiments(self) -> Mapping[str, Experiment]:
        """Planned experiments by their keys."""
        return {e.key: e for e in self.sweep.plan.experiments}

    @functools.cached_property
    def facts(self) -> Mapping[str, Any]:
        """Progress of the sweep, for its view."""
        sweep, planned = self.sweep, self.flops_planned
        share = min(1.0, self.flops_done / planned) if planned else 0.0
        return {
            "version": self.version,
            "counts": self.counts,
            "total": len(sweep.plan.experiments),
            "final": sweep.plan.final,
            "flops_planned": planned,
            "flops_done": self.flops_done,
            "share": 1.0 if sweep.complete else share,
            "seconds_left": self.seconds_left,
            "device_seconds": sweep.device_seconds,
            "deaths": sweep.num_deaths,
            "started_at": self.started_at,
            "last_at": max(self.newest, max((p.updated_at for _, p in sweep.running), default=0.0)) or None,
            "budgets": sorted({e.budget for e in sweep.plan.experiments}),
            "results_sha256": sweep.results_sha256 if sweep.complete else None,
        }

    @functools.cached_property
    def newest(self) -> float:
        """Time of the last outcome, in seconds since the epoch; 0 before the first."""
        return max((row["finished_at"] for row in self.rows if row["finished_at"] is not None), default=0.0)

    @functools.cached_property
    def started_at(self) -> float | None:
        """Time at which its first experiment began to train, as far as is known, in seconds since the epoch."""
        ended = (row["finished_at"] - row["seconds"] for row in self.rows if row["finished_at"] and row["seconds"])
        began = (p.started_at for _, p in self.sweep.running if p.started_at is not None)
        return min((*ended, *began), default=None)

    @functools.cached_property
    def flops_done(self) -> float:
        """FLOPs spent on results and on running experiments."""
        return self.sweep.flops_spent + flops_under_way(self.sweep.running)

    @functools.cached_property
    def cluster(self) -> Cluster | None:
        """Cluster of the present or the last run."""
        return Ledger(self.sweep.paths).cluster()

    @functools.cached_property
    def nodes(self) -> tuple[NodeUse, ...]:
        """Machines and GPUs, with the experiments that train on them."""
        return node_uses(() if self.cluster is None else self.cluster.machines, self.sweep.running)

    @functools.cached_property
    def seconds_left(self) -> float | None:
        """Seconds until the last planned experiment ends, at the measured speeds; None if nothing runs."""
        if not self.sweep.running:
            return None
        finished = {outcome.key for outcome in self.sweep.outcomes}
        rates = measured_rates(self.sweep.outcomes, self.sweep.running)
        slots = 1 if self.cluster is None else self.cluster.slots
        return seconds_left(self.sweep.plan, finished, self.sweep.running, rates, slots)


def row_of(e: Experiment, outcome: ExperimentResult | Failure | None, progress: Progress | None, idle: str) -> Row:
    """Return one experiment as a row of a table; unknown values are None."""
    share = 1.0 if isinstance(outcome, ExperimentResult) else None
    if outcome is None and progress is not None and e.tokens:
        share = progress.tokens_seen / e.tokens
    source: Any = outcome if outcome is not None else progress
    failure = outcome if isinstance(outcome, Failure) else None
    speed = getattr(source, "tokens_per_second", None)
    steps_per_second, samples_per_second = e.rates(speed)
    return {
        "key": e.key,
        "budget": e.budget,
        "size": e.size,
        "params": e.params,
        "tokens": e.tokens,
        "role": e.role,
        "axis": e.axis,
        "seed": e.recipe.seed,
        "lr": e.recipe.lr,
        "status": "running" if outcome is None and progress is not None else idle,
        "share": share,
        "loss": getattr(outcome, "loss", None),
        "loss_stderr": getattr(outcome, "loss_stderr", None),
        "train_loss": getattr(source, "train_loss", None),
        "seconds": getattr(source, "seconds", None),
        "tokens_per_second": speed,
        "steps_per_second": steps_per_second,
        "samples_per_second": samples_per_second,
        "mfu": getattr(source, "mfu", None),
        "attempts": getattr(outcome, "attempts", None) or getattr(progress, "attempt", None),
        "deaths": getattr(outcome, "deaths", None),
        "host": getattr(source, "host", None),
        "finished_at": getattr(outcome, "finished_at", None),
        "error": None if failure is None else redacted(failure.error_line),
    }
