"""Stopping rule of a sweep: single runs are added until N_opt at a target C is known within a factor.

They are chosen when everything planned has ended, so that the choice depends on results alone: not on who ended first,
on slots or on interruptions. What was chosen is recorded in the directory's spec (`grid.runs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import NextRun, Place, SweepFit, rate_floor
from flops_fit_ray.errors import FitError, SpecError
from flops_fit_ray.planning import is_single_run
from flops_fit_ray.spec import Budget, SingleRun, SweepSpec
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.next_places import SweepSpace, next_runs_of

DEFAULT_COST_RATIO = 10.0  # without --at-most, all may cost this many times what the planned grid costs
BEYOND = 10.0  # times the largest budget: the target where none is given
HALVINGS = 6  # of the FLOPs that are left, down to those of the cheapest runs that are looked for
FIRST_SEEDS = 2  # where nothing tells the noise of the losses
ROUND, SHARE = 4, 0.1  # runs that are chosen together, and the share of those so far where that is more


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """Add runs until N_opt at C = `target` is known within `factor`, or `at_most` FLOPs are spent in all."""

    target: float
    factor: float
    at_most: float | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Decision on what follows. Without runs the sweep ends here."""

    factor: float | None  # now: N_opt at the target lies within N_opt/factor and N_opt·factor; None without an interval
    reached: bool
    runs: tuple[SingleRun, ...]
    message: str


def stopping_rule_for(spec: SweepSpec, text: str | None, at_most: float | None = None) -> StoppingRule | None:
    """Return the rule for a sweep that `1.3` or `1.3@1e21` states; None without one.

    The target is that of the text, else `grid.target`, else ten times the largest budget. `ci=1.3@1e21` is the same.

    Raises:
        SpecError: the text has another form, a number is out of range, or the sweep can have no interval of N_opt.
    """
    if text is None:
        return None
    if spec.is_one_run:
        raise SpecError("--until", ["needs a sweep, and this spec is a single run; give more budgets or sizes"])
    if not spec.fit.draws:
        raise SpecError("--until", ["needs an interval of N_opt, but fit.draws is 0; set fit.draws, e.g. to 2000"])
    factor, at, target = text.removeprefix("ci=").partition("@")
    usual = spec.grid.target or BEYOND * max(b.flops for b in spec.budgets)
    try:
        rule = StoppingRule(factor=float(factor), target=float(target) if at else usual, at_most=at_most)
    except ValueError:
        rule = StoppingRule(factor=0.0, target=0.0)
    if not (1 < rule.factor < math.inf and 0 < rule.target < math.inf):
        fault = f"{text!r} is not of the form FACTOR[@C] with FACTOR above 1, e.g. 1.3 or 1.3@1e21"
        raise SpecError("--until", [fault])
    if at_most is not None and not (0 < at_most < math.inf):
        raise SpecError("--at-most", [f"must be a positive number of FLOPs (got {at_most:g})"])
    return rule


def with_budgets(spec: SweepSpec, budgets: Sequence[Budget]) -> SweepSpec:
    """Return the spec with these budgets added, in increasing order."""
    return spec.model_copy(update={"budgets": sorted([*spec.budgets, *budgets], key=lambda b: b.flops)})


def with_runs(spec: SweepSpec, runs: Sequence[SingleRun]) -> SweepSpec:
    """Return the spec with these single runs added."""
    return spec.model_copy(update={"grid": spec.grid.model_copy(update={"runs": [*spec.grid.runs, *runs]})})


def factor_at(fit: SweepFit, target: float) -> float | None:
    """Return the factor within which N_opt at C = `target` is known; None without an interval."""
    law = fit.params_opt
    return None if law is None else law.known_within(target, fit.options.confidence)


def decide_next(sweep: Sweep, rule: StoppingRule) -> Decision:
    """Decide which runs follow a sweep whose planned experiments have all ended."""
    factor = factor_at(sweep.fit, rule.target)
    known = "has no interval yet" if factor is None else f"is known within x/÷{factor:.3g}"
    now = f"N_opt at C = {fmt.flops(rule.target)} {known}"
    if factor is not None and factor <= rule.factor:
        done = f"{now}, within the x/÷{rule.factor:g} of --until: done"
        return Decision(factor=factor, reached=True, runs=(), message=done)

    def ended(why: str) -> Decision:
        return Decision(factor=factor, reached=False, runs=(), message=f"{now}; {why}: stopped")

    space = SweepSpace(sweep)
    room = sweep.spec.grid.max_experiments - len(sweep.plan.experiments)
    experiments = [e for e in sweep.plan.experiments if e.axis is None]
    planned = sum(e.flops_executed for e in experiments if not is_single_run(e))
    others = sum(e.flops_executed for e in sweep.plan.experiments if e.axis is not None)  # spent, and say nothing here
    limit = rule.at_most or DEFAULT_COST_RATIO * planned + others
    if space.spent >= limit:
        return ended(f"{fmt.flops(space.spent)} of {fmt.flops(limit)} FLOPs allowed are spent; raise --at-most")
    if room < 1:
        return ended(f"grid.max_experiments = {sweep.spec.grid.max_experiments} is reached; raise it")
    if factor is None and sweep.fit.optima and sweep.fit.noise is None and room >= FIRST_SEEDS:
        places = [_at_cheapest_minimum(sweep)] * FIRST_SEEDS
        runs, flops = space.single_runs(places), sum(space.prices(places))
        where = f"C = {fmt.flops(runs[0].flops)} size {runs[0].size}"
        words = f"{now}, as the noise of the losses is not known: {FIRST_SEEDS} more seeds of {where}"
        if space.spent + flops > limit:
            return ended(f"{FIRST_SEEDS} more seeds of {where} cost {fmt.flops(flops)} FLOPs; raise --at-most")
        return Decision(factor=None, reached=False, runs=runs, message=words)
    floor = math.exp(rate_floor(sweep.fit, rule.target))
    if floor >= rule.factor:
        return ended(f"what the probes leave open of the learning rates is x/÷{floor:.3g} alone; give train.lr")
    count = min(max(ROUND, round(SHARE * len(experiments))), room)
    try:
        chosen = _next(sweep, rule, count, limit - space.spent)
    except (FitError, SpecError) as e:
        return ended("; ".join(e.faults) if isinstance(e, SpecError) else str(e))
    flops, after = sum(run.flops for run in chosen), chosen[-1].factor
    runs = space.single_runs(chosen)
    words = fmt.listed([f"C = {fmt.flops(r.flops)} size {r.size}{' again' if r.seed else ''}" for r in runs], 6)
    return Decision(
        factor=factor,
        reached=False,
        runs=runs,
        message=f"{now}; {len(runs)} more runs for {fmt.flops(flops)} FLOPs, expected to give x/÷{after:.3g}: {words}",
    )


def _at_cheapest_minimum(sweep: Sweep) -> Place:
    """Return the run of the smallest budget with an optimum that is nearest to it."""
    lowest = sweep.fit.optima[0][0]
    there = [e for e in sweep.plan.experiments if e.budget == lowest.budget and e.role == "grid"]
    e = min(there, key=lambda e: abs(math.log(e.params / lowest.params_opt)))
    return Place(budget=e.budget, params=float(e.params), tokens=float(e.tokens), size=e.size)


def _next(sweep: Sweep, rule: StoppingRule, count: int, left: float) -> Sequence[NextRun]:
    """Choose runs among those for `left` FLOPs, a half of it, a quarter, ...

    1) the cheapest that are expected to be enough
    2) else those that narrow N_opt most and are worth it: F·w², w = ln factor and F all FLOPs, does not rise by them,
       as if the whole sweep were repeated. Cheaper ones would follow each other without an end.
    3) else those with the least F·w²

    Raises:
        SpecError, FitError: as `next_runs`, for all that is left.
    """
    tried: list[tuple[bool, float, Sequence[NextRun]]] = []
    for halvings in range(HALVINGS, -1, -1):
        try:
            found = next_runs_of(sweep, sweep.fit, count, rule.target, left / 2**halvings)
        except (FitError, SpecError):
            if halvings == 0 and not tried:
                raise
            continue
        chosen = _enough(found.runs, rule.factor)
        after = math.log(chosen[-1].factor)
        if chosen[-1].factor <= rule.factor:
            return chosen
        cost = (found.spent + sum(run.flops for run in chosen)) * after**2
        good = cost <= found.spent * math.log(found.factor) ** 2
        tried.append((not good, after if good else cost, chosen))
    return min(tried, key=lambda one: one[:2])[2]


def _enough(runs: Sequence[NextRun], factor: float) -> Sequence[NextRun]:
    """Return the first runs after which N_opt is expected to be known within `factor`; all where it is not."""
    for i, run in enumerate(runs, 1):
        whole = i == len(runs) or runs[i].step != run.step
        if whole and run.factor <= factor:
            return runs[:i]
    return runs
