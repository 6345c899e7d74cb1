"""Console for programs: one JSON object per line for each thing that happens."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

from flops_fit_ray.analysis import n_opt_to_json
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.ledger import Event, ExperimentResult, Failure, Progress
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.planning import Plan
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.paths import SCHEMA_VERSION
from flops_fit_ray.sweep.directory import Sweep


def result_fields(sweep: Sweep) -> dict[str, Any]:
    """Return the outcome of a sweep for programs: its status, optima, report and hash."""
    return {
        "output": str(sweep.paths.root),
        "status": sweep.counts,
        "n_opt": n_opt_to_json(sweep.fit),
        "report": str(sweep.paths.report),
        "results_sha256": sweep.results_sha256,
    }


class JsonConsole(PlainConsole):
    """Writes one object per line: `kind`, `at` (seconds since the epoch), and the fields of that kind."""

    every = 10.0

    def say(self, line: str) -> None:
        """Write a message without fields."""
        if line.strip():
            self._write("said", words=line.strip())

    def header(self, spec: SweepSpec, plan: Plan) -> None:
        """Write the whole spec and the measured sizes."""
        self._write("question", spec=spec.model_dump(mode="json"), sizes=[asdict(s) for s in plan.measurements.sizes])

    def plan(self, plan: Plan, done: int) -> None:
        """Write the state of the plan, and the experiments that are new in it."""
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
                    "axis": e.axis,
                }
                for e in fresh
            ],
        )

    def cluster(self, cluster: Cluster) -> None:
        """Write the machines of the cluster."""
        self._write("cluster", **asdict(cluster))

    def outcome(self, record: ExperimentResult | Failure, done: int, total: int) -> None:
        """Write the record as it is in the ledger."""
        self._write("outcome", done=done, total=total, **asdict(record))

    def event(self, event: Event) -> None:
        """Write a line of an experiment's log, with the time at which it was logged."""
        self._write("event", **event.to_json())

    def progress(self, running: list[Progress], done: int, total: int) -> None:
        """Write the running experiments."""
        self._write("progress", done=done, total=total, running=[asdict(p) for p in running])

    def result(self, sweep: Sweep, elapsed: float) -> None:
        """Write the outcome of the sweep."""
        self._write(
            "result",
            **result_fields(sweep),
            flops_planned=sweep.plan.flops,
            flops_spent=sweep.flops_spent,
            seconds=elapsed,
            device_seconds=sweep.device_seconds,
        )

    def _write(self, kind: str, **content: Any) -> None:
        line = {"schema_version": SCHEMA_VERSION, "kind": kind, "at": time.time(), **content}
        super().say(json.dumps(line))
