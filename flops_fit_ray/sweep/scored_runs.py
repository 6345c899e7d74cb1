"""Runs that score the forecasts of a sweep though they are not of it: a table's, or those of another directory."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import FitOptions, SweepFit, fit_sweep
from flops_fit_ray.errors import SpecError
from flops_fit_ray.storage.atomic import write_json
from flops_fit_ray.storage.codec import PositiveFloat, Record, read_value
from flops_fit_ray.storage.paths import SCHEMA_VERSION
from flops_fit_ray.storage.storage_path import StoragePath, names_in
from flops_fit_ray.sweep._result_arrays import token_cost
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.sweep.forecasts import Pair, read_forecasts, same_budget
from flops_fit_ray.tables import Table


@dataclass(frozen=True, kw_only=True)
class Run(Record):
    """One training run: its C, N and held-out loss in nats."""

    budget: PositiveFloat
    params: PositiveFloat
    loss: float
    finished_at: PositiveFloat | None = None  # seconds since the epoch; None where a table does not say


@dataclass(frozen=True, kw_only=True)
class FoundMinimum(Record):
    """The minimum of a valley over N at one C, with its own interval where that is known."""

    budget: PositiveFloat
    params: PositiveFloat
    interval: Pair | None = None
    loss: float | None = None  # of the curve there


@dataclass(frozen=True, kw_only=True)
class ScoredRuns(Record):
    """Runs from elsewhere, given to score forecasts."""

    source: str
    added_at: PositiveFloat  # seconds since the epoch
    runs: tuple[Run, ...]
    minima: tuple[FoundMinimum, ...]


def minima_of(fit: SweepFit) -> tuple[FoundMinimum, ...]:
    """Return the minima of a fit's valleys."""
    return tuple(
        FoundMinimum(
            budget=valley.budget,
            params=valley.params_opt,
            interval=None if i is None or i.params_opt is None else (i.params_opt.low, i.params_opt.high),
            loss=valley.loss_opt,
        )
        for valley, i in fit.optima
    )


def add_runs(sweep: Sweep, source: StoragePath, table: Table | None = None) -> None:
    """Keep the runs of a table, or of another sweep directory, beside the forecasts, to score them.

    Only runs of a forecast's C are kept. A table's C, where it has none, is that of the sweep's FLOPs per token.

    Raises:
        SpecError: there is no forecast, or none of the runs is of a forecast's C.
        FlopsFitError: `source` is no sweep directory.
    """
    sealed = read_forecasts(sweep).sealed
    if not sealed:
        raise SpecError(str(source), ["this sweep has no forecast to score; `predict C DIR --seal` makes one"])
    given = _of_sweep(source) if table is None else _of_table(sweep, source, table)
    wanted = [s.forecast.budget for s in sealed]
    runs = tuple(r for r in given.runs if any(same_budget(r.budget, c) for c in wanted))
    if not runs:
        at = ", ".join(fmt.flops(c) for c in sorted(set(wanted)))
        have = sorted({r.budget for r in given.runs})
        theirs = f"{fmt.flops(have[0])} to {fmt.flops(have[-1])}" if have else "none"
        raise SpecError(str(source), [f"has no run of a forecast's C, {at} (its runs: C = {theirs})"])
    minima = tuple(m for m in given.minima if any(same_budget(m.budget, c) for c in wanted))
    content = {"source": given.source, "runs": [asdict(r) for r in runs], "minima": [asdict(m) for m in minima]}
    name = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    whole = {"schema_version": SCHEMA_VERSION, "added_at": given.added_at, **content}
    write_json(sweep.paths.scored_runs / f"{name}.json", whole, once=True, sealed=True)


def _of_table(sweep: Sweep, source: StoragePath, table: Table) -> ScoredRuns:
    points = table.points
    c = points.flops
    if "flops" not in table.columns:  # C by the model's counted FLOPs, not by 6·N·D
        n, per_token = token_cost(sweep.plan.measurements)
        order = np.argsort(n)
        x = np.log(points.params)
        c = points.tokens * np.exp(np.interp(x, np.log(n[order]), np.log(per_token[order])))
    runs = tuple(
        Run(budget=float(a), params=float(b), loss=float(loss))
        for a, b, loss in zip(c, points.params, points.loss, strict=True)
    )
    fit = fit_sweep(points, FitOptions(method="valley")) if len(runs) > 2 else None
    return ScoredRuns(source=str(source), added_at=time.time(), runs=runs, minima=() if fit is None else minima_of(fit))


def _of_sweep(source: StoragePath) -> ScoredRuns:
    other = open_sweep(source)
    runs = tuple(Run(budget=r.budget, params=r.params, loss=r.loss, finished_at=r.finished_at) for r in other.standing)
    minima = () if other.spec.is_one_run else minima_of(other.fit)
    return ScoredRuns(source=str(source), added_at=time.time(), runs=runs, minima=minima)


def given_runs(sweep: Sweep) -> tuple[list[ScoredRuns], list[str]]:
    """Return the runs that were given, oldest first, and a line for each file that cannot be believed."""
    given, problems = [], []
    for name in sorted(names_in(sweep.paths.scored_runs)):
        if name[0] != "." and name.endswith(".json"):
            one = read_value(ScoredRuns, sweep.paths.scored_runs / name)
            if one is None:
                problems.append(f"forecasts/runs/{name}: was changed, or cannot be read; its runs score nothing")
            else:
                given.append(one)
    return sorted(given, key=lambda one: one.added_at), problems
