"""Budgets of a spec that says `budgets: auto`: measured, planned and priced until they cost what they may."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flops_fit_ray import formatting as fmt
from flops_fit_ray.errors import SpecError, faults_of
from flops_fit_ray.pipeline import RunRequest, check
from flops_fit_ray.planning import COUNTING, Measurements, Plan, Planner, Rates, priced
from flops_fit_ray.planning.auto_budgets import (
    LEAST_RANGE,
    PRECISION,
    ChosenBudgets,
    budget_range,
    choose_budgets,
    is_bracketed,
    spaced,
)
from flops_fit_ray.planning.grid import with_budgets_at
from flops_fit_ray.spec import BudgetsFor, SweepSpec, limit_of_budgets
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.sweep.recorded import recorded_rates, recorded_spec

FIRST_GUESS = 1e12  # smallest C in FLOPs where nothing is known; models and data move it
LARGER_GUESSES = (1.0, 1e4, 1e8)
RAISE, RAISES = 1.5, 12  # of the smallest budget, where valleys at it would lie on one side
FLOPS_TO_SMALLEST = 1e-3  # of all FLOPs that a sweep may cost
MAX_ROUNDS = 8  # of measuring the models around the budgets, and choosing the budgets again
SHARE = 0.9  # of a limit in time that is planned for

Say = Callable[[str], None]


def with_budgets_chosen(
    request: RunRequest, limit: BudgetsFor | None, say: Say, *, rates: Rates | None = None, measure_speed: bool = True
) -> RunRequest:
    """Return the request with budgets: of its spec, of its directory, or else the widest that the limit allows.

    Args:
        limit: what the sweep may cost; None: as the spec says.
        rates: speed of a slot; None: as recorded in the directory, else measured on a worker.
        measure_speed: False takes the least budgets where no speed is known, and says so.

    Raises:
        SpecError: a limit and budgets are given, or neither is; or no budgets are possible.
    """
    example = "minutes=30" if request.base is None else "--minutes 30, or budgets: {minutes: 30} in the spec"
    kept = None if request.spec.budgets else _recorded(request)
    if kept is not None:
        known, unused = kept.budgets_for, ""
        if limit is not None and (known is None or str(known) != str(limit)):
            unused = f"; {limit} choose nothing any more, `extend --budget` adds a budget"
        say(f"budgets: those of {request.root}: {_shown([b.flops for b in kept.budgets])} FLOPs{unused}")
        return _with_budgets_of(request, kept)
    limit = limit_of_budgets(request.spec, limit, request.source, example)
    if limit is None:
        return request
    if not with_budgets_at(request.spec, (1.0, 2.0)).is_adaptive:
        fault = (
            "budgets: auto chooses the sizes, too, and this spec lists them; leave model.sizes out, or give a ladder"
        )
        raise SpecError(request.source, [fault])
    request = _measuring_once(request)
    if limit.seconds is not None and rates is None:
        rates = _speed(request, measure_speed)
        if rates is None:
            say(f"budgets: the least; as wide as {limit} allow once a speed is measured, by `check` or `run`")
            return with_some_budgets(request)
    return _chosen(request, limit, rates, say)


def _measuring_once(request: RunRequest) -> RunRequest:
    """Return the request with a memory of what was measured: choosing and planning ask for the same again."""
    known: list[tuple[SweepSpec, int, Measurements]] = []

    def measure(spec: SweepSpec, counting: int) -> Measurements:
        spec = spec.model_copy(update={"budgets_for": None})  # which measures nothing
        for before, by, found in known:
            if (before, by) == (spec, counting):
                return found
        known.append((spec, counting, request.measure(spec, counting)))
        return known[-1][-1]

    return replace(request, measure=measure)


def with_some_budgets(request: RunRequest) -> RunRequest:
    """Return the request with budgets to measure a speed at: the least that its models and data allow."""
    if request.spec.budgets:
        return request
    kept = _recorded(request)
    if kept is not None:
        return _with_budgets_of(request, kept)
    return replace(request, spec=_settled(request, FIRST_GUESS, lambda low, high, _: spaced(low, LEAST_RANGE * low))[0])


def _recorded(request: RunRequest) -> SweepSpec | None:
    """Read the spec of the request's directory; None where it has none that can be read."""
    try:
        return recorded_spec(SweepPaths(request.root))
    except SpecError:
        return None


def _with_budgets_of(request: RunRequest, kept: SweepSpec) -> RunRequest:
    """Return the request with the budgets of another spec, and with how they were chosen."""
    chosen = kept.budgets_for if kept.budgets_for is not None and kept.budgets_for.why is not None else None
    spec = with_budgets_at(request.spec, [b.flops for b in kept.budgets])
    return replace(request, spec=spec.model_copy(update={"budgets_for": chosen}))


def _speed(request: RunRequest, measure_speed: bool) -> Rates | None:
    """Return the speed recorded in the directory, else measured now; None where there is none, and none is measured."""
    paths = SweepPaths(request.root)
    if not request.trains:
        raise SpecError(request.source, ["losses that are synthetic take no time; give flops as the limit"])
    if not (measure_speed or paths.rates.exists()):
        return None
    least = with_some_budgets(request)
    known = recorded_rates(paths, Planner(least.spec, least.measure(least.spec, COUNTING)).cells.constants)
    if known is not None or not measure_speed:
        return known
    report, _ = check(least, keep=True)
    if report.rates is None:
        failed = "; ".join(str(line) for line in report.lines if line.verdict == "FAIL")
        raise SpecError(request.source, [f"no speed could be measured: {failed}"])
    return report.rates


@dataclass(frozen=True)
class _Chooser:
    """Search for the widest budgets whose plan costs what it may, and has every valley about its expected optimum."""

    request: RunRequest
    limit: BudgetsFor
    rates: Rates | None

    def plan(self, measurements: Measurements, flops: Sequence[float]) -> Plan:
        """Return the plan with these budgets, priced."""
        spec = with_budgets_at(self.request.spec, flops)
        plan = Planner(spec, measurements).plan()
        return priced(plan, spec.grid.start, rates=self.rates, slots=self.request.limits.slots)

    def choose(self, low: float, high: float, measurements: Measurements) -> ChosenBudgets:
        """Choose budgets between C = `low` and `high`, from the smallest C on whose valleys have both sides.

        Raises:
            SpecError: the least that a law needs cannot be planned.
        """
        beyond: list[float] = []  # largest budgets that data or models do not allow, although the range does

        def fits(flops: Sequence[float]) -> bool:
            try:
                plan = self.plan(measurements, flops)
            except SpecError:
                if flops[-1] <= LEAST_RANGE * low:
                    raise
                beyond.append(flops[-1])
                return False
            if not is_bracketed(plan, with_budgets_at(self.request.spec, flops), measurements):
                beyond.append(flops[-1])
                return False
            return self._costs_little(plan)

        found = choose_budgets(low, high, fits)
        for _ in range(RAISES):
            if found.flops or found.least[-1] not in beyond or RAISE * LEAST_RANGE * low > high:
                break
            low *= RAISE
            beyond.clear()
            found = choose_budgets(low, high, fits)
        if min(beyond, default=math.inf) <= PRECISION**2 * (found.flops or found.least)[-1]:
            return replace(found, binds="data")
        return found

    def _costs_little(self, plan: Plan) -> bool:
        assert plan.price is not None
        if self.limit.flops is not None:
            return plan.price.flops <= self.limit.flops
        return plan.price.wall_seconds is not None and plan.price.wall_seconds <= SHARE * (self.limit.seconds or 0.0)


def _chosen(request: RunRequest, limit: BudgetsFor, rates: Rates | None, say: Say) -> RunRequest:
    chooser, found = _Chooser(request, limit, rates), []

    def choose(low: float, high: float, measurements: Measurements) -> tuple[float, ...]:
        found.append(chooser.choose(low, high, measurements))
        return found[-1].flops or found[-1].least

    guess = FIRST_GUESS if limit.flops is None else FLOPS_TO_SMALLEST * limit.flops
    spec, measurements = _settled(request, guess, choose)
    choice, plan = found[-1], chooser.plan(measurements, [b.flops for b in spec.budgets])
    assert plan.price is not None
    cost = f"{fmt.flops(plan.price.flops)} FLOPs"
    if plan.price.wall_seconds is not None:
        cost = f"{fmt.duration(plan.price.wall_seconds)} on {fmt.counted(plan.price.slots or 1, 'slot')}, {cost}"
    if not choice.flops:
        least = f"a law needs budgets {LEAST_RANGE:g}x apart, and the least with these models, data and batch are"
        what = f"budgets: {least} {_shown(choice.least)} FLOPs"
        enough = f"{fmt.flops(1.01 * plan.price.flops)} FLOPs"
        if limit.seconds is not None:
            enough = fmt.duration(60 * math.ceil((plan.price.wall_seconds or 0.0) / SHARE / 60))
        fault = f"{what}, which take about {cost}: more than {limit}; give {enough}, or lower train.batch_size"
        if choice.binds == "data":
            ratio = request.spec.grid.tokens_per_param
            fault = (
                f"{what}, whose valleys would lie on one side of the expected optimum at D/N = {ratio:g}: add data, "
                "raise data.max_epochs, or lower grid.tokens_per_param if your best models see fewer tokens"
            )
        raise SpecError(request.source, [fault])
    binds = f"{limit} allow" if choice.binds == "limit" else "data and models allow"
    why = f"as much as {binds}: about {cost}, {fmt.counted(len(plan.expected), 'experiment')}"
    say(f"budgets: {_shown(choice.flops)} FLOPs, {why}")
    return replace(request, spec=spec.model_copy(update={"budgets_for": limit.model_copy(update={"why": why})}))


def _settled(
    request: RunRequest, guess: float, choose: Callable[[float, float, Measurements], Sequence[float]]
) -> tuple[SweepSpec, Measurements]:
    """Choose budgets, measure the models around them, and choose again, until they stay.

    Args:
        guess: C of the smallest budget. Models are measured up to about its optimum, so where they are all too large
            for it, larger guesses follow.
        choose: budgets from the ends of C that are possible, and the measurements.
    """
    guesses = [guess * factor for factor in LARGER_GUESSES]
    spec = with_budgets_at(request.spec, spaced(guesses[0], LEAST_RANGE * guesses[0]))
    for _ in range(MAX_ROUNDS):
        with faults_of(request.source):
            measurements = request.measure(spec, COUNTING)
        ends = budget_range(spec, measurements)
        if ends is None or ends[1] < LEAST_RANGE * ends[0]:
            del guesses[0]
            if not guesses:
                raise SpecError(request.source, [_too_narrow(spec, measurements, ends)])
            spec = with_budgets_at(request.spec, spaced(guesses[0], LEAST_RANGE * guesses[0]))
            continue
        with faults_of(request.source):
            flops = choose(*ends, measurements)
        if [b.flops for b in spec.budgets] == list(flops):
            return spec, measurements
        spec = with_budgets_at(spec, flops)
    with faults_of(request.source):
        return spec, request.measure(spec, COUNTING)


def _too_narrow(spec: SweepSpec, measurements: Measurements, ends: tuple[float, float] | None) -> str:
    batch, data = spec.train.batch_size, measurements.data
    have = f"train.batch_size {batch} and {data.tokens_per_epoch or 0:,} training tokens"
    if ends is None:
        return f"budgets: none are possible with these models, {have}; lower the batch, or add data"
    low, high = (fmt.flops(c) for c in ends)
    return (
        f"budgets: with these models, {have} they lie between {low} and {high} FLOPs, {ends[1] / ends[0]:.2g}x apart, "
        f"and a law needs {LEAST_RANGE:g}x; lower the batch, or add data"
    )


def _shown(flops: Sequence[float]) -> str:
    return ", ".join(map(fmt.flops, flops))
