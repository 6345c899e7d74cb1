"""Lines for those who do not watch: nothing but what went wrong, or a JSON object for each thing that happens."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

from flops_fit_ray.analysis import n_opt_to_json
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.ledger import Event, Failure, Progress, Result
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.planning import Plan
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.paths import SCHEMA_VERSION
from flops_fit_ray.sweep.directory import Sweep


def closing(sweep: Sweep) -> dict[str, Any]:
    """What came out in the end, for programs."""
    return {
        "output": str(sweep.paths.root),
        "status": sweep.counts,
        "n_opt": n_opt_to_json(sweep.fit),
        "report": str(sweep.paths.report),
        "results_sha256": sweep.results_sha256,
    }


class QuietConsole(PlainConsole):
    """Failures alone; what a command says at its end stands."""

    every = 3600.0

    def question(self, spec: SweepSpec, plan: Plan) -> None:
        """Not said."""

    def plan(self, plan: Plan, done: int) -> None:
        """Not said, only known."""
        self._experiments |= {e.key: e for e in plan.experiments}

    def cluster(self, cluster: Cluster) -> None:
        """Not said."""

    def outcome(self, record: Result | Failure, done: int, total: int) -> None:
        """Only what went wrong."""
        if isinstance(record, Failure):
            super().outcome(record, done, total)

    def event(self, event: Event) -> None:
        """In the experiment's log."""

    def progress(self, running: list[Progress], done: int, total: int) -> None:
        """Not said."""


class JsonConsole(PlainConsole):
    """One object per line: `kind` and `at` (seconds since the epoch), and what belongs to it."""

    every = 10.0

    def say(self, line: str) -> None:
        """What has no fields of its own."""
        if line.strip():
            self._write("said", words=line.strip())

    def question(self, spec: SweepSpec, plan: Plan) -> None:
        """The whole spec, and the sizes as they were measured."""
        self._write("question", spec=spec.model_dump(mode="json"), sizes=[asdict(s) for s in plan.measurements.sizes])

    def plan(self, plan: Plan, done: int) -> None:
        """The experiments that are decided, and those that were not known before."""
        fresh = [e for e in plan.experiments if e.key not in self._experiments]
        self._experiments |= {e.key: e for e in fresh}
        self._write(
            "plan",
            name=plan.name,
            flops=plan.flops,
            total=len(plan.experiments),
            done=done,
            final=plan.final,
            warnings=list(plan.warnings),
            notes=list(plan.notes),
            experiments=[
                {
                    "key": e.key,
                    "budget": e.budget,
                    "size": e.size,
                    "params": e.params,
                    "tokens": e.tokens,
                    "role": e.role,
                }
                for e in fresh
            ],
        )

    def cluster(self, cluster: Cluster) -> None:
        """Where experiments run."""
        self._write("cluster", **asdict(cluster))

    def outcome(self, record: Result | Failure, done: int, total: int) -> None:
        """The record as it is in the ledger."""
        self._write("outcome", done=done, total=total, **asdict(record))

    def event(self, event: Event) -> None:
        """A line of an experiment's log; with the moment at which it was written."""
        self._write("event", **asdict(event))

    def progress(self, running: list[Progress], done: int, total: int) -> None:
        """What runs now."""
        self._write("progress", done=done, total=total, running=[asdict(p) for p in running])

    def result(self, sweep: Sweep, elapsed: float) -> None:
        """What came out in the end."""
        self._write(
            "result",
            **closing(sweep),
            flops_planned=sweep.plan.flops,
            flops_spent=sweep.flops_spent,
            seconds=elapsed,
            device_seconds=sweep.device_seconds,
        )

    def _write(self, kind: str, **content: Any) -> None:
        line = {"schema_version": SCHEMA_VERSION, "kind": kind, "at": time.time(), **content}
        super().say(json.dumps(line))
