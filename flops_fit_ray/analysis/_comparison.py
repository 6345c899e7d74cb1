"""Differences between the scaling laws of two sweeps, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis._flags import Flag
from flops_fit_ray.analysis._law import Interval, Law, central_interval
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.diagnostics import extrapolation_warning
from flops_fit_ray.analysis.prediction import check_budget, extrapolation
from flops_fit_ray.errors import FitError
from flops_fit_ray.fit_options import MethodName


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One number of both sweeps and its difference: b - a for exponents and losses, b / a for N and D."""

    name: str
    a: float
    b: float
    difference: float
    interval: Interval | None
    neutral: float  # the value of no difference: 0, or 1 for a ratio

    @property
    def differs(self) -> bool | None:
        """True if the interval excludes equality; None without an interval."""
        return None if self.interval is None else not self.interval.holds(self.neutral)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences between two sweeps at one budget, by one method."""

    method: MethodName
    budget: float
    confidence: float
    differences: tuple[Difference, ...]
    extrapolation: tuple[float, float]  # factor beyond the fitted budgets, of each sweep
    warnings: tuple[Flag, ...]


def compare(a: SweepFit, b: SweepFit, budget: float, method: MethodName | None = None) -> Comparison:
    """Compare exponents, N_opt, D_opt and L_opt of b with those of a at C = `budget`.

    Raises:
        FitError: a sweep has no law by the method, or the budget is not a positive number.
    """
    check_budget(budget)
    name = method or _common(a, b)
    laws = []
    for which, fit in (("the first", a), ("the second", b)):
        result = fit.methods.get(name)
        if result is None or result.laws is None:
            reason = result.reason if result else "it has no training curves"
            raise FitError(f"{which} sweep has no scaling law from method {name}: {reason}; compare by another method")
        laws.append(result.laws)
    (n_a, d_a, l_a), (n_b, d_b, l_b) = laws
    confidence = a.options.confidence
    rows = (
        _exponent("exponent of N_opt", n_a, n_b, confidence),
        _exponent("exponent of D_opt", d_a, d_b, confidence),
        _value("N_opt", n_a, n_b, budget, confidence, ratio=True),
        _value("D_opt", d_a, d_b, budget, confidence, ratio=True),
        _value("L_opt", l_a, l_b, budget, confidence, ratio=False),
    )
    far = [extrapolation(fit, budget, fit.methods[name]) for fit in (a, b)]
    return Comparison(
        method=name,
        budget=budget,
        confidence=confidence,
        differences=rows,
        extrapolation=(far[0][0].factor, far[1][0].factor),
        warnings=tuple(extrapolation_warning(*far[0], *far[1])),
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
        draws = _difference_draws(a.draws.exponent, b.draws.exponent, ratio=False)
    return Difference(name=name, a=a.exponent, b=b.exponent, difference=b.exponent - a.exponent,
                      interval=None if draws is None else central_interval(draws, confidence), neutral=0.0)  # fmt: skip


def _value(name: str, a: Law, b: Law, budget: float, confidence: float, *, ratio: bool) -> Difference:
    draws = None
    if a.draws is not None and b.draws is not None:
        draws = _difference_draws(a.draws.at(budget), b.draws.at(budget), ratio=ratio)
    first, second = a.at(budget), b.at(budget)
    return Difference(name=name, a=first, b=second, difference=second / first if ratio else second - first,
                      interval=None if draws is None else central_interval(draws, confidence),
                      neutral=1.0 if ratio else 0.0)  # fmt: skip


def _difference_draws(a: Floats, b: Floats, *, ratio: bool) -> Floats:
    """Bootstrap draws of b - a, or of b / a.

    Both bootstraps may have used the same seed, so b is permuted: the sweeps are independent, and so must the draws be.
    """
    count = min(len(a), len(b))
    shuffled = np.random.default_rng(count).permutation(b)[:count]
    return np.asarray(shuffled / a[:count] if ratio else shuffled - a[:count])
