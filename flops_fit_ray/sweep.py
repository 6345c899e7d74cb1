"""A sweep directory read back: spec, plan, outcomes and fit. It reads files only, and works on a partial sweep."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flops_fit_ray.analysis import FitOptions, Points, SweepFit, fit_sweep
from flops_fit_ray.errors import DirectoryError
from flops_fit_ray.layout import SweepPaths, read_json
from flops_fit_ray.ledger import Failure, Ledger, Progress, Result, results_sha256, results_table
from flops_fit_ray.planning import Experiment, Plan, plan_from_json
from flops_fit_ray.spec import SweepSpec, read_spec

if TYPE_CHECKING:
    import pandas as pd

STATUSES = ("completed", "diverged", "out_of_memory", "stalled", "failed", "infrastructure", "running", "planned")


@dataclass(frozen=True)
class Sweep:
    """What one directory holds now. Fits are made when they are asked for, from what is completed."""

    paths: SweepPaths
    spec: SweepSpec
    plan: Plan
    results: tuple[Result, ...]
    failures: tuple[Failure, ...]
    command: str  # that goes on with this sweep

    @property
    def outcomes(self) -> tuple[Result | Failure, ...]:
        """How the experiments that are settled ended."""
        return (*self.results, *self.failures)

    @property
    def complete(self) -> bool:
        """Whether every planned experiment has a result."""
        return len(self.results) == len(self.plan.experiments)

    @property
    def counts(self) -> dict[str, int]:
        """How many experiments are in each status; all of `STATUSES`, so that the sum is the plan."""
        states = Counter(str(outcome.status) for outcome in self.outcomes)
        states["running"] = len(self.running)
        states["planned"] = len(self.plan.experiments) - states.total()
        return {status: states[status] for status in STATUSES}

    @property
    def running(self) -> list[tuple[Experiment, Progress]]:
        """The open experiments that gave a sign of life a short while ago."""
        ledger = Ledger(self.paths)
        settled = {outcome.key for outcome in self.outcomes}
        open_ones = (e for e in self.plan.experiments if e.key not in settled)
        return [(e, progress) for e in open_ones if (progress := ledger.progress(e.key)) is not None]

    @property
    def num_begun(self) -> int:
        """How many experiments without a result have a checkpoint to go on from."""
        done = {r.key for r in self.results}
        return sum(bool(self.paths.checkpoints(e.key).finished()) for e in self.plan.experiments if e.key not in done)

    @property
    def flops_spent(self) -> float:
        """Training FLOPs of the completed experiments."""
        return sum(r.flops for r in self.results)

    @property
    def results_sha256(self) -> str:
        """Fingerprint of the losses; equal for an interrupted and an uninterrupted sweep."""
        return results_sha256(self.results)

    @property
    def loss_name(self) -> str:
        """What the losses of this sweep are of."""
        return "held-out loss" if self.plan.survey.data.eval_samples else "training loss, smoothed"

    @cached_property
    def fit(self) -> SweepFit:
        """The laws of all completed experiments."""
        options = FitOptions(draws=self.spec.fit.draws, confidence=self.spec.fit.confidence, seed=self.spec.fit.seed)
        return fit_sweep(points_of(self.results), options)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before trusting the numbers: of the fit, then of the plan, each once."""
        return tuple(dict.fromkeys([*map(str, self.fit.warnings), *self.plan.warnings]))

    def to_frame(self) -> pd.DataFrame:
        """One row per experiment of the plan."""
        return results_table(self.plan.experiments, Ledger(self.paths))


def points_of(results: tuple[Result, ...]) -> Points:
    """The arrays that a fit takes. D and C are what was really seen and spent."""

    def column(name: str) -> Any:
        return np.array([getattr(r, name) for r in results], dtype=np.float64)

    return Points(
        budget=column("budget"),
        flops=column("flops"),
        params=column("params"),
        tokens=column("tokens_seen"),
        loss=column("loss"),
    )


def open_sweep(root: Path) -> Sweep:
    """Read a sweep directory.

    Raises:
        DirectoryError: it is not one, or its plan cannot be read.
    """
    paths = SweepPaths(root.absolute())
    if not root.is_dir():
        raise DirectoryError(f"{root}: no such directory; `flops-fit-ray run` makes one")
    if not paths.plan.exists() or not paths.spec.exists():
        raise DirectoryError(f"{root}: is not a sweep directory (no {paths.plan.name}); give one that `run` made")
    content = read_json(paths.plan) or {}
    try:
        plan, command = plan_from_json(content), str(content["command"])
    except (KeyError, TypeError) as e:
        raise DirectoryError(f"{paths.plan}: cannot be read as a plan; `flops-fit-ray run` writes it again") from e
    keys = [e.key for e in plan.experiments]
    ledger = Ledger(paths)
    return Sweep(
        paths=paths,
        spec=read_spec(paths.spec),
        plan=plan,
        results=tuple(ledger.results(keys)),
        failures=tuple(ledger.failures(keys)),
        command=command,
    )
