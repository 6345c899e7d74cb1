"""Replay of the planner's decisions from the start: the experiments of a sweep, given the observations so far.

Every decision waits for the results that it depends on and for no others, and decisions are taken in a fixed order. So
the plan does not depend on the order in which experiments end, on the number of slots, or on interruptions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.outliers import farthest_outlier
from flops_fit_ray.analysis.valley import MIN_DISTINCT_SIZES, Valley
from flops_fit_ray.flags import Flag
from flops_fit_ray.planning import _adaptive as adaptive
from flops_fit_ray.planning._axis_cells import axis_cells
from flops_fit_ray.planning._ladder import first_valley, fitting, ladder_of
from flops_fit_ray.planning._lr_guard import LrGuard
from flops_fit_ray.planning._minimum_checks import is_checked, other_batches, other_rates
from flops_fit_ray.planning._single_runs import WHY, seed_of
from flops_fit_ray.planning._taper import Sizing
from flops_fit_ray.planning._trunks import with_parent
from flops_fit_ray.planning.cells import Cells, resolve_lr
from flops_fit_ray.planning.experiment import Experiment, MeasuredLr, ModelSize, Observation
from flops_fit_ray.planning.grid import Cell, centre_of

CHECKED = 2  # number of smallest budgets whose minima have one where the grid tapers
Observations = Mapping[str, Observation]


class PlanReplay:
    """One replay. `experiments` are decided; `waiting` is True if more may follow.

    Args:
        assume: take the minimum of an open budget to be where it was predicted, which gives the forecast.
        static: the cells of a static grid; None for an adaptive one.
    """

    def __init__(
        self, cells: Cells, observed: Observations, *, static: list[Cell] | None = None, assume: bool = False
    ) -> None:
        self.experiments: dict[str, Experiment] = {}
        self.notes: list[str] = []
        self.warnings: list[Flag] = []
        self.waiting = False
        self.lr: MeasuredLr | None = None
        self._cells, self._observed, self._assume, self._static = cells, observed, assume, static
        self._spec = cells.spec
        self._by_label = {s.size: s for s in cells.measurements.sizes}
        self._trunks: dict[object, list[Experiment]] = {}
        self._valleys: list[Valley] = []
        self._fits: dict[float, list[ModelSize]] = {}  # by budget
        self._ladder = ladder_of(cells.spec, cells.measurements) if static is None else []
        self.sizing = Sizing(cells.spec.grid, cells.constants.total_budget if static is None else None)

    def grow(self) -> PlanReplay:
        """Take every decision that the observations allow."""
        guard = self._spec.grid
        if self._active(guard.lr_guard) and self._spec.train.lr == "auto" and not self._guard_rates():
            self.waiting = True
            return self
        if self._static is None:
            self._adaptive()
        else:
            self._grid(self._static)
        if not self.waiting:
            self._axis_runs()
            self._single_runs()
        return self

    def _active(self, setting: bool | str) -> bool:
        return self._static is None if setting == "auto" else bool(setting)

    # The learning rate

    def _guard_rates(self) -> bool:
        """Add the probes and fit the learning rate rule. False while probes are open."""
        if self._static is None:
            first = first_valley(self._spec, self._cells.measurements)
        else:
            smallest = min(b.flops for b, _ in self._static)
            first = [s for b, s in self._static if b.flops == smallest]
        guard = LrGuard(self._cells, self._add, self._loss_or_inf, assume=self._assume)
        self.lr = guard.law(first)
        self.notes += guard.notes
        self.warnings += guard.warnings
        return self.lr is not None

    def _loss_or_inf(self, experiment: Experiment) -> float:
        """Loss of an experiment; NaN while it is open, infinite if it failed."""
        observation = self._observed.get(experiment.key)
        if observation is None:
            return math.nan
        return math.inf if observation.loss is None else observation.loss

    def _lr(self, size: ModelSize, budget: float) -> float:
        return resolve_lr(self._spec, size, budget) if self.lr is None else self.lr.of(size.params)

    # The grid

    def _grid(self, static: list[Cell]) -> None:
        for budget, size in static:
            self._add_cell(budget.flops, size, "")
        for number, budget in enumerate(self._spec.budgets):
            if self._any_guard():
                valley = self._settled_valley(budget.flops)
                if valley is not None:
                    self._valleys.append(valley)
                elif not self._assume:
                    self.waiting = True
                    return
                self._after(number)

    def _any_guard(self) -> bool:
        grid = self._spec.grid
        seeds = isinstance(grid.seeds, int) and grid.seeds > 0
        checks = {grid.lr_check, grid.batch_check} & {"all", "lower"}
        return bool(self._spec.model.axes or seeds or self._active(grid.rerun_outliers) or checks)

    def _adaptive(self) -> None:
        grid = self._spec.grid
        minima: list[tuple[float, float]] = []
        for number, budget in enumerate(self._spec.budgets):
            c = budget.flops
            if not minima:
                centre = centre_of(self._spec, self._cells.measurements, c)
                sizes = first_valley(self._spec, self._cells.measurements)
                reason = f"first valley, around N = {fmt.count(centre)}"
            else:
                centre = adaptive.predicted_optimum(minima, c)
                decided = self.sizing.window is not None
                sizes = self.sizing.sizes(self._fitting(c), c, centre, self._valleys)
                if self.sizing.window is not None and not decided and grid.window == "auto":
                    self.notes.append(
                        f"the window from C = {fmt.flops(c)} on is x/÷{self.sizing.window:g}, by noise and skew of the "
                        "valleys before; all valleys are read within it"
                    )
                reason = f"around the predicted N = {fmt.count(centre)}"
            for size in sizes:
                self._add_cell(c, size, reason)
            if minima and number + 1 < len(self._spec.budgets):
                self._begin_next(self._spec.budgets[number + 1].flops, minima)
            n_opt = self._bracket(c, centre)
            if n_opt is None:
                self.waiting = True
                return
            minima.append((c, n_opt))
            self._after(number)

    def _begin_next(self, budget: float, minima: list[tuple[float, float]]) -> None:
        """Add the middle of the next budget's window, which is needed wherever the minimum of this budget lies."""
        early = self.sizing.early(budget)
        centre = adaptive.predicted_optimum(minima, budget)
        for size in adaptive.nearest(self._fitting(budget), centre, early):
            self._add_cell(budget, size, f"around the predicted N = {fmt.count(centre)}, two budgets ahead")

    def _bracket(self, budget: float, centre: float) -> float | None:
        """Extend the valley of a budget until its minimum is inside; return N there, or the best estimate of it.

        None while experiments of this budget are open.
        """
        grid = self._spec.grid
        while True:
            valley = self._settled_valley(budget)
            if valley is None:
                return centre if self._assume else None
            more, side = adaptive.beyond(valley, self._fitting(budget)) if len(valley.loss) else ([], "")
            number = len(self._grid_of(budget))
            room = min(adaptive.MAX_SIZES - number, grid.max_experiments - len(self.experiments))
            if not more or room <= 0:
                if valley.status != "interior" or side:
                    self._note_open_end(budget, valley, room, side)
                self._valleys.append(valley)
                if valley.status == "interior":
                    return valley.params_opt
                return float(valley.params[int(np.argmin(valley.loss))]) if len(valley.loss) else centre
            reason = f"the minimum was at the {side} end of the sizes that were run"
            for size in more[:room]:
                self._add_cell(budget, size, reason)

    def _note_open_end(self, budget: float, valley: Valley, room: int, side: str) -> None:
        state = valley.reason or f"the minimum is near the {side} end of the sizes"
        self.notes.append(
            f"C = {fmt.flops(budget)}: {state}; no sizes are added, {self._why_no_more(budget, room, side)}"
        )

    def _why_no_more(self, budget: float, room: int, side: str) -> str:
        if room <= 0:
            limit = self._spec.grid.max_experiments
            return f"because {adaptive.MAX_SIZES} sizes per budget or grid.max_experiments = {limit} is reached"
        ran = [e.params for e in self._grid_of(budget)]
        if not ran:
            return "because no size has enough steps and data there"
        low, high = min(ran), max(ran)
        if not any(s.params > high if side == "larger" else s.params < low for s in self._ladder):
            return f"because the model allows no {side} size"
        if side == "larger":
            return "because larger ones would have too few optimizer steps: lower train.batch_size"
        return "because smaller ones would need more data than there is"

    def _settled_valley(self, budget: float) -> Valley | None:
        """Valley of a budget once all of its experiments and reruns have ended; None before."""
        while True:
            experiments = self._grid_of(budget)
            if any(e.key not in self._observed for e in experiments):
                return None
            if self._active(self._spec.grid.rerun_outliers) and self._rerun(experiments):
                continue
            losses = [
                (e, loss) for e in self._standing(experiments) if (loss := self._observed[e.key].loss) is not None
            ]
            return adaptive.valley_through(
                budget,
                [self._by_label[e.size] for e, _ in losses],
                [e.tokens for e, _ in losses],
                [loss for _, loss in losses],
            )

    def _grid_of(self, budget: float) -> list[Experiment]:
        return [e for e in self.experiments.values() if e.budget == budget and e.role in ("grid", "rerun")]

    def _standing(self, experiments: list[Experiment]) -> list[Experiment]:
        """Experiments whose losses make the valley: a rerun with a loss replaces the one that it repeats."""
        replaced = {e.of for e in experiments if e.role == "rerun" and self._loss_of(e) is not None}
        return [e for e in experiments if e.key not in replaced]

    def _loss_of(self, experiment: Experiment) -> float | None:
        observation = self._observed.get(experiment.key)
        return None if observation is None else observation.loss

    def _axis_runs(self) -> None:
        """Add the runs of other values on a second axis: the last of all, so that the others are as without them."""
        minima = list(map(self._optimum, range(len(self._spec.budgets))))
        room = None if self._static is not None else self._spec.grid.max_experiments - len(self.experiments)
        for run in axis_cells(self._cells, minima, self._lr, room, self.notes.append):
            self._add(run)

    def _single_runs(self) -> None:
        """Add the runs that the spec names beside the grid; each begins at the trunks that are there."""
        for run in self._spec.grid.runs:
            size = self._by_label[run.size]
            there = [e for e in self._standing(self._grid_of(run.flops)) if e.size == run.size]
            lr = there[-1].recipe.lr if there else self._lr(size, run.flops)
            seed = seed_of(self._spec, run)
            self._add(
                self._cells.make(
                    run.flops, size, lr, seed=seed, role="grid" if seed is None or not there else "seed", reason=WHY,
                    of=there[-1].key if seed is not None and there else None,
                )
            )  # fmt: skip

    # Reruns, seeds and learning rate checks

    def _rerun(self, experiments: list[Experiment]) -> bool:
        """Add a rerun of a diverged or outlying experiment that has none yet. True if one was added."""
        repeated = {e.of for e in experiments if e.role == "rerun"}
        standing = self._standing(experiments)
        for e in standing:
            if self._observed[e.key].diverged and e.key not in repeated:
                return self._repeat(e, "it diverged", halve=True)
        good = [e for e in standing if self._loss_of(e) is not None]
        if len(good) <= MIN_DISTINCT_SIZES["parabola"]:
            return False
        outlier = _outlier(tuple(e.params for e in good), tuple(map(self._loss_or_inf, good)), tuple(self._valleys))
        if outlier is None:
            return False
        index, deviation = outlier
        e = good[index]
        if e.key in repeated or e.role == "rerun":
            return False
        side = "above" if deviation > 0 else "below"
        return self._repeat(
            e, f"it lies {abs(deviation):.1f} standard deviations {side} the others", halve=deviation > 0
        )

    def _repeat(self, e: Experiment, why: str, *, halve: bool) -> bool:
        if e.role == "rerun":
            first = self.experiments.get(e.of or "")
            if first is not None and first.role == "rerun":
                return False  # a rerun is repeated once
        change = "half the learning rate" if halve else "another seed"
        again = self._cells.make(
            e.budget,
            self._by_label[e.size],
            e.recipe.lr / 2 if halve else e.recipe.lr,
            seed=e.recipe.seed if halve else e.recipe.seed + 1000,
            role="rerun",
            reason=f"rerun with {change}: {why}",
            of=e.key,
        )
        if again.key not in self.experiments:
            where = f"C = {fmt.flops(e.budget)}, size {e.size}"
            self.notes.append(f"{where}: {why}; rerun with {change}, both results kept")
        return self._add(again)

    def _after(self, number: int) -> None:
        """Add seeds and checks at the minima known so far; no decision waits for them."""
        grid, budgets = self._spec.grid, self._spec.budgets
        seeds = (2 if self._static is None else 0) if grid.seeds == "auto" else grid.seeds
        if number == 1 and seeds:
            self._add_seeds(int(seeds))
        check = grid.lr_check
        if check == "auto":
            check = "none" if self.lr is None or (self.sizing.tapers and number >= CHECKED) else "lower"
        checks = [
            *([other_rates] if is_checked(check, number, len(budgets)) else []),
            *([other_batches] if is_checked(grid.batch_check, number, len(budgets)) else []),
        ]
        e = self._at_minimum(number) if checks else None
        if e is not None:
            for made in checks:
                for experiment in made(self._cells, e, self._by_label[e.size]):
                    self._add(experiment)

    def _at_minimum(self, number: int, near: float | None = None) -> Experiment | None:
        """Grid experiment of a budget that is nearest to its minimum, or to N = `near`."""
        budget = self._spec.budgets[number].flops
        standing = [
            e
            for e in self._standing(self._grid_of(budget))
            if e.role == "grid" and (self._assume or self._loss_of(e) is not None)
        ]
        if not standing:
            return None
        if near is None:
            near = self._optimum(number)
        return min(standing, key=lambda e: abs(math.log(e.params / near)))

    def _optimum(self, number: int) -> float:
        if number < len(self._valleys):
            valley = self._valleys[number]
            if valley.status == "interior":
                return valley.params_opt
            if len(valley.loss):
                return float(valley.params[int(np.argmin(valley.loss))])
        return centre_of(self._spec, self._cells.measurements, self._spec.budgets[number].flops)

    def _add_seeds(self, seeds: int) -> None:
        """Add seeds of one size near both minima, so that each pair shares a trunk and shows the noise it passes on."""
        middle = math.sqrt(self._optimum(0) * self._optimum(1))
        pair = [self._at_minimum(i, middle) for i in (0, 1)]
        if pair[0] is None or pair[1] is None or pair[0].size != pair[1].size:
            pair = [self._at_minimum(i) for i in (0, 1)]
        for seed in range(1, seeds + 1):
            for e in pair:
                if e is not None:
                    self._add(
                        self._cells.make(
                            e.budget, self._by_label[e.size], e.recipe.lr, seed=self._spec.train.seed + seed,
                            role="seed", reason=f"seed {seed} near the minimum", of=e.key,
                        )
                    )  # fmt: skip

    # Adding

    def _fitting(self, budget: float) -> list[ModelSize]:
        if budget not in self._fits:
            self._fits[budget] = fitting(self._spec, self._cells.measurements, self._ladder, budget)
        return self._fits[budget]

    def _add_cell(self, budget: float, size: ModelSize, reason: str) -> None:
        limit = self._spec.grid.max_experiments
        if self._static is None and len(self.experiments) >= limit:
            reached = f"grid.max_experiments = {limit} is reached"
            note = f"{reached}: no further cells are added; raise it for a complete sweep"
            if note not in self.notes:
                self.notes.append(note)
            return
        self._add(self._cells.make(budget, size, self._lr(size, budget), reason=reason))

    def _add(self, experiment: Experiment) -> bool:
        """Add an experiment to the plan, with a parent among those already there. False if it is there already.

        A probe or a check that is also a cell of the grid becomes one.
        """
        known = self.experiments.get(experiment.key)
        if known is not None:
            if experiment.role == "grid" and known.role != "grid":
                self.experiments[known.key] = replace(known, role="grid", reason=experiment.reason, of=None)
            return False
        if self._spec.grid.trunk:
            same = self._trunks.setdefault((experiment.size, experiment.recipe), [])
            experiment = with_parent(experiment, same)
            same.append(experiment)
        self.experiments[experiment.key] = experiment
        return True


@lru_cache(maxsize=1000)  # every replay looks at the same valleys again
def _outlier(
    params: tuple[int, ...], losses: tuple[float, ...], others: tuple[Valley, ...]
) -> tuple[int, float] | None:
    return farthest_outlier(np.array(params, dtype=np.float64), np.array(losses, dtype=np.float64), others)
