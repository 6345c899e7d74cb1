"""A whole sweep: valleys, N_opt(C), D_opt(C), L_opt(C), and intervals by bootstrap.

The bootstrap draws new losses for every run from the parabolas' own scatter and repeats both stages, valleys and laws.
The scatter is pooled over the valleys, because 5 points leave 2 degrees of freedom to each, and its own uncertainty is
drawn too (sigma² · df / chi²), without which 6 to 10 degrees of freedom give intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.law import PowerLaw, fit_lines, fit_power_law
from flops_fit_ray.analysis.valley import MIN_POINTS, Floats, Parabola, Valley, fit_valley
from flops_fit_ray.errors import FitError

TRUSTED_RANGE = 32.0  # largest over smallest budget, from which an exponent can be trusted
TRUSTED_BUDGETS = 4
WARN_EXTRAPOLATION = 10.0
HEADLINE_EXTRAPOLATION = 100.0
LOST_DRAWS_WARNING = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """One entry per completed experiment; all arrays (points,)."""

    budget: Floats  # C asked for: the group a point belongs to
    flops: Floats  # C spent
    params: Floats
    tokens: Floats
    loss: Floats


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How intervals are made."""

    draws: int = 2000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """A central interval at the fit's confidence."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ValleyIntervals:
    """Intervals of one interior valley's minimum."""

    params_opt: Interval
    tokens_opt: Interval
    loss_opt: Interval


@dataclass(frozen=True, kw_only=True, eq=False)
class LawDraws:
    """The laws of every bootstrap draw that gave one; arrays (draws,), NaN where a draw had no minimum."""

    exponent: Floats
    log10_coefficient: Floats

    def at(self, budget: float) -> Floats:
        """log10 of the laws' values at C = `budget`."""
        return self.log10_coefficient + self.exponent * float(np.log10(budget))


@dataclass(frozen=True, kw_only=True, eq=False)
class Law:
    """A power law over C with the interval of its exponent; `draws` is None where no scatter could be measured."""

    law: PowerLaw
    exponent_interval: Interval | None
    draws: LawDraws | None


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepFit:
    """Everything a sweep says. `warnings` are for people; the rest is for programs as well."""

    valleys: tuple[Valley, ...]
    intervals: tuple[ValleyIntervals | None, ...]  # beside `valleys`
    params_opt: Law | None
    tokens_opt: Law | None
    loss_opt: Law | None
    noise: float | None  # standard deviation of a loss about its parabola, nats
    noise_df: int
    lost_draws: int
    options: FitOptions
    problem: str  # why there is no law; empty where there is one
    warnings: tuple[str, ...]

    @property
    def optima(self) -> list[tuple[Valley, ValleyIntervals | None]]:
        """The budgets that have an optimum, increasing, with its intervals."""
        return [(v, i) for v, i in zip(self.valleys, self.intervals, strict=True) if v.status == "interior"]

    @property
    def laws(self) -> list[tuple[str, Law]]:
        """The laws that could be fitted, by the names that people read."""
        named = (("N_opt", self.params_opt), ("D_opt", self.tokens_opt), ("L_opt", self.loss_opt))
        return [(name, law) for name, law in named if law is not None]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer at one budget."""

    budget: float
    params: float
    tokens: float
    loss: float
    params_interval: Interval | None
    tokens_interval: Interval | None
    loss_interval: Interval | None
    extrapolation: float  # factor beyond the nearest fitted budget; 1 inside the range
    warnings: tuple[str, ...]


def fit_sweep(points: Points, options: FitOptions = FitOptions()) -> SweepFit:
    """Valleys and laws of all completed experiments. It always returns: what could not be made says why.

    Raises:
        FitError: a loss, size or budget is not a finite number (or not positive, where it must be).
    """
    _check(points)
    valleys = tuple(_valleys(points))
    noise, df = _pooled_noise(valleys)
    draws = _draw_minima(valleys, noise, df, options) if noise is not None else None
    used = [i for i, v in enumerate(valleys) if v.status == "interior"]
    laws, problem = _laws(valleys, used, draws, options)
    lost = 0 if draws is None or not used else int(np.isnan(draws[0][:, used]).any(axis=1).sum())
    return SweepFit(
        valleys=valleys,
        intervals=tuple(_valley_intervals(valleys, draws, options)),
        params_opt=laws[0],
        tokens_opt=laws[1],
        loss_opt=laws[2],
        noise=noise,
        noise_df=df,
        lost_draws=lost,
        options=options,
        problem=problem,
        warnings=tuple(_warnings(valleys, noise, lost, options)),
    )


def predict(fit: SweepFit, budget: float) -> Prediction:
    """N, D and loss at C = `budget` FLOPs, with intervals of the fitted laws.

    Raises:
        FitError: the sweep gave no law, or the budget is not a positive number.
    """
    if not (np.isfinite(budget) and budget > 0):
        raise FitError(f"C must be a positive number of FLOPs, and is {budget}")
    if fit.params_opt is None or fit.tokens_opt is None or fit.loss_opt is None:
        raise FitError(f"there is no law to predict from: {fit.problem}")
    fitted = [v.flops for v, _ in fit.optima]
    factor = max(budget / max(fitted), min(fitted) / budget, 1.0)
    return Prediction(
        budget=budget,
        params=fit.params_opt.law.at(budget),
        tokens=fit.tokens_opt.law.at(budget),
        loss=fit.loss_opt.law.at(budget),
        params_interval=law_interval(fit.params_opt, budget, fit.options),
        tokens_interval=law_interval(fit.tokens_opt, budget, fit.options),
        loss_interval=law_interval(fit.loss_opt, budget, fit.options),
        extrapolation=factor,
        warnings=tuple(_prediction_warnings(factor, max(fitted) / min(fitted), len(fitted))),
    )


def _check(points: Points) -> None:
    for name in ("budget", "flops", "params", "tokens", "loss"):
        values = getattr(points, name)
        bad = values[~(np.isfinite(values) & (values > 0))]
        if len(bad):
            raise FitError(f"{name} must be positive and finite, and {len(bad)} value(s) are not, such as {bad[0]}")


def _valleys(points: Points) -> Iterator[Valley]:
    for budget in np.unique(points.budget):
        here = points.budget == budget
        yield fit_valley(float(budget), points.flops[here], points.params[here], points.tokens[here], points.loss[here])


def _pooled_noise(valleys: Sequence[Valley]) -> tuple[float | None, int]:
    """Standard deviation about the parabolas over N, and its degrees of freedom: points - 3 for each valley."""
    curves = [v.over_params for v in valleys if v.over_params is not None]
    df = sum(len(c.residuals) - MIN_POINTS for c in curves)
    if df < 1:
        return None, 0
    return float(np.sqrt(sum(float(c.residuals @ c.residuals) for c in curves) / df)), df


def _draw_minima(
    valleys: Sequence[Valley], noise: float, df: int, options: FitOptions
) -> tuple[Floats, Floats, Floats]:
    """log10 N_opt, log10 D_opt and log10 L_opt of every draw and valley: (draws, valleys), NaN without a minimum."""
    rng = np.random.default_rng(options.seed)
    sigma = noise * np.sqrt(df / rng.chisquare(df, size=options.draws))
    minima = np.full((3, options.draws, len(valleys)), np.nan)
    for i, valley in enumerate(valleys):
        scatter = sigma[:, None] * rng.standard_normal((options.draws, len(valley.loss)))
        if valley.status != "interior" or valley.over_params is None or valley.over_tokens is None:
            continue
        minima[0, :, i], loss = _redraw(valley.over_params, scatter)
        minima[1, :, i], _ = _redraw(valley.over_tokens, scatter)
        minima[2, :, i] = np.log10(np.where(loss > 0, loss, np.nan))
    lost = np.isnan(minima).any(axis=0)
    minima[:, lost] = np.nan
    return minima[0], minima[1], minima[2]


def _redraw(parabola: Parabola, scatter: Floats) -> tuple[Floats, Floats]:
    """Vertex and minimum of the parabola through curve + scatter; scatter (draws, points), NaN where it is concave."""
    a, b, c = (parabola.coefficients[:, None] + parabola.solver @ scatter.T).astype(np.float64)
    a = np.where(a > 0, a, np.nan)
    return parabola.centre - b / (2 * a), c - b * b / (4 * a)


def _laws(
    valleys: Sequence[Valley],
    used: Sequence[int],
    draws: tuple[Floats, Floats, Floats] | None,
    options: FitOptions,
) -> tuple[tuple[Law | None, Law | None, Law | None], str]:
    if len(used) < 2:
        without = "; ".join(f"C = {v.budget:g}: {v.reason}" for v in valleys if v.status != "interior")
        return (None, None, None), f"{len(used)} budget(s) have an optimum, and a law needs 2 ({without})"
    flops = np.array([valleys[i].flops for i in used])
    values = (
        np.array([valleys[i].params_opt for i in used]),
        np.array([valleys[i].tokens_opt for i in used]),
        np.array([valleys[i].loss_opt for i in used]),
    )
    if not (values[2] > 0).all():
        return (None, None, None), "the loss at a minimum is not positive, so it has no power law"
    params, tokens, loss = (
        _law(flops, value, None if draws is None else draws[j][:, used], options) for j, value in enumerate(values)
    )
    return (params, tokens, loss), ""


def _law(flops: Floats, value: Floats, minima: Floats | None, options: FitOptions) -> Law:
    law = fit_power_law(flops, value)
    if minima is None:
        return Law(law=law, exponent_interval=None, draws=None)
    exponent, coefficient = fit_lines(np.log10(flops), minima)
    return Law(
        law=law,
        exponent_interval=_interval(exponent, options),
        draws=LawDraws(exponent=exponent, log10_coefficient=coefficient),
    )


def _valley_intervals(
    valleys: Sequence[Valley], draws: tuple[Floats, Floats, Floats] | None, options: FitOptions
) -> Iterator[ValleyIntervals | None]:
    for i, valley in enumerate(valleys):
        if draws is None or valley.status != "interior":
            yield None
            continue
        params, tokens, loss = (_interval(d[:, i], options, power=True) for d in draws)
        if params is None or tokens is None or loss is None:
            yield None
        else:
            yield ValleyIntervals(params_opt=params, tokens_opt=tokens, loss_opt=loss)


def law_interval(law: Law, budget: float, options: FitOptions) -> Interval | None:
    """The interval of a law at C = `budget`; None where no scatter could be measured or most draws were lost."""
    return None if law.draws is None else _interval(law.draws.at(budget), options, power=True)


def _interval(values: Floats, options: FitOptions, *, power: bool = False) -> Interval | None:
    """Central quantiles over the draws that gave a value; None where hardly any did. `power`: values are log10."""
    kept = values[~np.isnan(values)]
    if len(kept) < len(values) / 2:
        return None
    low, high = np.quantile(kept, [(1 - options.confidence) / 2, (1 + options.confidence) / 2])
    return Interval(float(10**low), float(10**high)) if power else Interval(float(low), float(high))


def _warnings(valleys: Sequence[Valley], noise: float | None, lost: int, options: FitOptions) -> Iterator[str]:
    for valley in valleys:
        if valley.status != "interior":
            yield f"no optimum at C = {valley.budget:g}: {valley.reason}"
    fitted = [v.flops for v in valleys if v.status == "interior"]
    if len(fitted) >= 2:
        yield from range_warning(max(fitted) / min(fitted), len(fitted))
        optima = [v.params_opt for v in valleys if v.status == "interior"]
        if optima != sorted(optima):
            yield "the minima do not move right with C: the noise is as large as the effect, or a run is bad"
    if noise is None and valleys:
        yield "no intervals: with 3 sizes per budget a parabola fits every valley exactly and leaves no scatter to see"
    if lost > LOST_DRAWS_WARNING * options.draws:
        yield (
            f"{lost} of {options.draws} bootstrap draws lost a minimum: the valleys are shallow for their noise, and "
            "the intervals are too narrow"
        )


def range_warning(span: float, count: int) -> Iterator[str]:
    """What to say where the budgets lie too close together for an exponent."""
    if span < TRUSTED_RANGE or count < TRUSTED_BUDGETS:
        yield (
            f"an exponent from {count} budgets over a range of {span:.3g}x is not trustworthy: at least "
            f"{TRUSTED_BUDGETS} over {TRUSTED_RANGE:g}x are needed"
        )


def _prediction_warnings(factor: float, span: float, count: int) -> Iterator[str]:
    if factor > HEADLINE_EXTRAPOLATION:
        yield f"EXTRAPOLATION BY {factor:.3g}x: the interval does not cover what may change on the way"
    elif factor > WARN_EXTRAPOLATION:
        yield f"extrapolation by {factor:.3g}x: the interval assumes that the straight line goes on"
    if factor > 1:
        yield "the loss law has no irreducible term, so it is too low beyond the data"
        yield from range_warning(span, count)
