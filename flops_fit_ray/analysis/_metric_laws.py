"""Prediction of a metric in two steps: C to loss by the fitted law, loss to metric by the runs (`_metric_links`)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._ensemble import sample
from flops_fit_ray.analysis._law import Interval, central_interval
from flops_fit_ray.analysis._metric_links import Link, LossLink, Observed, ShareLink
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.points import blocks_by_budget
from flops_fit_ray.analysis.prediction import Prediction, other_answer
from flops_fit_ray.errors import FitError
from flops_fit_ray.flags import Flag

MOST = 1e100  # of a metric and its bounds
WORSE = 1.5  # times the rms of a fitted floor, from which a value of guessing does not agree with the runs
MIN_RUNS = 8  # that have the metric
FLAT = 0.01  # p-value of the metric's change with the loss, from which on there is none
FOOT = 0.1  # of the way from the floor to the upper bound, below which a rise is still to come
STARTS, ITERATIONS, STEP = 12, 60, 1e-5
LONGEST, FARTHEST = 2.0, 25.0  # of a step, and of a parameter
MetricKind = Literal["share", "loss", "perplexity"]


PERPLEXITY = re.compile(r"perplexity|(^|[^a-z])ppl([^a-z]|$)")


@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """Knowledge of a metric that its values do not show."""

    kind: MetricKind | None = None  # None: a share where all values lie within the bounds, a perplexity by its name
    bounds: tuple[float, float] | None = None  # of a share; None: 0 and 1
    chance: float | None = None  # value of a share by guessing; None: it is fitted

    def __post_init__(self) -> None:
        if self.kind not in (None, *get_args(MetricKind)):
            raise FitError(f"a metric is one of {', '.join(get_args(MetricKind))} (got {self.kind!r})")
        try:
            low, high = (float(bound) for bound in self.range)
            _ = self.chance is None or float(self.chance)
        except (TypeError, ValueError, OverflowError) as e:
            raise FitError(f"bounds are two numbers and chance is one (got {self.bounds!r}, {self.chance!r})") from e
        if max(abs(low), abs(high)) > MOST:
            raise FitError(f"the bounds of a share are below {MOST:g} (got {low:g}, {high:g})")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise FitError(f"the bounds of a share are two numbers, the smaller first (got {low:g}, {high:g})")
        if self.chance is not None and not low <= self.chance < high:
            raise FitError(f"chance is a value within the bounds {low:g} to {high:g} (got {self.chance:g})")
        if self.kind in ("loss", "perplexity") and (self.bounds is not None or self.chance is not None):
            raise FitError("bounds and chance are of a share, and the metric is to be a loss; leave one out")

    @property
    def range(self) -> tuple[float, float]:
        """Return the bounds of a share."""
        return (0.0, 1.0) if self.bounds is None else self.bounds


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricLaw:
    """The law from loss to metric of the runs of one fit."""

    name: str
    kind: MetricKind
    formula: str  # of the least squares
    runs: int
    rms: float  # of the runs about it
    loss_range: tuple[float, float]  # of the runs, nats
    flat: bool  # nothing of the metric moves with the loss
    progress: float | None  # of a share: how far from floor to upper bound it is at the lowest loss, median
    link: Link
    chance_off: float | None  # rms over that with a fitted floor, where a value of guessing is given that disagrees
    turned: float | None  # low + high of a share that falls with the loss, which is fitted turned over
    best: Floats  # parameters of the least squares, (1, size)
    draws: Floats  # (draws, size)
    sigma: Floats  # of a run about the law, (draws,)
    shared: float  # variance that the runs of one C share, over that of a run

    def at(self, theta: Floats, loss: Floats) -> Floats:
        """Return the metric (many, losses) for parameters (many, size)."""
        value = self.link.values(theta, loss)
        if self.kind == "perplexity":
            return np.asarray(np.exp(value))
        return value if self.turned is None else np.asarray(self.turned - value)


@dataclass(frozen=True, kw_only=True, repr=False)
class MetricPrediction:
    """A metric of the model that a prediction names. `value` is None where the runs do not tell it."""

    name: str
    kind: MetricKind
    bounds: tuple[float, float] | None  # of a share
    value: float | None
    interval: Interval | None  # of the mean of such runs
    run_interval: Interval | None  # of one new run
    formula: str
    runs: int
    rms: float
    below: float  # the loss below the lowest of the runs, as a share of their range; 0 inside
    warnings: tuple[Flag, ...]

    def __repr__(self) -> str:
        """Return the metric with its intervals, and its law."""
        value = "not told" if self.value is None else f"{self.value:.4g}"
        if self.interval is not None:
            value += f"  [{self.interval.low:.4g}, {self.interval.high:.4g}]"
        if self.run_interval is not None:
            value += f", of one new run [{self.run_interval.low:.4g}, {self.run_interval.high:.4g}]"
        kind = f"a {self.kind}"
        if self.bounds is not None:
            kind += f" between {self.bounds[0]:g} and {self.bounds[1]:g}"
        return "\n".join(
            [
                f"{self.name}  {value}",
                f"  taken for {kind}: {self.formula}, {self.runs} runs within {self.rms:.2g} rms",
                *(flag.line for flag in self.warnings),
            ]
        )


def predict_metric(
    fit: SweepFit, prediction: Prediction, name: str, options: MetricOptions | None = None
) -> MetricPrediction:
    """Predict a metric of the runs at a prediction's loss, with the errors of both steps.

    Raises:
        FitError: too few runs have the metric, or it is neither a share within its bounds nor a loss.
    """
    law = metric_law(fit, name, options or MetricOptions())
    rng = np.random.default_rng(fit.options.seed)
    losses = _losses(fit, prediction)
    center = law.at(law.draws if fit.options.draws else law.best, np.array([prediction.loss]))[:, 0]
    interval = run = None
    if losses is not None:
        which = rng.integers(len(law.draws), size=len(losses))
        values = law.at(law.draws[which], losses[:, None])[:, 0]
        unit = values if law.kind == "perplexity" else 1.0  # whose sigma is of the logarithm
        shift = unit * law.sigma[which] * math.sqrt(law.shared) * rng.standard_normal(len(losses))
        noise = unit * law.sigma[which] * rng.standard_normal(len(losses))
        interval = central_interval(_within(law, values + shift), fit.options.confidence)
        run = central_interval(_within(law, values + shift + noise), fit.options.confidence)
    low, high = law.loss_range
    below = max(low - prediction.loss, 0.0) / (high - low)
    flags = tuple(_warnings(law, below))
    told = not any(flag.code == "emergence" and flag.severity == "severe" for flag in flags)
    return MetricPrediction(
        name=name,
        kind=law.kind,
        bounds=(law.link.low, law.link.high) if isinstance(law.link, ShareLink) else None,
        value=float(np.median(center)) if told else None,
        interval=interval if told else None,
        run_interval=run if told else None,
        formula=law.formula,
        runs=law.runs,
        rms=law.rms,
        below=below,
        warnings=flags,
    )


def metric_law(fit: SweepFit, name: str, options: MetricOptions) -> MetricLaw:
    """Fit the law from loss to metric through all runs that have both.

    Raises:
        FitError: as `predict_metric`.
    """
    column = fit.points.metrics.get(name)
    if column is None:
        known = ", ".join(sorted(fit.points.metrics)) or "none"
        raise FitError(f"the runs have no metric {name!r}; they have {known}")
    has = np.isfinite(column)
    loss, values = fit.points.loss[has], column[has]
    if len(values) < MIN_RUNS or len(np.unique(loss)) < MIN_RUNS:
        raise FitError(
            f"{fmt.counted(len(values), 'run')} of different losses have {name}, and its law needs {MIN_RUNS}"
        )
    if not (np.abs(values) < MOST).all():
        raise FitError(f"{name} is {values[np.argmax(np.abs(values))]:g} in one run, which is no metric")
    if set(values) == {0.0, 1.0}:
        raise FitError(
            f"{name} is 0 or 1 in each run, and where it turns is all that such runs tell; "
            "give the share of many tasks or questions, as a number"
        )
    kind = _kind(name, values, options)
    if kind == "perplexity":
        if not (values > 0).all():
            raise FitError(
                f"{name} is taken for a perplexity, and a run has {values.min():g}; a perplexity is positive"
            )
        values = np.log(values)
    block = np.unique(blocks_by_budget(fit.points)[has], return_inverse=True)[1].reshape(-1).astype(np.int64)
    falls = float(np.corrcoef(loss, values)[0, 1]) < 0 if np.ptp(values) > 0 else True
    link, turned = _link(name, kind, loss, values, options, falls=falls)
    observed = Observed(loss=loss, metric=values if turned is None else turned - values, block=block)
    rng = np.random.default_rng(fit.options.seed)
    start = link.candidates(rng)
    best = _least_squares(link, observed, start)
    observed = replace(observed, shared=_shared(observed, link, best))
    best = _least_squares(link, observed, np.concatenate([best, start]))

    def log_posterior(theta: Floats) -> Floats:
        return np.asarray(observed.log_likelihood(link, theta) + link.log_prior(theta))

    draws = sample(log_posterior, np.concatenate([best, start]), max(fit.options.draws, 1), rng)
    left = observed.whitened(observed.metric - link.values(draws, loss))
    squares = np.einsum("tr,tr->t", left, left)
    df = len(loss) - link.size
    law = MetricLaw(
        name=name,
        kind=kind,
        formula=link.formula(best, _left_side(name, kind, turned)),
        runs=len(loss),
        rms=float(np.sqrt(np.mean((observed.metric - link.values(best, loss)[0]) ** 2))),
        loss_range=(float(loss.min()), float(loss.max())),
        flat=_is_flat(observed, link, best),
        chance_off=_chance_off(observed, link, best, start),
        progress=None,
        link=link,
        turned=turned,
        best=best,
        draws=draws,
        sigma=np.sqrt(squares / rng.chisquare(df, len(draws))),
        shared=observed.shared,
    )
    if isinstance(link, ShareLink):
        law = replace(law, progress=float(np.nanmedian(link.progress(draws, float(loss.min())))))
    return law


def _kind(name: str, values: Floats, options: MetricOptions) -> MetricKind:
    low, high = options.range
    inside = bool(((values >= low) & (values <= high)).all())
    if options.kind == "share" and not inside:
        worst = values[(values < low) | (values > high)][0]
        raise FitError(f"{name} is to lie between {low:g} and {high:g}, and a run has {worst:g}: give its bounds")
    if options.kind is not None:
        return options.kind
    if inside:
        return "share"
    return "perplexity" if PERPLEXITY.search(name.lower()) else "loss"


def _left_side(name: str, kind: MetricKind, turned: float | None) -> str:
    if kind == "perplexity":
        return f"ln {name}"
    return name if turned is None else f"{turned:g} - {name}"


def _chance_off(observed: Observed, link: Link, best: Floats, start: Floats) -> float | None:
    """Return how many times the rms of a fitted floor the one of guessing has; None where they agree, or without."""
    if not isinstance(link, ShareLink) or link.floor is None:
        return None
    free = replace(link, floor=None)
    fitted = _least_squares(free, observed, np.column_stack([start, np.linspace(-6, 6, len(start))]))
    ours, theirs = (
        float(np.mean((observed.metric - one.values(theta, observed.loss)[0]) ** 2)) ** 0.5
        for one, theta in ((link, best), (free, fitted))
    )
    return ours / theirs if ours > WORSE * theirs else None


def _link(
    name: str, kind: MetricKind, loss: Floats, values: Floats, options: MetricOptions, *, falls: bool
) -> tuple[Link, float | None]:
    """Return the form, and low + high where the metric is turned over: rates of errors, which rise with the loss."""
    middle, span = float(np.median(loss)), float(np.ptp(loss))
    if kind == "share":
        low, high = options.range
        turned = None if falls else low + high
        floor = options.chance if options.chance is None or turned is None else turned - options.chance
        return ShareLink(low=low, high=high, floor=floor, middle=middle, span=span), turned
    if falls:
        raise FitError(
            f"{name} rises as the loss falls and leaves its bounds {options.range[0]:g} to {options.range[1]:g}: give "
            "its bounds, such as 0,100 for per cent"
        )
    if not (values > 0).all():
        raise FitError(f"{name} is taken for a loss, and a run has {values.min():g}; a loss is positive")
    return LossLink(least=float(loss.min()), least_metric=float(values.min()), middle=middle,
                    level=float(np.median(values))), None  # fmt: skip


def _least_squares(link: Link, observed: Observed, start: Floats) -> Floats:
    """Return the parameters (1, size) of the least squares, by Levenberg and Marquardt's steps from the best starts."""

    def left(theta: Floats) -> Floats:
        return observed.whitened(observed.metric - link.values(theta, observed.loss))

    def squares(residual: Floats) -> Floats:
        total = np.einsum("tr,tr->t", residual, residual)
        return np.where(np.isfinite(total), total, np.inf)

    theta = start[np.argsort(squares(left(start)))[:STARTS]]
    here = left(theta)
    damping = np.full(len(theta), 1e-2)
    for _ in range(ITERATIONS):
        slopes = np.stack([(left(theta + unit) - here) / STEP for unit in STEP * np.eye(theta.shape[1])], axis=1)
        normal = np.einsum("tir,tjr->tij", slopes, slopes)
        scale = np.einsum("tii->ti", normal) + 1e-12
        normal += damping[:, None, None] * np.eye(theta.shape[1]) * scale[:, :, None]
        step = np.linalg.solve(normal, -np.einsum("tir,tr->ti", slopes, here)[:, :, None])[:, :, 0]
        tried = np.clip(theta + np.clip(step, -LONGEST, LONGEST), -FARTHEST, FARTHEST)
        there = left(tried)
        better = squares(there) < squares(here)
        theta, here = np.where(better[:, None], tried, theta), np.where(better[:, None], there, here)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-9, 1e9)
    return theta[[int(np.argmin(squares(here)))]]


def _shared(observed: Observed, link: Link, best: Floats) -> float:
    """Return the variance that the runs of a block share over that of a run, by the moments of a one-way analysis."""
    left = observed.metric - link.values(best, observed.loss)[0]
    number = np.bincount(observed.block)
    mean = np.bincount(observed.block, left) / number
    inside, between = len(left) - len(number), len(number) - 1
    if inside < 1 or between < 1:
        return 0.0
    within = float(np.sum((left - mean[observed.block]) ** 2)) / inside
    among = float(number @ (mean - left.mean()) ** 2) / between
    usual = (len(left) - float(number @ number) / len(left)) / between
    return max(among / within - 1, 0.0) / usual if within > 0 else 0.0


def _is_flat(observed: Observed, link: Link, best: Floats) -> bool:
    """Return True if the metric's change with the loss is no more than noise: F of the link against a constant."""
    from scipy.special import fdtrc

    left = observed.whitened(observed.metric[None] - link.values(best, observed.loss))[0]
    constant = observed.whitened((observed.metric - observed.metric.mean())[None])[0]
    if not float(left @ left) > 0:
        return not float(constant @ constant) > 0
    more, df = link.size - 1, len(left) - link.size
    ratio = (float(constant @ constant) / float(left @ left) - 1) * df / more
    return bool(fdtrc(more, df, max(ratio, 0.0)) > FLAT)


def _losses(fit: SweepFit, prediction: Prediction) -> Floats | None:
    """Return the draws (draws,) of the loss that a prediction names, of both methods where they disagree."""
    laws = [fit.methods[prediction.method].loss_opt]
    if (other := other_answer(fit, prediction.budget)) is not None and prediction.method == fit.default:
        laws.append(other.loss_opt)
    drawn = [law.draws.at(prediction.budget) for law in laws if law is not None and law.draws is not None]
    return np.concatenate(drawn) if drawn else None


def _within(law: MetricLaw, values: Floats) -> Floats:
    if isinstance(law.link, ShareLink):
        return np.clip(values, law.link.low, law.link.high)
    return np.maximum(values, 0.0)


def _warnings(law: MetricLaw, below: float) -> Iterator[Flag]:
    if law.chance_off is not None:
        message = f"the value by guessing that is given for {law.name} does not agree with the runs"
        yield Flag(
            "chance", "warning", f"{message}: they lie {law.chance_off:.3g} times as far off as by one that is fitted"
        )
    if law.flat:
        message = f"nothing of {law.name} moves with the loss in these {law.runs} runs"
        yield Flag("emergence", "severe", f"{message}: where it begins to is not to be told; add larger budgets")
    elif law.progress is not None and law.progress < FOOT and below > 0:
        yield Flag(
            "emergence",
            "severe",
            f"{law.name} has come {100 * law.progress:.2g} % of the way from its floor to its bound in the best of "
            "these runs: how it rises beyond them is not to be told; add larger budgets",
        )
    elif below > 0:
        yield Flag(
            "metric_extrapolated",
            "info" if below < 1 else "warning",
            f"{law.name} is told at a loss below that of all runs, by {below:.2g} times their range of losses",
        )
