"""Prediction of N, D and loss at one budget, with intervals and the extrapolation factor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._distance import Distance, beyond_words, distance, distances
from flops_fit_ray.analysis._law import Interval, central_interval
from flops_fit_ray.analysis._loss_law import MIN_FOR_SHIFT
from flops_fit_ray.analysis._methods import Method
from flops_fit_ray.analysis._rate_part import rate_part
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.diagnostics import extrapolation_warning, range_warning
from flops_fit_ray.errors import FitError
from flops_fit_ray.fit_options import SURFACES, MethodName
from flops_fit_ray.flags import Flag

MIN_SEEDS = 6  # degrees of freedom from which the noise between seeds is used for a single run


@dataclass(frozen=True, kw_only=True, repr=False)
class Prediction(dict[str, float]):
    """Optimal N and D at one budget, and their loss. As a mapping it holds them under flops-fit's names."""

    budget: float
    method: MethodName
    params: float
    tokens: float
    loss: float
    params_interval: Interval | None
    tokens_interval: Interval | None
    loss_interval: Interval | None  # of the law
    run_interval: Interval | None  # of the loss of one new run there: uncertainty of the law plus noise of a run
    extrapolation: float  # factor beyond the nearest fitted budget; 1 inside the range
    params_extrapolation: float  # factor of N beyond the smallest or largest N that was run; 1 inside
    tokens_extrapolation: float
    warnings: tuple[Flag, ...]
    unique: float | None = None  # distinct tokens that there are; None: D new ones
    epochs: float = 1.0  # D / `unique`, or 1 where it is less
    budget_interval: Interval | None = None  # where the loss was given
    confidence: float = 0.95  # of the intervals

    @property
    def beyond(self) -> str:
        """Words on how far N and D lie beyond the runs; empty inside."""
        return beyond_words(self.params_extrapolation, self.tokens_extrapolation)

    def __post_init__(self) -> None:
        self |= {
            "target_compute": self.budget,
            "optimal_params": int(self.params),
            "optimal_tokens": int(self.tokens),
            "expected_loss": self.loss,
            "tokens_per_param": self.tokens / self.params,
        }

    def __repr__(self) -> str:
        """Return N, D and L with their intervals, and what is to be known of them, as `predict` prints it."""
        loss = f"{self.loss:.4f}"
        if self.loss_interval is not None:
            loss += f"  [{self.loss_interval.low:.4f}, {self.loss_interval.high:.4f}]"
        if self.run_interval is not None:
            loss += f", of one new run [{self.run_interval.low:.4f}, {self.run_interval.high:.4f}]"
        beyond = f" ({self.beyond})" if self.beyond else ""
        return "\n".join(
            [
                *(f"{flag} [{flag.code}]" for flag in self.warnings if flag.severity == "severe"),
                self._head(),
                f"  N  {with_interval(self.params, self.params_interval)}",
                f"  D  {with_interval(self.tokens, self.tokens_interval)}",
                f"  L  {loss}",
                *self._more(),
                f"  extrapolation factor {self.extrapolation:.3g}{self._of}{beyond}",
                *(flag.line for flag in self.warnings if flag.severity != "severe"),
            ]
        )

    _of = ""  # what is extrapolated, where it is not C

    def _head(self) -> str:
        few = "" if self.unique is None else f", {fmt.count(self.unique)} distinct tokens"
        head = f"C = {fmt.flops(self.budget)} FLOPs{few} ({self._percent} intervals)"
        if self.budget_interval is None:
            return head
        low, high = self.budget_interval.low, self.budget_interval.high
        return f"{head}\n  C  {fmt.flops(self.budget)}  [{fmt.flops(low)}, {fmt.flops(high)}] for that loss"

    def _more(self) -> list[str]:
        """Return lines about the answer that follow L."""
        return []

    @property
    def _percent(self) -> str:
        return f"{100 * self.confidence:g} %" if self.params_interval or self.loss_interval else "no"


def with_interval(value: float, interval: Interval | None) -> str:
    """Return a count, and its interval where there is one."""
    return fmt.count(value) + (f"  {fmt.interval(interval.low, interval.high)}" if interval else "")


def predict(fit: SweepFit, budget: float, method: MethodName | None = None) -> Prediction:
    """Predict N, D and loss at C = `budget` FLOPs, with intervals of the fitted laws.

    Raises:
        FitError: the method gave no law, or the budget is not a positive number.
    """
    check_budget(budget)
    chosen = fit.methods[method or fit.default]
    if chosen.laws is None:
        raise FitError(f"there is no scaling law to predict from: {chosen.reason}")
    n, d, loss = chosen.laws
    far = extrapolation(fit, budget, chosen)
    confidence = fit.options.confidence
    other = None if method else other_answer(fit, budget)
    within = [law.interval(budget, confidence) for law in chosen.laws]
    if other is not None and other.laws is not None:
        within = [_union(one, law.interval(budget, confidence)) for one, law in zip(within, other.laws, strict=True)]
    if fit.rates is None:  # draws allow for a bend and for skewed valleys, so most may lie on one side of the law
        within = [one and one.with_value(law.at(budget)) for one, law in zip(within, chosen.laws, strict=True)]
    return Prediction(
        budget=budget,
        method=chosen.name,
        params=n.at(budget),
        tokens=d.at(budget),
        loss=loss.at(budget),
        params_interval=within[0],
        tokens_interval=within[1],
        loss_interval=within[2],
        run_interval=_union(
            run_interval(fit, None if loss.draws is None else loss.draws.at(budget)),
            within[2] if other is not None else None,
        ),
        extrapolation=far[0].factor,
        params_extrapolation=far[1].factor,
        tokens_extrapolation=far[2].factor,
        confidence=confidence,
        warnings=(*_prediction_warnings(fit, chosen, far), *_rates_are_off(fit, chosen, budget)),
    )


def losses_at(fit: SweepFit, prediction: Prediction, params: Floats) -> list[tuple[float, Interval]] | None:
    """Predict the loss of one run at the same C with each of these N (sizes,); None where no surface tells it.

    1) The level is the prediction's, the shape the surface's: L(N) = L + `losses_added`
    2) The interval is the prediction's, each side widened by the shape's in quadrature
    """
    level, added = prediction.run_interval or prediction.loss_interval, losses_added(fit, prediction.budget, params)
    if added is None or level is None:
        return None
    return [(prediction.loss + by, widened(level, prediction.loss, by, within)) for by, within in added]


def losses_added(fit: SweepFit, budget: float, params: Floats) -> list[tuple[float, Interval]] | None:
    """Return S(N, C / f(N)) - min S at C for each N (sizes,), S the surface, in nats; None where there is none."""
    found = fit.surface.surface
    if found is None or not found.usable or found.surface is None or found.cost is None:
        return None
    tokens = budget / np.exp(found.cost.per_token(np.log(params))[0])
    shape = found.surface.loss(params, tokens) - found.surface.optimum(budget, found.cost)[2]
    if found.draws is None:
        return [(float(by), Interval(float(by), float(by))) for by in shape]
    drawn = found.draws.loss(params[:, None], tokens[:, None])
    drawn -= found.draws.optimum(budget, found.cost)[2]
    within = [central_interval(values, fit.options.confidence) for values in drawn]
    if None in within:
        return None
    return [(float(by), one) for by, one in zip(shape, within, strict=True) if one is not None]


def widened(level: Interval, loss: float, by: float, within: Interval) -> Interval:
    """Return the interval of `loss` + `by`: on each side what `level` and `within` leave open, in quadrature."""
    below, above = max(by - within.low, 0.0), max(within.high - by, 0.0)
    low = loss + by - math.hypot(loss - level.low, below)
    return Interval(low, loss + by + math.hypot(level.high - loss, above))


def other_answer(fit: SweepFit, budget: float) -> Method | None:
    """Return the method whose interval of N_opt at C = `budget` lies apart from that of the answer; None if none does.

    It is the surface beside valleys, and the valleys of labelled budgets beside a surface. Neither is known to be right
    then, and the answer is the union of both.
    """
    if fit.default == "valley":
        other = fit.surface
    elif fit.repetition is not None and fit.repetition.decides:
        return None  # valleys of repeated data answer another question
    elif fit.default in SURFACES and fit.points.labelled:
        other = fit.methods["valley"]
    else:
        return None
    if fit.params_opt is None or other.params_opt is None:
        return None
    one, two = (law.interval(budget, fit.options.confidence) for law in (fit.params_opt, other.params_opt))
    return other if one is not None and two is not None and not one.overlaps(two) else None


def surface_of(fit: SweepFit, method: MethodName | None, asked: str) -> Method:
    """Return the surface that answers what valleys cannot; `asked` names it, such as: with limited data.

    Raises:
        FitError: the method is no surface, or has no law.
    """
    wanted = method or (fit.options.method if fit.options.method != "auto" else fit.surface.name)
    if wanted not in SURFACES:
        raise FitError(f"{asked} only a surface tells the optimum, and the method is {wanted}; leave it out")
    chosen = fit.methods[wanted]
    if chosen.laws is None:
        raise FitError(f"there is no surface to predict from: {chosen.reason}")
    return chosen


def _union(one: Interval | None, two: Interval | None) -> Interval | None:
    if one is None or two is None:
        return one
    return Interval(min(one.low, two.low), max(one.high, two.high))


def extrapolation(fit: SweepFit, budget: float, method: Method) -> tuple[Distance, Distance, Distance]:
    """Return how far C = `budget` lies beyond the range that the method was fitted to, and its N and D beyond the runs.

    `method` is one that has laws.
    """
    assert method.laws is not None
    n, d, _ = method.laws
    return distance("C", budget, *fit.range_of(method.name)), *distances(
        fit.points_of(method.name), n.at(budget), d.at(budget)
    )


def check_budget(budget: float) -> None:
    """Check that `budget` is a number of FLOPs.

    Raises:
        FitError: it is not a positive number.
    """
    if not (np.isfinite(budget) and budget > 0):
        raise FitError(f"C must be a positive number of FLOPs (got {budget})")


def run_interval(fit: SweepFit, values: Floats | None) -> Interval | None:
    """Return the interval of the loss of one new run: the draws of a law at one C, (draws,), and the noise of a run."""
    noise = run_noise(fit)
    if values is None or noise is None:
        return None
    sigma, df = noise
    rng = np.random.default_rng(fit.options.seed)
    # Predictive distribution of one run: a draw of the law, plus sigma·z with sigma² known as sigma²·df / chi²(df)
    run = rng.standard_normal(len(values)) * sigma * np.sqrt(df / rng.chisquare(df, len(values)))
    return central_interval(values + run, fit.options.confidence)


def run_noise(fit: SweepFit) -> tuple[float, int] | None:
    """Standard deviation of a run's loss in nats, and its degrees of freedom: between seeds, else about the fit."""
    if fit.seeds is not None and fit.seeds.df >= MIN_SEEDS:
        return fit.seeds.sigma, fit.seeds.df
    if fit.default == "valley":
        return None if fit.noise is None else (fit.noise.pooled, fit.noise.pooled_df)
    surface = fit.answer.surface
    df = len(fit.points) - fit.options.surface(fit.default).parameters if fit.default in SURFACES else 0
    if surface is None or not surface.usable or df < 1:
        return None
    # Residuals of the Huber fit are of ln L: times L they are nats
    scale = float(np.mean(fit.points.loss)) if surface.loss == "huber" else 1.0
    return scale * float(np.sqrt(surface.residuals @ surface.residuals / df)), df


def _prediction_warnings(fit: SweepFit, method: Method, far: tuple[Distance, Distance, Distance]) -> Iterator[Flag]:
    yield from extrapolation_warning(*far)
    if far[0].factor > 1 and method.name == "valley" and method.loss_opt is not None:
        if len(fit.optima) < MIN_FOR_SHIFT:
            yield Flag(
                "loss_law",
                "info",
                f"{len(fit.optima)} budgets do not tell the irreducible loss: L beyond the data may be anything from a "
                f"power law to hardly lower, and its interval says so; {MIN_FOR_SHIFT} budgets tell more",
            )
        low, high = fit.fitted_range
        yield from range_warning(high / low, len(fit.optima))
    yield from misfits(fit, method)


def _rates_are_off(fit: SweepFit, method: Method, budget: float) -> Iterator[Flag]:
    """Yield a warning where N lies outside of its interval, which is that of the best rates."""
    part = rate_part(fit, budget) if method.name == fit.default else None
    if part is not None and part.outside:
        yield part.flag


def misfits(fit: SweepFit, method: Method) -> Iterator[Flag]:
    """Yield a flag for each test of lack of fit that a method failed."""
    for test in fit.lack_of_fit:
        if test.method == method.name and test.verdict == "does_not_fit":
            yield test.flag(method.name)
