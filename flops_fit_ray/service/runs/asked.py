"""Runs of sweeps as they were asked for, and what became of them."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flops_fit_ray.spec import BudgetsFor
from flops_fit_ray.storage.atomic import read_json
from flops_fit_ray.storage.codec import Record, value_of
from flops_fit_ray.sweep.run_limits import RunLimits

Kind = Literal["run", "resume", "extend"]
Phase = Literal["queued", "running", "stopping", "ended"]


@dataclass(frozen=True, kw_only=True)
class Additions:
    """Budgets, sizes and seeds that `extend` adds; by default none, which resumes the sweep."""

    budgets: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()
    seeds: int | None = None

    def options(self) -> list[str]:
        """Return the additions as command-line options."""
        seeds = [] if self.seeds is None else [f"--seeds={self.seeds}"]
        return [*(f"--budget={c!r}" for c in self.budgets), *(f"--size={s}" for s in self.sizes), *seeds]


@dataclass(frozen=True, kw_only=True)
class QueuedRun(Record):
    """One run of a sweep, as it was requested; the fields are the keys of asked.json."""

    sweep: str
    number: int  # among this sweep's runs, from 1
    kind: Kind
    words: list[str]  # arguments of `python -m`
    code: str  # directory of the code that the spec names
    asked_at: float  # seconds since the epoch
    key: str | None = None  # hash of the idempotency key that it was requested with


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Status of the last run of a sweep."""

    run: QueuedRun
    phase: Phase
    exit_code: int | None = None
    message: str = ""
    stop_requested: bool = False


def asked_to_start(spec_id: str, name: str | None, limits: RunLimits, budgets_for: BudgetsFor | None) -> dict[str, Any]:
    """Return a request to start a sweep, as an idempotency key keeps it."""
    more = {} if budgets_for is None else {"budgets_for": str(budgets_for)}
    return {"spec": spec_id, "name": name, **asdict(limits), **more}


def read_run(path: Path) -> QueuedRun | None:
    """Return a run as its file has it; None where that cannot be read."""
    content = read_json(path)
    with contextlib.suppress(ValueError):
        return None if content is None else value_of(QueuedRun, content)
    return None
