"""The planner: a plan as a function of spec, measurements and observations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from flops_fit_ray import formatting as fmt
from flops_fit_ray.errors import SpecError
from flops_fit_ray.flags import Flag, Flagged, warning
from flops_fit_ray.planning._adaptive import MIN_SIZES
from flops_fit_ray.planning._axis_cells import axis_warnings
from flops_fit_ray.planning._disk import disk_need
from flops_fit_ray.planning._evaluation import evaluation_cost, evaluation_warnings, limit_samples, with_limit
from flops_fit_ray.planning._feasible import first_fault, next_fault
from flops_fit_ray.planning._ladder import first_valley
from flops_fit_ray.planning._plan import Plan
from flops_fit_ray.planning._replay import Observations, PlanReplay
from flops_fit_ray.planning._single_runs import single_run_faults
from flops_fit_ray.planning._trunks import unshared_note
from flops_fit_ray.planning.cells import Cells, constants_identity, make_constants, tokens_of
from flops_fit_ray.planning.experiment import AS_THEY_RUN, FIRST_RULE, Experiment, Measurements, SweepConstants
from flops_fit_ray.planning.grid import (
    Cell,
    by_params,
    cell_warnings,
    centre_of,
    counting_warnings,
    size_faults,
    static_cells,
    sweep_warnings,
)
from flops_fit_ray.planning.slots import own_flops, tails
from flops_fit_ray.spec import SweepSpec

IDLE_ROLES = {"seed", "lr_check", "batch_check", "axis"}  # no decision depends on them


class Planner:
    """Planner of one sweep, called again as observations arrive; what does not depend on them is computed once.

    Raises:
        SpecError: a cell cannot be run, or a budget has no sizes.
    """

    def __init__(self, spec: SweepSpec, measurements: Measurements, constants: SweepConstants | None = None) -> None:
        if constants is not None and constants.identity != constants_identity(spec, measurements):
            constants = None
        self._begins = constants is None  # else results tell more than D/N (`unbracketed`)
        if constants is not None:
            measurements = measurements.counted_by(constants.counting)
        self.spec, self.measurements = spec, measurements
        self._static: list[Cell] | None = None
        if spec.is_adaptive:
            smallest = self._smallest_adaptive()
        else:
            self._static = static_cells(spec, measurements)
            smallest = min(tokens_of(spec, measurements, b.flops, s) for b, s in self._static)
        warmup = spec.train.warmup_tokens
        if warmup != "auto" and warmup >= smallest:
            fault = (
                f"train.warmup_tokens: must be less than D = {smallest} tokens, the shortest run (got {warmup}); "
                "`auto` takes at most a tenth of that"
            )
            raise SpecError("spec", [fault])
        if faults := list(single_run_faults(spec, measurements)):
            raise SpecError("spec", faults)
        if constants is None:
            samples = limit_samples(spec, measurements, lambda: self._foreseen(smallest))
            constants = make_constants(spec, measurements, smallest, samples)
        self.measurements = measurements = with_limit(measurements, constants.eval_samples)
        self.cells = Cells(spec, measurements, constants)
        self._constant: Plan | None = None  # a plan that was final without observations

    def _foreseen(self, smallest: int) -> list[Experiment]:
        """All experiments of a sweep that begins, as they are expected without results; they do not depend on how
        much is evaluated.
        """
        constants = make_constants(self.spec, self.measurements, smallest, self.measurements.data.eval_samples)
        cells = Cells(self.spec, self.measurements, constants)
        expected = PlanReplay(cells, {}, static=self._static, assume=True).grow().experiments.values()
        return [e for e in expected if e.axis is None]  # as much is evaluated as without `model.axes`

    def _smallest_adaptive(self) -> int:
        """Smallest D of the first valley: that of the sweep, unless the valley has to be extended."""
        faults = list(size_faults(self.spec, by_params(self.measurements)))
        if not faults:
            budget = self.spec.budgets[0].flops
            first = first_valley(self.spec, self.measurements)
            fault = first_fault(self.spec, self.measurements) if self._begins or len(first) < MIN_SIZES else ""
            if not fault:
                return min(tokens_of(self.spec, self.measurements, budget, s) for s in first)
            faults.append(fault)
        raise SpecError("spec", faults)

    def plan(self, observed: Observations | None = None, *, forecast: bool = True) -> Plan:
        """Make the plan as far as `observed` decides it; `forecast` adds the experiments expected to follow.

        Raises:
            SpecError: the data cannot feed a budget around its expected optimum.
        """
        if self._constant is not None:
            return self._constant
        observed = observed or {}
        grown = PlanReplay(self.cells, observed, static=self._static).grow()
        experiments = tuple(grown.experiments.values())
        expected: tuple[Experiment, ...] = ()
        unfed: tuple[Flag, ...] = ()
        if grown.waiting and forecast:
            assumed = PlanReplay(self.cells, observed, static=self._static, assume=True).grow()
            places = {(e.budget, e.size, e.recipe.seed, e.role) for e in experiments}
            expected = tuple(
                e for e in assumed.experiments.values() if (e.budget, e.size, e.recipe.seed, e.role) not in places
            )
            short = len(experiments) + len(expected) >= self.spec.grid.max_experiments
            if self._begins and not observed and self._static is None and not short:
                unfed = tuple(self._refuse_unfed((*experiments, *expected)))
        guarded = any(e.role == "probe" for e in experiments)
        everything = (*experiments, *expected)
        used = {e.size for e in everything}
        every = self.spec.data.eval_every_tokens
        evaluation = sum(map(evaluation_cost(self.measurements, every), everything))
        follows_d = {s.size for s in self.measurements.every_size if s.budget_lr}
        by_d = [e for e in everything if e.size in follows_d]
        flags = (
            *sweep_warnings(self.spec, self.measurements, lr_guarded=guarded),
            *counting_warnings(self.measurements, [s for s in self.measurements.every_size if s.size in used]),
            *unfed,
            *grown.warnings,
            *cell_warnings(everything, tapers=grown.sizing.tapers),
            *evaluation_warnings(self.spec, self.measurements, everything, evaluation),
            *axis_warnings(self.spec),
        )
        warnings: tuple[Flagged, ...] = (
            *self.measurements.data.warnings,
            *self.measurements.loss.warnings,
            *(flag.text for flag in flags),
        )
        plan = Plan(
            name=self.spec.name,
            experiments=experiments,
            measurements=self.measurements,
            warnings=warnings,
            disk=disk_need(everything, self.spec),
            constants=self.cells.constants,
            final=not grown.waiting,
            forecast=expected,
            notes=(*_counting_note(self.measurements), *unshared_note(by_d), *grown.notes),
            evaluation_flops=evaluation,
            eval_every_tokens=every,
            lr=grown.lr,
            reach=grown.sizing.reach,
            target=self.spec.model.target,
            model_kwargs=self.spec.model.kwargs,
        )
        if plan.final and not observed:
            self._constant = plan
        return plan

    def _refuse_unfed(self, experiments: Sequence[Experiment]) -> Iterator[Flag]:
        """Check that every budget can have sizes around its expected optimum, before the first one is paid for.

        Yields warnings where they are all larger than the optimum.

        Raises:
            SpecError: a budget has too few sizes there, for lack of sizes or of data.
        """
        for budget in self.spec.budgets:
            cells = [e.params for e in experiments if e.budget == budget.flops and e.role == "grid"]
            if fault := next_fault(self.spec, self.measurements, budget.flops):
                raise SpecError("spec", [fault])
            centre = centre_of(self.spec, self.measurements, budget.flops)
            if cells and min(cells) > centre:
                unfed = any(size.params <= centre for size in self.measurements.sizes)
                limit, way_out = (
                    ("the data can feed", "add data, or leave this budget out")
                    if unfed
                    else ("the model allows", "make the model smaller, or leave this budget out")
                )
                yield warning(
                    "sizes_above_optimum",
                    f"C = {fmt.flops(budget.flops)}: all sizes that {limit} are larger than the expected optimum "
                    f"N = {centre:.3g}: {way_out}",
                )


def _counting_note(measurements: Measurements) -> Iterator[str]:
    first = measurements.sizes[0]
    if measurements.counting < AS_THEY_RUN and first.flops_source.endswith(FIRST_RULE):
        yield (
            f"N and FLOPs are counted as when this directory's sweep began: {first.flops_source}, and N is "
            f"{first.params_source}; a new --output counts the backward pass as it runs, and what trains"
        )


def make_plan(
    spec: SweepSpec,
    measurements: Measurements,
    observed: Observations | None = None,
    constants: SweepConstants | None = None,
    *,
    forecast: bool = True,
) -> Plan:
    """Make the plan of a sweep as far as `observed` decides it.

    Args:
        constants: of the directory that is continued; ignored if they belong to another sweep.

    Raises:
        SpecError: a cell cannot be run (too few sizes, less than one batch, more data than there is); all at once.
    """
    return Planner(spec, measurements, constants).plan(observed, forecast=forecast)


class Queue:
    """Experiments of one plan that can start, in the order of starting.

    1) the longest first, with all that waits for its trunk: the makespan stays within a few per cent of its lower bound
    2) while decisions are pending, what they depend on goes first: the grid before seeds and checks, smaller budgets
       before larger ones
    3) a parent that has ended is not waited for, even if it failed: without its trunk a child starts from scratch
    """

    def __init__(self, plan: Plan) -> None:
        tail = tails(plan.experiments, own_flops)

        def rank(e: Experiment) -> tuple[bool, float, float, int]:
            # With equal FLOPs the smaller model takes longer: it has more steps
            if plan.final:
                return False, 0.0, -tail[e.key], -e.steps
            return e.role in IDLE_ROLES, e.budget, -tail[e.key], -e.steps

        self._known = {e.key for e in plan.experiments}
        self._left = sorted(plan.experiments, key=rank)
        self._settled = 0  # number of finished experiments when `_left` was made

    def ready(
        self,
        finished: Collection[str],
        running: Collection[str] = (),
        has_trunk: Callable[[str], bool] = lambda key: False,
    ) -> Iterator[Experiment]:
        """Yield experiments that are not finished, running or waiting for a parent. `finished` only grows."""
        if len(finished) > self._settled + 100:
            self._left = [e for e in self._left if e.key not in finished]
            self._settled = len(finished)
        for e in self._left:
            if e.key in finished or e.key in running:
                continue
            waits = e.parent in self._known and e.parent not in finished and not has_trunk(str(e.parent))
            if not waits:
                yield e


def next_experiments(
    plan: Plan,
    finished: Collection[str],
    running: Collection[str] = (),
    has_trunk: Callable[[str], bool] = lambda key: False,
) -> tuple[Experiment, ...]:
    """Return all experiments that can start now, in the order of `Queue`."""
    return tuple(Queue(plan).ready(finished, running, has_trunk))
