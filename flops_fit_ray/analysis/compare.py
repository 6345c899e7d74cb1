"""Two sweeps side by side: do they differ, and by how much?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.doubts import extrapolation_warning
from flops_fit_ray.analysis.flags import Flag
from flops_fit_ray.analysis.law import Interval, Law, interval
from flops_fit_ray.analysis.methods import MethodName
from flops_fit_ray.analysis.prediction import check_budget, extrapolation
from flops_fit_ray.analysis.sweep_fit import SweepFit
from flops_fit_ray.errors import FitError


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One number of both, and how they differ: b - a for exponents and losses, b / a for N and D."""

    name: str
    a: float
    b: float
    difference: float
    interval: Interval | None
    neutral: float  # the difference of equals: 0, or 1 for a ratio

    @property
    def differs(self) -> bool | None:
        """Whether the interval leaves out equality; None without an interval."""
        return None if self.interval is None else not self.interval.holds(self.neutral)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """At one budget, by one method."""

    method: MethodName
    budget: float
    confidence: float
    differences: tuple[Difference, ...]
    extrapolation: tuple[float, float]  # factor beyond the fitted budgets of each
    warnings: tuple[Flag, ...]


def compare(a: SweepFit, b: SweepFit, budget: float, method: MethodName | None = None) -> Comparison:
    """Exponents, N_opt, D_opt and L_opt of b against a.

    Raises:
        FitError: a sweep has no law by the method, or the budget is not a positive number.
    """
    check_budget(budget)
    name = method or _common(a, b)
    laws = []
    for which, fit in (("the first", a), ("the second", b)):
        found = fit.methods.get(name)
        if found is None or found.laws is None:
            raise FitError(f"{which} has no law by {name}: {found.reason if found else 'no training curves'}")
        laws.append(found.laws)
    (n_a, d_a, l_a), (n_b, d_b, l_b) = laws
    confidence = a.options.confidence
    rows = (
        _exponent("exponent of N_opt", n_a, n_b, confidence),
        _exponent("exponent of D_opt", d_a, d_b, confidence),
        _value("N_opt", n_a, n_b, budget, confidence, ratio=True),
        _value("D_opt", d_a, d_b, budget, confidence, ratio=True),
        _value("L_opt", l_a, l_b, budget, confidence, ratio=False),
    )
    factors = (extrapolation(a, budget, name), extrapolation(b, budget, name))
    return Comparison(
        method=name,
        budget=budget,
        confidence=confidence,
        differences=rows,
        extrapolation=factors,
        warnings=tuple(extrapolation_warning(max(factors))),
    )


def _common(a: SweepFit, b: SweepFit) -> MethodName:
    order: tuple[MethodName, ...] = (a.default, b.default, "valley", "surface_huber", "surface_squared")
    for name in order:
        if all(name in fit.methods and fit.methods[name].params_opt is not None for fit in (a, b)):
            return name
    return a.default


def _exponent(name: str, a: Law, b: Law, confidence: float) -> Difference:
    draws = None
    if a.draws is not None and b.draws is not None:
        draws = _apart(a.draws.exponent, b.draws.exponent, ratio=False)
    return Difference(name=name, a=a.exponent, b=b.exponent, difference=b.exponent - a.exponent,
                      interval=None if draws is None else interval(draws, confidence), neutral=0.0)  # fmt: skip


def _value(name: str, a: Law, b: Law, budget: float, confidence: float, *, ratio: bool) -> Difference:
    draws = None
    if a.draws is not None and b.draws is not None:
        draws = _apart(a.draws.at(budget), b.draws.at(budget), ratio=ratio)
    one, other = a.at(budget), b.at(budget)
    return Difference(name=name, a=one, b=other, difference=other / one if ratio else other - one,
                      interval=None if draws is None else interval(draws, confidence),
                      neutral=1.0 if ratio else 0.0)  # fmt: skip


def _apart(a: Floats, b: Floats, *, ratio: bool) -> Floats:
    """Draws of the difference. Both bootstraps may have used one seed, so the second is shuffled: no draw is shared."""
    number = min(len(a), len(b))
    shuffled = np.random.default_rng(number).permutation(b)[:number]
    return np.asarray(shuffled / a[:number] if ratio else shuffled - a[:number])
