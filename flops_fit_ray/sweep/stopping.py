"""When a sweep knows enough: N_opt at a target within a factor, and what the next budget would cost and narrow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import SweepFit
from flops_fit_ray.analysis.law import fit_power_law
from flops_fit_ray.errors import SpecError
from flops_fit_ray.spec import Budget, SweepSpec
from flops_fit_ray.sweep.directory import Sweep

LIMIT = 10.0  # times what the sweep has cost before, where nobody says how much it may cost in all
WORTH_IT = 0.97  # of the factor now, that the next budget must promise


@dataclass(frozen=True, kw_only=True)
class Until:
    """Go on until N_opt at C = `target` is known within `factor`; `at_most` FLOPs in all."""

    target: float
    factor: float
    at_most: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Where a sweep stands. Factors are None where there is no interval."""

    factor: float | None  # of N_opt at the target: its interval lies within N/factor and N·factor
    reached: bool
    budget: float  # the next one
    flops: float  # that it would execute
    next_factor: float | None  # that it would leave
    goes_on: bool
    words: str


def parse_until(words: str, at_most: float | None = None) -> Until:
    """`ci=1.3@1e21` as a rule.

    Raises:
        SpecError: it is of another form, or its numbers have no meaning.
    """
    name, _, rest = words.partition("=")
    factor, _, target = rest.partition("@")
    try:
        found = Until(factor=float(factor), target=float(target), at_most=at_most)
    except ValueError:
        found = Until(factor=0.0, target=0.0)
    good = name == "ci" and found.factor > 1 and 0 < found.target < math.inf and math.isfinite(found.factor)
    if not good:
        raise SpecError("--until", [f"{words!r} is not of the form ci=FACTOR@C, for example ci=1.3@1e21"])
    if at_most is not None and not (0 < at_most < math.inf):
        raise SpecError("--at-most", [f"must be a positive number of FLOPs (got {at_most:g})"])
    return found


def until_for(spec: SweepSpec, words: str | None, at_most: float | None = None) -> Until | None:
    """The rule for a sweep; None where none is wanted.

    Raises:
        SpecError: as `parse_until`, or the sweep cannot choose sizes for a further budget.
    """
    if words is None:
        return None
    if not spec.is_adaptive:
        raise SpecError("--until", ["a grid whose sizes are listed cannot go on by itself; leave the sizes out"])
    return parse_until(words, at_most)


def next_budget(spec: SweepSpec) -> float:
    """The budget above the largest, by the usual ratio of this sweep, in three digits."""
    flops = [b.flops for b in spec.budgets]
    ratio = float(np.median([b / a for a, b in itertools.pairwise(flops)]))
    return float(f"{flops[-1] * max(ratio, 1.5):.3g}")


def with_budgets(spec: SweepSpec, budgets: Sequence[Budget]) -> SweepSpec:
    """The spec with more budgets."""
    return spec.model_copy(update={"budgets": sorted([*spec.budgets, *budgets], key=lambda b: b.flops)})


def factor_at(fit: SweepFit, target: float) -> float | None:
    """The factor within which N_opt at C = `target` is known; None without an interval."""
    law = fit.params_opt
    within = None if law is None else law.interval(target, fit.options.confidence)
    if law is None or within is None:
        return None
    n = law.at(target)
    return float(max(within.high / n, n / within.low))


def expected_factor(fit: SweepFit, target: float, budget: float) -> float | None:
    """The factor that one more budget would leave, if its minimum is as uncertain as the others are on the mean."""
    law = fit.params_opt
    used = [i for i, v in enumerate(fit.valleys) if v.status == "interior"]
    if law is None or fit.minima is None or fit.default != "valley" or len(used) < 2:
        return None
    drawn = fit.minima.log10_params[:, used]
    spread = float(np.sqrt(np.nanmean(np.nanvar(drawn, axis=0))))
    rng = np.random.default_rng(fit.options.seed)
    more = math.log10(law.at(budget)) + spread * rng.standard_normal(len(drawn))
    flops = np.array([*(fit.valleys[i].flops for i in used), budget])
    values = np.array([*(fit.valleys[i].params_opt for i in used), law.at(budget)])
    wider = fit_power_law(flops, values, draws=np.column_stack([drawn, more]))
    within = wider.interval(target, fit.options.confidence)
    if within is None:
        return None
    n = wider.at(target)
    return float(max(within.high / n, n / within.low))


def outlook(sweep: Sweep, until: Until, budget: float, flops: float, limit: float) -> Outlook:
    """Whether to go on with `budget`, which would execute `flops`; `limit` is what all may cost."""
    factor = factor_at(sweep.fit, until.target)
    after = expected_factor(sweep.fit, until.target, budget)
    reached = factor is not None and factor <= until.factor
    known = "is not known" if factor is None else f"is known within x/÷{factor:.3g}"
    said = f"N_opt at C = {fmt.flops(until.target)} {known}"
    coming = f"C = {fmt.flops(budget)} would cost {fmt.flops(flops)} FLOPs" + (
        "" if after is None else f" and leave x/÷{after:.3g}"
    )
    goes_on = False
    if reached:
        words = f"{said}: x/÷{until.factor:g} was asked for"
    elif sweep.flops_spent + flops > limit:
        words = f"{said}; {coming}, beyond the {fmt.flops(limit)} FLOPs that all may cost (--at-most)"
    elif budget > until.target:
        words = f"{said}; {coming}, and lies beyond the target itself"
    elif factor is not None and after is not None and after > WORTH_IT * factor:
        words = f"{said}; {coming}: not worth it"
    else:
        goes_on, words = True, f"{said}; {coming}: going on"
    return Outlook(
        factor=factor, reached=reached, budget=budget, flops=flops, next_factor=after, goes_on=goes_on, words=words
    )
