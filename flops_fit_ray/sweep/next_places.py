"""Cells that a sweep can run next: sizes that its model has, tokens that its data allow, and prices with its trunks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from flops_fit_ray.analysis import NextRun, NextRuns, Place, SweepFit, next_runs
from flops_fit_ray.planning import Experiment, ModelSize, leaves_trunk, seed_of, steps_of, with_parent
from flops_fit_ray.planning.cells import Cells, max_steps, resolve_lr
from flops_fit_ray.planning.grid import MIN_STEPS, by_params
from flops_fit_ray.spec import SingleRun
from flops_fit_ray.sweep.directory import Sweep

REACH, STEP = 8.0, 2**0.25  # sizes about a minimum: how far, and the least ratio of neighbours


class SweepSpace:
    """The cells that a sweep could have. Training from a trunk that is there costs the difference alone."""

    def __init__(self, sweep: Sweep) -> None:
        plan = sweep.plan
        done = {r.key for r in sweep.results}  # synthetic losses cost nothing: they count as what was planned
        self.spent = sweep.flops_spent or sum(e.flops_executed for e in plan.experiments if e.key in done)
        self._spec, self._measurements, self._lr = sweep.spec, plan.measurements, plan.lr
        self._cells = Cells(sweep.spec, plan.measurements, plan.constants)
        self._sizes = {s.size: s for s in by_params(plan.measurements)}
        grid = [e for e in plan.experiments if e.role == "grid"]
        self._rates = {e.size: e.recipe.lr for e in grid}
        self._ran = {(e.budget, e.size) for e in plan.experiments if e.role in ("grid", "rerun")}
        self._seeds = {(run.flops, run.size): run.seed for run in sorted(sweep.spec.grid.runs, key=lambda r: r.seed)}
        self._steps = min([MIN_STEPS, *(e.steps for e in grid)]), max_steps(sweep.spec, plan.measurements)
        finished = {r.key for r in sweep.results} & sweep.paths.trunk_keys()
        self._trunks = [e for e in plan.experiments if e.key in finished and leaves_trunk(e)]
        self._made: dict[tuple[float, int | str, int | None], Experiment] = {}
        self._priced: dict[tuple[Place, ...], list[float]] = {}  # runs of one size

    def places(self, budget: float, around: float) -> list[Place]:
        """Return the sizes with enough steps and data at C = `budget`; of near ones those that were run."""
        chosen: list[Place] = []
        for size in sorted(
            self._sizes.values(), key=lambda s: ((budget, s.size) not in self._ran, s.size not in self._rates)
        ):
            steps = steps_of(self._spec, self._measurements, budget, size)
            ratio = max(size.params / around, around / size.params)
            ran = (budget, size.size) in self._ran
            apart = all(max(size.params / p.params, p.params / size.params) >= 0.999 * STEP for p in chosen)
            if ran or (ratio <= REACH and self._steps[0] <= steps <= self._steps[1] and apart):
                tokens = self._experiment(budget, size, None).tokens
                chosen.append(Place(budget=budget, params=float(size.params), tokens=float(tokens), size=size.size))
        return chosen

    def prices(self, places: Sequence[Place]) -> list[float]:
        """Return the FLOPs that each of these runs executes, smaller budgets of a size first, each from its trunk."""
        found = [0.0] * len(places)
        for size in {p.size for p in places}:  # sizes share nothing
            index = [i for i, p in enumerate(places) if p.size == size]
            alike = tuple(places[i] for i in index)
            if alike not in self._priced:
                self._priced[alike] = self._prices_of_size(alike)
            for i, price in zip(index, self._priced[alike], strict=True):
                found[i] = price
        return found

    def _prices_of_size(self, places: Sequence[Place]) -> list[float]:
        experiments = [
            self._experiment(run.flops, self._sizes[run.size], seed_of(self._spec, run))
            for run in self.single_runs(places)
        ]
        found, trunks = [0.0] * len(places), [e for e in self._trunks if e.size == experiments[0].size]
        for i in sorted(range(len(places)), key=lambda i: experiments[i].budget):
            e = with_parent(experiments[i], trunks) if self._spec.grid.trunk else experiments[i]
            found[i] = e.flops_executed
            if leaves_trunk(e):
                trunks.append(e)
        return found

    def single_runs(self, places: Sequence[Place | NextRun]) -> tuple[SingleRun, ...]:
        """Return the runs at these cells as a spec has them: further ones of a cell that is there have other seeds."""
        last, found = dict(self._seeds), []
        for place in places:
            assert place.size is not None  # as `places` makes them
            cell = place.budget, place.size
            last[cell] = last.get(cell, int(cell in self._ran) - 1) + 1
            found.append(SingleRun(flops=place.budget, size=place.size, seed=last[cell]))
        return tuple(found)

    def _experiment(self, budget: float, size: ModelSize, seed: int | None) -> Experiment:
        known = (budget, size.size, seed)
        if known not in self._made:
            lr = self._rates.get(size.size)
            if lr is None and size.budget_lr:  # a rule of the user's, asked at the sweep's budgets alone so far
                lr = size.budget_lr[min(size.budget_lr, key=lambda c: abs(math.log(float(c) / budget)))]
            if lr is None:
                lr = resolve_lr(self._spec, size, budget) if self._lr is None else self._lr.of(size.params)
            made = self._cells.make(budget, size, lr, seed=seed)
            self._made[known] = replace(made, role="grid")
        return self._made[known]


def next_runs_of(
    sweep: Sweep, fit: SweepFit, count: int, target: float | None = None, at_most: float | None = None
) -> NextRuns:
    """Choose the next runs of a sweep among those that it can train, as `analysis.next_runs`.

    Args:
        target: FLOPs; None: `grid.target` of the sweep where that is beyond the data, else as there.

    Raises:
        SpecError, FitError: as there.
    """
    own = sweep.spec.grid.target
    if target is None and own is not None and own > fit.fitted_range[1]:
        target = own
    return next_runs(fit, count, target, at_most=at_most, space=SweepSpace(sweep))
