"""The fit of a whole sweep: every method that its points allow, laws with intervals, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flops_fit_ray.analysis._bracketed import bracketed
from flops_fit_ray.analysis._curve_choice import choose_curve
from flops_fit_ray.analysis._envelope import envelope_method
from flops_fit_ray.analysis._lack_of_fit import FitTest, HeldOutTop, fit_tests, hold_out_top
from flops_fit_ray.analysis._law import Law
from flops_fit_ray.analysis._law_choice import Choice, choose_surface
from flops_fit_ray.analysis._methods import Method, bent_as_valleys, no_law, surface_method, valley_method
from flops_fit_ray.analysis._valley_minima import (
    Minima,
    MinimaErrors,
    ValleyIntervals,
    ValleySkew,
    draw_minima,
    likely_excess,
    minima_errors,
    shared_skew,
    valley_intervals,
    valley_noise,
    valley_skew,
)
from flops_fit_ray.analysis.arrays import Floats, Ints
from flops_fit_ray.analysis.diagnostics import diagnose
from flops_fit_ray.analysis.learning_rates import BestRates, best_rates
from flops_fit_ray.analysis.noise import Noise, SeedNoise, seed_noise
from flops_fit_ray.analysis.points import Points, budget_gap, check_points
from flops_fit_ray.analysis.repetition import Repetition, fit_repetition
from flops_fit_ray.analysis.surface import bootstrap_cases, bootstrap_surface, fit_surface, fit_token_cost
from flops_fit_ray.analysis.valley import MIN_DISTINCT_SIZES, Valley, fit_valley
from flops_fit_ray.fit_options import FIT_DEFAULTS, SURFACES, FitOptions, MethodName
from flops_fit_ray.flags import Flag

MIN_FOR_SURFACE = 15  # points, three for each parameter, from which a surface can be the default method
APART = 1.15  # least gap between neighbouring budgets that were inferred by nearness
DRAWS_ASIDE = 200  # of the bootstrap of the coupled law where it is not the answer
MOSTLY = 0.75  # share of the points in valleys with an optimum, where budgets were inferred by nearness


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepFit:
    """The result of a fit: valleys, the laws of every method, noise and warnings."""

    points: Points
    valleys: tuple[Valley, ...]
    minima: Minima | None  # of the valleys in every draw; None where the noise is unknown
    errors: MinimaErrors | None  # of the valleys' optima by that noise
    intervals: tuple[ValleyIntervals | None, ...]  # beside `valleys`
    methods: Mapping[MethodName, Method]
    default: MethodName
    noise: Noise | None  # about the valleys' curves
    seeds: SeedNoise | None
    options: FitOptions
    warnings: tuple[Flag, ...]
    choices: tuple[Choice, ...] = ()  # among laws for the same losses, where one had to be made
    lack_of_fit: tuple[FitTest, ...] = ()  # tests of every method that the points allow
    top: HeldOutTop | None = None  # the largest C, held out of the Huber surface
    repetition: Repetition | None = None  # what repeated data cost; None where none are known
    rates: BestRates | None = None  # what probed learning rates leave open; None where rates are taken for the best
    skew: ValleySkew | None = None  # of the valleys, which their intervals hold; None where no interval does

    @property
    def answer(self) -> Method:
        """The default method."""
        return self.methods[self.default]

    @property
    def surface(self) -> Method:
        """The default method if it fits a surface, else the chosen one: the surface that figures and checks show."""
        if self.default in SURFACES:
            return self.answer
        coupled = self.surface_choice is not None and self.surface_choice.chosen == "coupled"
        return self.methods["surface_coupled" if coupled else "surface_huber"]

    @cached_property
    def surface_choice(self) -> Choice | None:
        """The choice of the surface's law; None where a method was asked for, or a law is missing."""
        both = all(self.methods[name].params_opt is not None for name in ("surface_huber", "surface_coupled"))
        made = next((choice for choice in self.choices if choice.what == "surface"), None)
        if made or self.options.method != "auto" or not both or len(self.points) < MIN_FOR_SURFACE:
            return made
        return choose_surface(self.points_of("surface_huber"), self.options, self.top)

    @property
    def all_choices(self) -> tuple[Choice, ...]:
        """Every choice among curves and laws."""
        made, surface = self.choices, self.surface_choice
        return made if surface is None or surface in made else (*made, surface)

    @cached_property
    def with_sure_rates(self) -> SweepFit | None:
        """The same fit, its intervals as if all learning rates were the best; None where they are that anyway."""
        return None if self.rates is None else fit_sweep(replace(self.points, tried=None), self.options)

    @property
    def params_opt(self) -> Law | None:
        """N_opt(C) of the default method."""
        return self.answer.params_opt

    @property
    def tokens_opt(self) -> Law | None:
        """D_opt(C) of the default method."""
        return self.answer.tokens_opt

    @property
    def loss_opt(self) -> Law | None:
        """L_opt(C) of the default method."""
        return self.answer.loss_opt

    @property
    def problem(self) -> str:
        """Reason for a missing law; empty where there is one."""
        if self.answer.params_opt is not None:
            return ""
        return self.answer.reason if self.default == "valley" else f"{self.answer.label}: {self.answer.reason}"

    @property
    def optima(self) -> list[tuple[Valley, ValleyIntervals | None]]:
        """The budgets that have an optimum, increasing, with its intervals."""
        return [(v, i) for v, i in zip(self.valleys, self.intervals, strict=True) if v.status == "interior"]

    @property
    def laws(self) -> list[tuple[str, Law]]:
        """The laws of the default method by name."""
        named = (("N_opt", self.params_opt), ("D_opt", self.tokens_opt), ("L_opt", self.loss_opt))
        return [(name, law) for name, law in named if law is not None]

    def points_of(self, method: MethodName) -> Points:
        """Return the points that a method is fitted to: of surfaces, repeated data as effective tokens."""
        return self.points if self.repetition is None or method not in SURFACES else self.repetition.fresh

    @property
    def fitted_range(self) -> tuple[float, float]:
        """Smallest and largest C that the default method's laws rest on."""
        return self.range_of(self.default)

    def range_of(self, method: MethodName) -> tuple[float, float]:
        """Smallest and largest C that a method's laws rest on."""
        if method == "valley":
            fitted = [v.flops for v, _ in self.optima]
            return min(fitted), max(fitted)
        points = self.points_of(method)
        return float(points.flops.min()), float(points.flops.max())


def fit_sweep(points: Points, options: FitOptions = FIT_DEFAULTS, curves: Points | None = None) -> SweepFit:
    """Fit all methods to all points. A method that has no law says why in its `reason`.

    Args:
        curves: losses along the training runs, for the envelope; None uses `points` where runs have several losses.

    Raises:
        FitError: a loss, size or budget is not a finite number (or not positive, where it must be).
    """
    rng = np.random.default_rng(options.seed)
    low = fit_minima(points, options, rng)
    options = low.options
    repetition = fit_repetition(points, options.surface("surface_huber"))
    fresh = points if repetition is None else repetition.fresh
    methods: dict[MethodName, Method] = {"valley": low.method}
    for name in SURFACES:
        aside = name == "surface_coupled" and options.method != name
        draws = min(options.draws, DRAWS_ASIDE) if aside else options.draws
        methods[name] = _surface(fresh, options, name, draws, low, repetition)
    if (envelope := envelope_method(points if curves is None else curves, options.draws, rng)) is not None:
        methods["envelope"] = envelope
    elif options.method == "envelope":
        methods["envelope"] = no_law("envelope", "there are no training curves")
    default = _default(points, low.valleys, methods, options, repetition is not None and repetition.decides)
    top = hold_out_top(fresh, options.surface("surface_huber"))
    choices: tuple[Choice, ...] = () if low.choice is None else (low.choice,)
    if options.method == "auto" and default == "surface_huber" and methods[default].params_opt is not None:
        choices = (*choices, choose_surface(fresh, options, top))
        default = next(n for n, kind in SURFACES.items() if kind == ("huber", choices[-1].chosen))
        if default == "surface_coupled":
            methods[default] = _surface(fresh, options, default, options.draws, low, repetition)
    seeds = seed_noise(points)
    tests = tuple(fit_tests(fresh, low.valleys, low.errors, low.noise, seeds, methods, default, top, options))
    return SweepFit(
        points=points,
        valleys=low.valleys,
        minima=low.minima,
        errors=low.errors,
        intervals=low.intervals,
        methods=methods,
        default=default,
        noise=low.noise,
        seeds=seeds,
        options=options,
        warnings=(
            *diagnose(points, low.valleys, low.minima, low.noise, methods, default),
            *(test.flag(default) for test in tests if test.verdict == "does_not_fit"),
            *(choice.flag for choice in choices),
            *(() if repetition is None else (repetition.flag,)),
        ),
        repetition=repetition,
        rates=low.rates,
        skew=low.skew,
        lack_of_fit=tests,
        top=top,
        choices=choices,
    )


def _surface(
    points: Points, options: FitOptions, name: MethodName, draws: int, low: ValleyFit, repetition: Repetition | None
) -> Method:
    wanted, rng = options.surface(name), np.random.default_rng(options.seed)
    fit = fit_surface(points, wanted)
    excess = None if low.excess is None else low.excess[:draws]
    if repetition is not None and repetition.cases:
        method = surface_method(bootstrap_cases(fit, repetition.cases, wanted, draws, rng, excess))
    else:
        method = surface_method(bootstrap_surface(fit, points, wanted, draws, rng, excess))
    # Where data are repeated often, valleys bend because of that
    if low.minima is None or low.method.params_opt is None or (repetition is not None and repetition.decides):
        return method
    return bent_as_valleys(method, low.method.params_opt, low.minima)


@dataclass(frozen=True, kw_only=True, eq=False)
class ValleyFit:
    """The valleys and their law alone, which take milliseconds: for a view of a running sweep."""

    valleys: tuple[Valley, ...]
    noise: Noise | None  # about the valleys' curves
    minima: Minima | None  # of the valleys in every draw
    errors: MinimaErrors | None
    intervals: tuple[ValleyIntervals | None, ...]  # beside `valleys`
    method: Method  # with N_opt(C), or the reason why there is none
    options: FitOptions  # with the curve that was chosen
    choice: Choice | None  # of the curve, where it was left open
    rates: BestRates | None  # what probed learning rates leave open
    excess: Floats | None  # draws of what the rates cost (draws, points)
    skew: ValleySkew | None  # of the valleys, as far as their draws hold it


def fit_minima(points: Points, options: FitOptions = FIT_DEFAULTS, rng: np.random.Generator | None = None) -> ValleyFit:
    """Fit the valleys of all points, their minima with intervals, and the law through them.

    Args:
        rng: source of the draws; by default one with the seed of the options.

    Raises:
        FitError: as `fit_sweep`.
    """
    check_points(points)
    choice = None
    if options.curve == "auto":
        choice = choose_curve(tuple(fit_valleys(points, replace(options, curve="parabola"))), points)
        options = replace(options, curve=next(name for name in MIN_DISTINCT_SIZES if name == choice.chosen))
    valleys = tuple(fit_valleys(points, options))
    noise, minima = valley_noise(valleys, points), None
    errors = None if noise is None else minima_errors(valleys, points, noise)
    valleys = bracketed(valleys, errors)
    cost = None
    if sum(valley.status == "interior" for valley in valleys) >= 2:
        cost = fit_token_cost(points.params, points.tokens, points.flops, points.token_cost)
    rates = None if noise is None or points.tried is None else best_rates(points.tried, noise.pooled)
    excess = None
    if noise is not None and options.draws:
        rng = np.random.default_rng(options.seed) if rng is None else rng
        if rates is not None and errors is not None and points.lr is not None:
            excess = rates.excess(points.params, points.tokens, points.lr, options.draws, options.seed)
            excess = likely_excess(excess, valleys, errors, options.seed)
        minima = draw_minima(valleys, points, noise, options.draws, rng, options.seed, excess)
    return ValleyFit(
        valleys=valleys,
        noise=noise,
        minima=minima,
        errors=errors,
        intervals=tuple(valley_intervals(valleys, minima, options.confidence)),
        method=valley_method(valleys, minima, errors, options.law_weights, cost),
        options=options,
        choice=choice,
        rates=rates,
        excess=excess,
        skew=None if minima is None or noise is None else valley_skew(valleys, points, noise),
    )


def fit_valleys(points: Points, options: FitOptions) -> Iterator[Valley]:
    """Fit one valley per budget, by increasing C; `options.curve` is not auto."""
    skew = 0.0
    if options.curve == "skewed":
        skew = shared_skew(list(fit_valleys(points, replace(options, curve="parabola"))), points)
    for budget in np.unique(points.budget):
        yield valley_of(points, float(budget), np.flatnonzero(points.budget == budget), options, skew)


def valley_of(points: Points, budget: float, index: Ints, options: FitOptions, skew: float = 0.0) -> Valley:
    """Fit the valley of the points with these indices; `options.curve` is not auto."""
    assert options.curve != "auto"  # `fit_minima` has chosen
    return fit_valley(
        budget,
        index,
        points.flops[index],
        points.params[index],
        points.tokens[index],
        points.loss[index],
        points.weights[index],
        curve=options.curve,
        window=options.window,
        reach=options.reach,
        skew=skew,
    )


def _default(
    points: Points,
    valleys: Sequence[Valley],
    methods: Mapping[MethodName, Method],
    options: FitOptions,
    repeated: bool,
) -> MethodName:
    """Choose the default method: valleys where two have an optimum, else the robust surface, else any that has a law.

    Scattered runs can be grouped into valleys as well: budgets that are not labelled must be clearly separated. Where
    data are repeated often, valleys are no answer for new data, and a surface is.
    """
    if options.method != "auto":
        return options.method
    if len(points) < MIN_FOR_SURFACE:
        return "valley"
    in_valleys = sum(len(v.loss) for v in valleys if v.status == "interior")
    valley = methods["valley"]
    scattered = in_valleys < MOSTLY * len(points) or budget_gap(points) < APART
    order: tuple[MethodName, ...] = ("valley", "surface_huber", "surface_squared")
    if repeated:
        order = ("surface_huber", "surface_squared", "valley")
    elif not points.labelled and (scattered or valley.lost_draws > valley.draws / 2):
        order = ("surface_huber", "surface_squared")
    return next((name for name in order if methods[name].params_opt is not None), order[0])
