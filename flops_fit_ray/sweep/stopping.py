"""Stopping rule of a sweep that adds budgets: N_opt at a target C known within a factor, or the next one too dear."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import Place, SweepFit, expected_factors
from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import IN_FIT, Experiment
from flops_fit_ray.spec import Budget, SweepSpec
from flops_fit_ray.sweep.directory import Sweep

DEFAULT_COST_RATIO = 10.0  # without --at-most, all may cost this many times what the sweep cost before
MAX_FACTOR_RATIO = 0.97  # the next budget must be expected to narrow the factor to this share of it


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """Add budgets until N_opt at C = `target` is known within `factor`, or `at_most` FLOPs are spent in all."""

    target: float
    factor: float
    at_most: float | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Decision on the next budget. Factors are None where there is no interval."""

    factor: float | None  # now: the interval of N_opt at the target lies within N_opt/factor and N_opt·factor
    reached: bool
    budget: float  # the next one, C
    flops: float  # that it would execute
    next_factor: float | None  # expected after it
    proceed: bool
    message: str


def parse_stopping_rule(text: str, at_most: float | None = None) -> StoppingRule:
    """Return the rule that `ci=1.3@1e21` states.

    Raises:
        SpecError: the text has another form, or a number is out of range.
    """
    name, _, rest = text.partition("=")
    factor, _, target = rest.partition("@")
    try:
        rule = StoppingRule(factor=float(factor), target=float(target), at_most=at_most)
    except ValueError:
        rule = StoppingRule(factor=0.0, target=0.0)
    good = name == "ci" and rule.factor > 1 and 0 < rule.target < math.inf and math.isfinite(rule.factor)
    if not good:
        raise SpecError("--until", [f"{text!r} is not of the form ci=FACTOR@C with FACTOR above 1, e.g. ci=1.3@1e21"])
    if at_most is not None and not (0 < at_most < math.inf):
        raise SpecError("--at-most", [f"must be a positive number of FLOPs (got {at_most:g})"])
    return rule


def stopping_rule_for(spec: SweepSpec, text: str | None, at_most: float | None = None) -> StoppingRule | None:
    """Return the rule for a sweep; None without one.

    Raises:
        SpecError: as `parse_stopping_rule`, or the sweep cannot choose sizes for a further budget.
    """
    if text is None:
        return None
    if not spec.is_adaptive:
        raise SpecError(
            "--until",
            ["needs an adaptive grid, but this spec lists its sizes, so none are known for a further budget; leave "
             "the sizes out, or add budgets by hand with `extend`"],
        )  # fmt: skip
    if not spec.fit.draws:
        raise SpecError("--until", ["needs an interval of N_opt, but fit.draws is 0; set fit.draws, e.g. to 2000"])
    return parse_stopping_rule(text, at_most)


def next_budget(spec: SweepSpec) -> float:
    """Return the budget that follows the largest one at the sweep's median ratio, in three digits."""
    flops = [b.flops for b in spec.budgets]
    ratio = float(np.median([b / a for a, b in itertools.pairwise(flops)]))
    return float(f"{flops[-1] * max(ratio, 1.5):.3g}")


def with_budgets(spec: SweepSpec, budgets: Sequence[Budget]) -> SweepSpec:
    """Return the spec with these budgets added, in increasing order."""
    return spec.model_copy(update={"budgets": sorted([*spec.budgets, *budgets], key=lambda b: b.flops)})


def factor_at(fit: SweepFit, target: float) -> float | None:
    """Return the factor within which N_opt at C = `target` is known; None without an interval."""
    law = fit.params_opt
    return None if law is None else law.known_within(target, fit.options.confidence)


def decide_next(
    sweep: Sweep, rule: StoppingRule, budget: float, following: Sequence[Experiment], limit: float
) -> Decision:
    """Decide on adding `budget`, with the experiments that would follow; `limit` is FLOPs, of the whole sweep."""
    flops = sum(e.flops_executed for e in following)
    places = [
        Place(budget=budget, params=float(e.params), tokens=float(e.tokens))
        for e in following
        if e.budget == budget and e.role in IN_FIT
    ]
    factor = factor_at(sweep.fit, rule.target)
    after = expected_factors(sweep.fit, rule.target, places).get(sweep.fit.default) if places else None
    reached = factor is not None and factor <= rule.factor
    known = "has no interval yet" if factor is None else f"is known within x/÷{factor:.3g}"
    now = f"N_opt at C = {fmt.flops(rule.target)} {known}"
    expected = "" if after is None else f" and narrow that to about x/÷{after:.3g}"
    then = f"adding C = {fmt.flops(budget)} would cost {fmt.flops(flops)} FLOPs{expected}"
    proceed = False
    if reached:
        message = f"{now}, within the x/÷{rule.factor:g} of --until: done"
    elif sweep.flops_spent + flops > limit:
        message = (
            f"{now}; {then}, more than the total of {fmt.flops(limit)} FLOPs allowed: stopped; raise --at-most to "
            "continue"
        )
    elif budget > rule.target:
        message = f"{now}; {then}, but is larger than the target itself: stopped"
    elif factor is not None and after is not None and after > MAX_FACTOR_RATIO * factor:
        message = f"{now}; {then}, hardly narrower: stopped; more sizes or seeds may help (`extend`)"
    else:
        proceed, message = True, f"{now}; {then}: continuing"
    return Decision(
        factor=factor, reached=reached, budget=budget, flops=flops, next_factor=after, proceed=proceed, message=message
    )
