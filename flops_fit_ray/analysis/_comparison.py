"""Differences between the scaling laws of two sweeps, or of a sweep and a published law, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flops_fit_ray.analysis._distance import Distance
from flops_fit_ray.analysis._law import Interval, Law, central_interval
from flops_fit_ray.analysis._published_answer import predict_published
from flops_fit_ray.analysis._speedup import Compared, Speedup, speedup
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.diagnostics import extrapolation_warning
from flops_fit_ray.analysis.prediction import check_budget, extrapolation
from flops_fit_ray.analysis.published import PublishedLaw
from flops_fit_ray.errors import FitError, SpecError
from flops_fit_ray.fit_options import FIT_DEFAULTS, MethodName
from flops_fit_ray.flags import Flag


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
    """Differences between two laws at one budget, of sweeps by one method."""

    method: MethodName | Literal["published"]  # published: neither is a sweep
    budget: float
    confidence: float
    differences: tuple[Difference, ...]
    extrapolation: tuple[float | None, float | None]  # factor beyond the fitted budgets, of each; None: not published
    warnings: tuple[Flag, ...]
    speedup: Speedup | None  # None where a law of the loss is missing, or the losses are of different kinds


@dataclass(frozen=True, kw_only=True, eq=False)
class _Side:
    """One of the two that are compared: its laws at the budget, and how far that is from its runs."""

    n: Law
    d: Law
    loss: Law | None  # None: none is published
    far: tuple[Distance, ...]

    @property
    def factor(self) -> float | None:
        """Factor of C beyond the fitted budgets."""
        return next((one.factor for one in self.far if one.quantity == "C"), None)


def compare(
    a: SweepFit | PublishedLaw,
    b: SweepFit | PublishedLaw,
    budget: float,
    method: MethodName | None = None,
    *,
    known: Sequence[Flag] = (),
) -> Comparison:
    """Compare exponents, N_opt, D_opt and L_opt of b with those of a at C = `budget`, and say by how much b is better.

    Args:
        known: differences of data and losses that are known. One of code `other_loss` leaves the speedup out.

    Raises:
        FitError: a sweep has no law by the method, or the budget is not a positive number.
    """
    check_budget(budget)
    fits = [one for one in (a, b) if isinstance(one, SweepFit)]
    name = None if not fits else method or _common(fits)
    one, other = (_side(which, x, budget, name) for which, x in (("the first", a), ("the second", b)))
    confidence = (fits[0].options if fits else FIT_DEFAULTS).confidence
    rows = [
        _exponent("exponent of N_opt", one.n, other.n, confidence),
        _exponent("exponent of D_opt", one.d, other.d, confidence),
        _value("N_opt", one.n, other.n, budget, confidence, ratio=True),
        _value("D_opt", one.d, other.d, budget, confidence, ratio=True),
    ]
    if one.loss is not None and other.loss is not None:
        rows.append(_value("L_opt", one.loss, other.loss, budget, confidence, ratio=False))
    far = [*one.far, *other.far]
    compared = [_compared(x, side, name) for x, side in ((a, one), (b, other))]
    found = None
    if compared[0] is not None and compared[1] is not None and not any(flag.code == "other_loss" for flag in known):
        found = speedup(compared[0], compared[1], budget, confidence)
    return Comparison(
        method=name or "published",
        budget=budget,
        confidence=confidence,
        differences=tuple(rows),
        extrapolation=(one.factor, other.factor),
        warnings=(
            *known,
            *_of_published(a, b),
            *(extrapolation_warning(*far) if far else ()),
            *(() if found is None else found.notes),
        ),
        speedup=found,
    )


def _compared(of: SweepFit | PublishedLaw, side: _Side, name: MethodName | None) -> Compared | None:
    """Return what the speedup is found from; None without a law of the loss."""
    if side.loss is None:
        return None
    if isinstance(of, PublishedLaw):
        return Compared(loss=side.loss, params=side.n, tokens=side.d, span=of.budgets, fit=None, surface=of.surface,
                        surface_draws=None)  # fmt: skip
    assert name is not None
    found, others = of.surface.surface, []
    for other in ("valley", of.surface.name):
        law = of.methods[other].loss_opt
        if other != name and law is not None and (other != "valley" or of.points.labelled):
            others.append(law)
    usable = found is not None and found.usable
    return Compared(
        loss=side.loss,
        params=side.n,
        tokens=side.d,
        span=of.range_of(name),
        fit=of if name == "valley" else None,
        surface=found.surface if found is not None and usable else None,
        surface_draws=found.draws if found is not None and usable else None,
        others=tuple(others[:1]),
    )


def common_budget(a: SweepFit | PublishedLaw, b: SweepFit | PublishedLaw) -> float:
    """Return the largest C that both were fitted to.

    Raises:
        SpecError: neither says which that is.
    """
    tops = [one.fitted_range[1] if isinstance(one, SweepFit) else (one.budgets or (0.0, np.inf))[1] for one in (a, b)]
    if not np.isfinite(min(tops)):
        raise SpecError("--at", ["neither paper says at which C its runs were made; choose one by --at C"])
    return min(tops)


def _side(which: str, of: SweepFit | PublishedLaw, budget: float, name: MethodName | None) -> _Side:
    if isinstance(of, PublishedLaw):
        n, d, loss = of.laws
        return _Side(n=n, d=d, loss=loss, far=predict_published(of, budget).distances)
    assert name is not None
    result = of.methods.get(name)
    if result is None or result.laws is None:
        reason = result.reason if result else "it has no training curves"
        raise FitError(f"{which} sweep has no scaling law from method {name}: {reason}; compare by another method")
    return _Side(
        n=result.laws[0], d=result.laws[1], loss=result.laws[2], far=extrapolation(of, budget, of.methods[name])
    )


def _of_published(a: SweepFit | PublishedLaw, b: SweepFit | PublishedLaw) -> Iterator[Flag]:
    laws = [one for one in (a, b) if isinstance(one, PublishedLaw)]
    for law in laws[: 1 if a is b else 2]:
        if law.loss_unit is None:
            unit = "it says nothing of the loss"
        else:
            unit = "losses of other data or of another tokenizer are no measure of a recipe"
        known = "there are no intervals" if len(laws) == 2 else "intervals hold the noise of the sweep alone"
        yield Flag(
            "published_law",
            "warning",
            f"{law.name} is of {law.data} (what N counts: {law.params_counted}); {unit}; {known}",
        )


def _common(fits: Sequence[SweepFit]) -> MethodName:
    order: tuple[MethodName, ...] = (*(fit.default for fit in fits), "valley", "surface_huber", "surface_squared")
    for name in order:
        if all(name in fit.methods and fit.methods[name].params_opt is not None for fit in fits):
            return name
    return fits[0].default


def _exponent(name: str, a: Law, b: Law, confidence: float) -> Difference:
    draws = _difference_draws(
        a.exponent, b.exponent, *(None if x.draws is None else x.draws.exponent for x in (a, b)), ratio=False
    )
    return Difference(name=name, a=a.exponent, b=b.exponent, difference=b.exponent - a.exponent,
                      interval=None if draws is None else central_interval(draws, confidence), neutral=0.0)  # fmt: skip


def _value(name: str, a: Law, b: Law, budget: float, confidence: float, *, ratio: bool) -> Difference:
    first, second = a.at(budget), b.at(budget)
    draws = _difference_draws(
        first, second, *(None if x.draws is None else x.draws.at(budget) for x in (a, b)), ratio=ratio
    )
    return Difference(name=name, a=first, b=second, difference=second / first if ratio else second - first,
                      interval=None if draws is None else central_interval(draws, confidence),
                      neutral=1.0 if ratio else 0.0)  # fmt: skip


def _difference_draws(
    a: float, b: float, a_draws: Floats | None, b_draws: Floats | None, *, ratio: bool
) -> Floats | None:
    """Draws of b - a, or of b / a; a side without draws is taken as it is, and None where neither has any.

    Both bootstraps may have used the same seed, so b is permuted: the sweeps are independent, and so must the draws be.
    """
    if a_draws is None and b_draws is None:
        return None
    count = min(len(draws) for draws in (a_draws, b_draws) if draws is not None)
    first = np.full(count, a) if a_draws is None else a_draws[:count]
    second = np.full(count, b) if b_draws is None else np.random.default_rng(count).permutation(b_draws)[:count]
    return np.asarray(second / first if ratio else second - first)
