"""Budgets for a sweep that says how much it may cost: the widest range that data, steps and limit allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.planning._adaptive import MARGIN
from flops_fit_ray.planning._feasible import feasible, well_stepped
from flops_fit_ray.planning._plan import Plan
from flops_fit_ray.planning._ranges import feasible_range
from flops_fit_ray.planning.experiment import Measurements
from flops_fit_ray.planning.grid import centre_of, with_budgets_at
from flops_fit_ray.spec import SweepSpec

RATIO = math.sqrt(10)  # of neighbouring budgets
LEAST_RANGE, MOST_RANGE = 10.0, 300.0  # of the largest budget to the smallest
FEWEST, MOST = 3, 6  # budgets
PRECISION = 1.05  # to which the largest budget is searched

Allowed = Callable[[Sequence[float]], bool]


@dataclass(frozen=True, kw_only=True)
class ChosenBudgets:
    """Budgets, and what kept the largest one from being larger."""

    flops: tuple[float, ...]  # C of each, increasing; empty where the least of all sweeps is not allowed
    binds: str  # "limit", "data", or "range" where it is wide enough
    least: tuple[float, ...]  # the least that a law needs


def choose_budgets(low: float, high: float, allowed: Allowed) -> ChosenBudgets:
    """Choose budgets between C = `low` and `high` (may be infinite): the widest range of which is allowed.

    Two that lie `MOST_RANGE` apart are wide enough: from there on the smallest one rises with the largest.
    `high` must be at least `LEAST_RANGE` times `low`.
    """
    least = spaced(low, LEAST_RANGE * low)
    if not allowed(least):
        return ChosenBudgets(flops=(), binds="limit", least=least)

    def up_to(top: float) -> tuple[float, ...]:
        return spaced(max(low, top / MOST_RANGE), top)

    good, bad = LEAST_RANGE * low, high
    if math.isfinite(high):
        if allowed(up_to(high)):
            return ChosenBudgets(flops=up_to(high), binds="data", least=least)
    else:
        bad = good * MOST_RANGE
        while allowed(up_to(bad)):
            good, bad = bad, bad * MOST_RANGE
    while bad / good > PRECISION:
        middle = math.sqrt(good * bad)
        good, bad = (middle, bad) if allowed(up_to(middle)) else (good, middle)
    return ChosenBudgets(flops=up_to(good), binds="limit", least=least)


def spaced(low: float, high: float) -> tuple[float, ...]:
    """Return budgets about `RATIO` apart, in three digits, within the ends."""
    count = min(max(round(math.log(high / low) / math.log(RATIO)) + 1, FEWEST), MOST)
    found = [float(f"{c:.3g}") for c in np.geomspace(low, high, count)]
    found[0], found[-1] = _rounded(low, math.ceil), _rounded(high, math.floor)
    return tuple(found)


def _rounded(value: float, to: Callable[[float], int]) -> float:
    digit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{to(value / digit * (1 + 1e-12 if to is math.floor else 1 - 1e-12)) * digit:.6g}")


def budget_range(spec: SweepSpec, measurements: Measurements) -> tuple[float, float] | None:
    """Return the ends of C between which models, data and batch allow budgets; None where they allow none.

    The smallest gives its sizes `MIN_STEPS` optimizer steps where any C does. The largest may be infinite.
    """
    near = spec.budgets[0].flops

    def stepped(c: float) -> bool:
        return well_stepped(spec, measurements, c)

    def first(c: float) -> bool:
        return feasible(with_budgets_at(spec, [c]), measurements, c)

    found = feasible_range(spec, measurements, stepped, near, LEAST_RANGE)
    found = found or feasible_range(spec, measurements, first, near, LEAST_RANGE)
    if found is None:
        return None
    alone = with_budgets_at(spec, [found[0]])
    further = feasible_range(alone, measurements, lambda c: feasible(alone, measurements, c), found[0])
    return found if further is None else (found[0], further[1])


def is_bracketed(plan: Plan, spec: SweepSpec, measurements: Measurements) -> bool:
    """Return True if every budget of a plan has sizes well below and above its expected optimum."""
    for budget in spec.budgets:
        sizes = [e.params for e in plan.expected if e.role == "grid" and e.budget == budget.flops]
        centre = centre_of(spec, measurements, budget.flops)
        if not sizes or min(sizes) * MARGIN > centre or max(sizes) < MARGIN * centre:
            return False
    return True
