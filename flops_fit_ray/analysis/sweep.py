"""A whole sweep: every method that its points allow, laws with intervals, and what to know before trusting them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from flops_fit_ray.analysis.arrays import Floats, Ints
from flops_fit_ray.analysis.envelope import envelope_method
from flops_fit_ray.analysis.flags import Flag, Severity
from flops_fit_ray.analysis.law import FEWEST_DRAWS, Interval, Law, interval
from flops_fit_ray.analysis.methods import (
    METHODS,
    LawWeights,
    Method,
    MethodName,
    Minima,
    ValleyIntervals,
    draw_minima,
    interior,
    surface_method,
    valley_intervals,
    valley_method,
    valley_noise,
)
from flops_fit_ray.analysis.noise import Noise, SeedNoise, seed_noise
from flops_fit_ray.analysis.points import Points, budget_gap, check_points
from flops_fit_ray.analysis.surface import SurfaceLoss, SurfaceOptions, bootstrap_surface, fit_surface
from flops_fit_ray.analysis.valley import CurveName, Valley, fit_valley
from flops_fit_ray.errors import FitError

TRUSTED_RANGE = 32.0  # largest over smallest budget, from which an exponent can be trusted
TRUSTED_BUDGETS = 4
WARN_EXTRAPOLATION = 10.0
HEADLINE_EXTRAPOLATION = 100.0
LOST_DRAWS_WARNING = 0.05
CLEAR_SHIFT = 1.96  # standard errors by which minima must move against C to be called unordered
FEWEST_FOR_SURFACE = 15  # points, three for each parameter, below which a surface is no answer by itself
FEWEST_SEEDS = 6  # degrees of freedom from which the spread between seeds is a run's noise
APART = 1.15  # least ratio of neighbouring budgets' nearest C, where they were found by nearness
MOSTLY = 0.75  # of the points must lie in valleys with an optimum, where budgets were found by nearness
COST_SCATTER_WARNING = 0.05  # of ln C about k·N^c·D


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a fit is made. The defaults are the field's."""

    draws: int = 2000
    confidence: float = 0.95
    seed: int = 0
    method: Literal["auto"] | MethodName = "auto"  # the one whose answer is the answer
    curve: CurveName = "parabola"
    window: int | None = None  # sizes nearest to the lowest loss; None: all
    law_weights: LawWeights = "equal"
    delta: float = 1e-3  # of the Huber loss of ln L
    undertuned: float = 1.0  # weight of runs above the surface; Huber only
    pins: Mapping[str, float] = field(default_factory=dict)

    def surface(self, loss: SurfaceLoss) -> SurfaceOptions:
        """What a surface fit needs of it."""
        return SurfaceOptions(loss=loss, delta=self.delta, undertuned=self.undertuned, pins=self.pins)


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepFit:
    """Everything the points say. `warnings` are for people and programs."""

    points: Points
    valleys: tuple[Valley, ...]
    minima: Minima | None  # of the valleys in every draw; None where no scatter could be measured
    intervals: tuple[ValleyIntervals | None, ...]  # beside `valleys`
    methods: Mapping[MethodName, Method]
    default: MethodName
    noise: Noise | None  # about the valleys' curves
    seeds: SeedNoise | None
    options: FitOptions
    warnings: tuple[Flag, ...]

    @property
    def answer(self) -> Method:
        """The default method."""
        return self.methods[self.default]

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
        """Why there is no law; empty where there is one."""
        if self.answer.params_opt is not None:
            return ""
        return self.answer.reason if self.default == "valley" else f"{self.answer.words}: {self.answer.reason}"

    @property
    def optima(self) -> list[tuple[Valley, ValleyIntervals | None]]:
        """The budgets that have an optimum, increasing, with its intervals."""
        return [(v, i) for v, i in zip(self.valleys, self.intervals, strict=True) if v.status == "interior"]

    @property
    def laws(self) -> list[tuple[str, Law]]:
        """The laws of the default method, by the names that people read."""
        named = (("N_opt", self.params_opt), ("D_opt", self.tokens_opt), ("L_opt", self.loss_opt))
        return [(name, law) for name, law in named if law is not None]

    @property
    def fitted_range(self) -> tuple[float, float]:
        """Smallest and largest C that the default method's laws rest on."""
        if self.default == "valley":
            fitted = [v.flops for v, _ in self.optima]
            return min(fitted), max(fitted)
        return float(self.points.flops.min()), float(self.points.flops.max())


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer at one budget."""

    budget: float
    method: MethodName
    params: float
    tokens: float
    loss: float
    params_interval: Interval | None
    tokens_interval: Interval | None
    loss_interval: Interval | None  # of the law
    run_interval: Interval | None  # of the loss of one new run there: the law's, and a run's own noise
    extrapolation: float  # factor beyond the nearest fitted budget; 1 inside the range
    warnings: tuple[Flag, ...]


def fit_sweep(points: Points, options: FitOptions = FitOptions(), curves: Points | None = None) -> SweepFit:
    """All methods on all points. It always returns: what could not be made says why.

    Args:
        curves: losses along the training runs, for the envelope; None takes those of `points` where runs have several.

    Raises:
        FitError: a loss, size or budget is not a finite number (or not positive, where it must be).
    """
    check_points(points)
    valleys = tuple(fit_valleys(points, options))
    noise = valley_noise(valleys, points)
    rng = np.random.default_rng(options.seed)
    minima = draw_minima(valleys, points, noise, options.draws, rng) if noise is not None and options.draws else None
    methods: dict[MethodName, Method] = {"valley": valley_method(valleys, minima, options.law_weights)}
    losses: tuple[SurfaceLoss, ...] = ("huber", "squared")
    for loss in losses:
        wanted = options.surface(loss)
        surface = bootstrap_surface(
            fit_surface(points, wanted), points, wanted, options.draws, np.random.default_rng(options.seed)
        )
        method = surface_method(surface)
        methods[method.name] = method
    if (envelope := envelope_method(points if curves is None else curves, options.draws, rng)) is not None:
        methods["envelope"] = envelope
    default = _default(points, valleys, methods, options)
    return SweepFit(
        points=points,
        valleys=valleys,
        minima=minima,
        intervals=tuple(valley_intervals(valleys, minima, options.confidence)),
        methods=methods,
        default=default,
        noise=noise,
        seeds=seed_noise(points),
        options=options,
        warnings=tuple(_warnings(points, valleys, minima, noise, methods, default, options)),
    )


def predict(fit: SweepFit, budget: float, method: MethodName | None = None) -> Prediction:
    """N, D and loss at C = `budget` FLOPs, with intervals of the fitted laws.

    Raises:
        FitError: the method gave no law, or the budget is not a positive number.
    """
    if not (np.isfinite(budget) and budget > 0):
        raise FitError(f"C must be a positive number of FLOPs, and is {budget}")
    chosen = fit.methods[method or fit.default]
    if chosen.params_opt is None or chosen.tokens_opt is None or chosen.loss_opt is None:
        raise FitError(f"there is no law to predict from: {chosen.reason}")
    low, high = fit.fitted_range
    factor = max(budget / high, low / budget, 1.0)
    confidence = fit.options.confidence
    return Prediction(
        budget=budget,
        method=chosen.name,
        params=chosen.params_opt.at(budget),
        tokens=chosen.tokens_opt.at(budget),
        loss=chosen.loss_opt.at(budget),
        params_interval=chosen.params_opt.interval(budget, confidence),
        tokens_interval=chosen.tokens_opt.interval(budget, confidence),
        loss_interval=chosen.loss_opt.interval(budget, confidence),
        run_interval=_run_interval(fit, chosen.loss_opt, budget),
        extrapolation=factor,
        warnings=tuple(_prediction_warnings(fit, chosen, factor)),
    )


def _run_interval(fit: SweepFit, law: Law, budget: float) -> Interval | None:
    if law.draws is None:
        return None
    values = law.draws.at(budget)
    noise = run_noise(fit)
    if noise is None:
        return None
    sigma, df = noise
    rng = np.random.default_rng(fit.options.seed)
    own = rng.standard_normal(len(values)) * sigma * np.sqrt(df / rng.chisquare(df, len(values)))
    return interval(values + own, fit.options.confidence)


def run_noise(fit: SweepFit) -> tuple[float, int] | None:
    """Standard deviation of one run's loss in nats, and its degrees of freedom: between seeds, else about the fit."""
    if fit.seeds is not None and fit.seeds.df >= FEWEST_SEEDS:
        return fit.seeds.sigma, fit.seeds.df
    if fit.default == "valley":
        return None if fit.noise is None else (fit.noise.pooled, fit.noise.pooled_df)
    surface = fit.answer.surface
    df = len(fit.points) - 5
    if surface is None or not surface.usable or df < 1:
        return None
    scale = float(np.mean(fit.points.loss)) if surface.loss == "huber" else 1.0
    return scale * float(np.sqrt(surface.residuals @ surface.residuals / df)), df


def fit_valleys(points: Points, options: FitOptions) -> Iterator[Valley]:
    """One valley per budget, increasing."""
    for budget in np.unique(points.budget):
        yield valley_of(points, float(budget), np.flatnonzero(points.budget == budget), options)


def valley_of(points: Points, budget: float, index: Ints, options: FitOptions) -> Valley:
    """The valley of the points with these indices."""
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
    )


def _default(
    points: Points, valleys: Sequence[Valley], methods: Mapping[MethodName, Method], options: FitOptions
) -> MethodName:
    """Valleys where there are two at least, else the robust surface, else whatever has a law.

    Runs scattered over C can be cut into valleys as well: where no label says what a budget is, they must stand apart.
    """
    if options.method != "auto":
        if options.method not in methods:
            raise FitError(f"there are no training curves for the {options.method}")
        return options.method
    if len(points) < FEWEST_FOR_SURFACE:
        return "valley"
    in_valleys = sum(len(v.loss) for v in valleys if v.status == "interior")
    valley = methods["valley"]
    scattered = in_valleys < MOSTLY * len(points) or budget_gap(points) < APART
    order: tuple[MethodName, ...] = ("valley", "surface_huber", "surface_squared")
    if not points.labelled and (scattered or valley.lost_draws > valley.draws / 2):
        order = ("surface_huber", "surface_squared")
    return next((name for name in order if methods[name].params_opt is not None), order[0])


def _warnings(
    points: Points,
    valleys: Sequence[Valley],
    minima: Minima | None,
    noise: Noise | None,
    methods: Mapping[MethodName, Method],
    default: MethodName,
    options: FitOptions,
) -> Iterator[Flag]:
    yield from _lost_budgets(points, valleys)
    if default == "valley":
        yield from _valley_warnings(valleys, minima, noise, options)
    yield from _method_warnings(methods, default)
    surface = methods["surface_huber"].surface
    if surface is not None and surface.cost is not None and surface.cost.scatter > COST_SCATTER_WARNING:
        yield Flag(
            "cost_law",
            "warning",
            f"C is not k·N^c·D: {100 * surface.cost.scatter:.2g} % scatter; N_opt and D_opt of the surfaces rest on it",
        )
    if points.run is not None and points.num_runs < len(points):
        yield Flag(
            "checkpoints",
            "info",
            f"{len(points)} losses come from {points.num_runs} runs: the bootstrap keeps those of a run together",
        )


def _lost_budgets(points: Points, valleys: Sequence[Valley]) -> Iterator[Flag]:
    for valley in valleys:
        if valley.status != "interior" and (points.labelled or valley.status != "too_few"):
            yield Flag(f"valley_{valley.status}", "warning", f"no optimum at C = {valley.budget:g}: {valley.reason}")
    alone = sum(len(v.loss) for v in valleys if v.status == "too_few")
    if alone and not points.labelled:
        yield Flag(
            "no_budget", "info", f"{alone} of {len(points)} points lie near no budget: the valleys leave them out"
        )


def _method_warnings(methods: Mapping[MethodName, Method], default: MethodName) -> Iterator[Flag]:
    for name in METHODS:
        method = methods.get(name)
        if method is None:
            continue
        loud: Severity = "warning" if name == default else "info"
        if method.reason and name != "valley":
            yield Flag(f"{name}_{method.status}", loud, f"{method.words}: {method.reason}")
        if method.lost_draws > LOST_DRAWS_WARNING * max(method.draws, 1):
            most = method.lost_draws > (1 - FEWEST_DRAWS) * method.draws
            what = "there is no interval" if most else "the intervals are too narrow"
            words = f"{method.words}: {method.lost_draws} of {method.draws} bootstrap draws gave no optimum: {what}"
            yield Flag("lost_draws", loud, words)
        if method.loss_opt is not None and method.loss_opt.exponent > 0:
            yield Flag("loss_rises", "severe" if loud == "warning" else loud, f"{method.words}: the loss rises with C")


def _valley_warnings(
    valleys: Sequence[Valley], minima: Minima | None, noise: Noise | None, options: FitOptions
) -> Iterator[Flag]:
    used = interior(valleys)
    fitted = [valleys[i].flops for i in used]
    if len(fitted) >= 2:
        yield from range_warning(max(fitted) / min(fitted), len(fitted))
        if _moves_back(valleys, used, minima):
            words = "the minima do not move right with C: the noise is as large as the effect, or a run is bad"
            yield Flag("unordered_minima", "warning", words)
    if noise is None and valleys:
        words = (
            "no intervals: every curve goes through all of its points and leaves no scatter to see; add sizes or seeds"
        )
        yield Flag("no_intervals", "warning", words)


def _moves_back(valleys: Sequence[Valley], used: Sequence[int], minima: Minima | None) -> bool:
    """Whether a larger budget has a clearly smaller N_opt; clearly by the draws, where there are any."""
    for i, j in itertools.pairwise(used):
        back: Floats | float = np.log10(valleys[i].params_opt) - np.log10(valleys[j].params_opt)
        if back <= 0:
            continue
        if minima is None:
            return True
        spread = float(np.nanstd(minima.log10_params[:, i] - minima.log10_params[:, j]))
        if back > CLEAR_SHIFT * spread or spread == 0:
            return True
    return False


def range_warning(span: float, count: int) -> Iterator[Flag]:
    """What to say where the budgets lie too close together for an exponent."""
    if span < TRUSTED_RANGE or count < TRUSTED_BUDGETS:
        yield Flag(
            "narrow_range",
            "warning",
            f"an exponent from {count} budgets over a range of {span:.3g}x is not trustworthy: at least "
            f"{TRUSTED_BUDGETS} over {TRUSTED_RANGE:g}x are needed",
        )


def _prediction_warnings(fit: SweepFit, method: Method, factor: float) -> Iterator[Flag]:
    yield from extrapolation_warning(factor)
    if factor > 1 and method.name == "valley" and method.loss_opt is not None:
        if not method.loss_opt.offset:
            yield Flag("loss_law", "info", "the loss law has no irreducible term, so it is too low beyond the data")
        low, high = fit.fitted_range
        yield from range_warning(high / low, len(fit.optima))


def extrapolation_warning(factor: float) -> Iterator[Flag]:
    """What to say of an answer so far beyond the data."""
    if factor > HEADLINE_EXTRAPOLATION:
        words = f"EXTRAPOLATION BY {factor:.3g}x: the interval does not cover what may change on the way"
        yield Flag("extrapolation", "severe", words)
    elif factor > WARN_EXTRAPOLATION:
        words = f"extrapolation by {factor:.3g}x: the interval assumes that the straight line goes on"
        yield Flag("extrapolation", "warning", words)
