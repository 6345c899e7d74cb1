"""Prediction that counts what a model costs while it serves: N and D where training and serving cost least together.

Sardana et al. 2024 (arXiv 2401.00448), section 2, with the FLOPs per token f(N) of the runs in place of 6·N: training
costs f(N)·D, and serving T tokens at price w, forward alone, w·T·f(N)/3. So the total is f(N)·(D + S) with
S = w·T/3 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._distance import Distance, distance, distances, ratio_distance
from flops_fit_ray.analysis._law import Interval, Law, central_interval
from flops_fit_ray.analysis._methods import Method
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.diagnostics import extrapolation_warning, ratio_warning
from flops_fit_ray.analysis.prediction import Prediction, misfits, other_answer, run_interval, surface_of
from flops_fit_ray.analysis.surface import CostLaw, Surfaces, balance, lowest_loss, lowest_total, tokens_for
from flops_fit_ray.errors import FitError
from flops_fit_ray.fit_options import MethodName
from flops_fit_ray.flags import Flag

MOST = 1e60  # of any number that is asked
FORWARD = 1 / 3  # of the FLOPs of a training token: backward costs twice forward (Kaplan et al. 2020, section 2.1)
CHOICES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)  # of the best N, whose cost is shown
SERVED = (1, 10, 100)  # times the tokens of the best training, of which a report tells


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Tokens that a model will serve, and the price of a FLOP there in FLOPs of training."""

    tokens: float
    price: float = 1.0  # above 1 where serving uses its hardware less well, or dearer hardware

    @property
    def as_trained(self) -> float:
        """Return S, the tokens whose training costs as much."""
        return self.price * self.tokens * FORWARD


@dataclass(frozen=True, kw_only=True)
class ServedChoice:
    """Cost of a prediction's loss by one N. D and the costs are infinite where no D reaches it."""

    params: float
    tokens: float
    training: float  # FLOPs
    serving: float  # in FLOPs of training
    factor: float  # total over that of the prediction


@dataclass(frozen=True, kw_only=True, repr=False)
class ServedPrediction(Prediction):
    """N and D that are best for training and serving together, and their loss. `budget` is the C of training alone."""

    serving: Serving
    serving_cost: float  # in FLOPs of training
    total: float  # of both
    total_interval: Interval | None  # where a loss was asked for
    ratio_extrapolation: float  # factor of D/N beyond the runs; 1 inside
    alone: ServedChoice  # of the same loss, with the N that costs least in training
    alone_interval: Interval | None  # of its factor
    choices: tuple[ServedChoice, ...]  # increasing N, the best and `alone` among them

    _of = " of training"

    def __repr__(self) -> str:
        """Return N, D and L for training and serving together, and what the same loss costs by other N."""
        named = {self.alone.params: "best for training alone", self.params: "best"}
        rows = [
            [fmt.count(c.params), fmt.count(c.tokens), f"{c.tokens / c.params:.3g}", fmt.flops(c.training),
             fmt.flops(c.serving), f"x{c.factor:.3g}", named.get(c.params, "")]
            for c in self.choices if math.isfinite(c.tokens)
        ]  # fmt: skip
        head = ["N", "D", "D/N", "training", "serving", "total", ""]
        return f"{super().__repr__()}\nthe same loss by other N:\n{fmt.table(head, rows)}"

    def _head(self) -> str:
        total = fmt.flops(self.total)
        if self.total_interval is not None:
            total += f" [{fmt.flops(self.total_interval.low)}, {fmt.flops(self.total_interval.high)}]"
        return f"{fmt.count(self.serving.tokens)} tokens served, {total} FLOPs in all ({self._percent} intervals)"

    def _more(self) -> list[str]:
        price = "" if self.serving.price == 1 else f" at {self.serving.price:g} times the price"
        factor = f"x{self.alone.factor:.3g}"
        if self.alone_interval is not None:
            factor += f" [x{self.alone_interval.low:.3g}, x{self.alone_interval.high:.3g}]"
        usual = f"{self.alone.tokens / self.alone.params:.3g}, which costs {factor} in all"
        both = f"training {fmt.flops(self.budget)} + serving {fmt.flops(self.serving_cost)} FLOPs{price}"
        return [
            f"  {both}, forward alone",
            f"  D/N {self.tokens / self.params:.3g}; best for training alone is {usual}",
        ]


def predict_served(
    fit: SweepFit,
    serving: Serving,
    *,
    total: float | None = None,
    loss: float | None = None,
    as_good_as: float | None = None,
    method: MethodName | None = None,
) -> ServedPrediction:
    """Predict the N and D that reach the lowest loss at `total` FLOPs, or a loss for the fewest of them, with serving.

    By the surface, as valleys tell nothing of other D/N. Each draw has its optimum; the bend of N_opt that valleys
    leave possible moves the balance there as far as it moves it in training alone.

    Args:
        total: FLOPs of training plus serving (at its price); give one of the three.
        loss: nats per token.
        as_good_as: C whose loss, where it is all spent on the best training, is to be reached.

    Raises:
        FitError: there is no surface, a number is out of range, or no model reaches the loss.
    """
    target = _Target(total=total, loss=loss, as_good_as=as_good_as)
    _check(serving, target)
    chosen = surface_of(fit, method, "with serving")
    found = chosen.surface
    assert found is not None and found.surface is not None and found.cost is not None
    surface, cost, extra = found.surface, found.cost, serving.as_trained
    log_n, log_d = target.best(surface, cost, extra)
    if np.isnan(log_n[0]):
        e = math.exp(surface.log_e[0])
        raise FitError(
            f"no model reaches a loss of {loss:.4f}: with endless N and D it is {e:.4f} by the {chosen.label}"
        )
    params, tokens = (float(np.exp(log[0])) for log in (log_n, log_d))
    if total is None and not (1 <= params < MOST and 1 <= tokens < MOST):
        raise FitError(
            f"the answer would be N = {params:.3g} and D = {tokens:.3g}, which is no model: ask for a loss nearer to "
            "those of the runs, or for fewer tokens to be served"
        )
    if total is not None and not (params >= 1 and tokens >= 1):
        raise FitError(
            f"no model is so small that it serves {fmt.count(serving.tokens)} tokens for {fmt.flops(total)} FLOPs and "
            "leaves some for training: give more FLOPs, or serve less"
        )
    reached = float(surface.loss(np.exp(log_n), np.exp(log_d))[0])
    per_token = cost.flops_per_token(params)
    whole = per_token * (tokens + extra)
    alone = float(np.exp(lowest_total(surface, cost, reached, 0.0)[0][0]))
    choices = {n: _choice(surface, cost, reached, n, extra, whole) for n in (*(params * by for by in CHOICES), alone)}
    unserved = choices[alone].training
    drawn = None if found.draws is None else _drawn(chosen, found.draws, cost, extra, target, unserved)
    within = _Intervals.of(drawn, fit, target, params, tokens)
    far = (
        distance("C", per_token * tokens, *fit.range_of(chosen.name)),
        *distances(fit.points_of(chosen.name), params, tokens),
        ratio_distance(fit.points_of(chosen.name), tokens / params),
    )
    return ServedPrediction(
        budget=per_token * tokens,
        method=chosen.name,
        params=params,
        tokens=tokens,
        loss=reached,
        params_interval=within.params,
        tokens_interval=within.tokens,
        loss_interval=within.loss,
        run_interval=within.run,
        extrapolation=far[0].factor,
        params_extrapolation=far[1].factor,
        tokens_extrapolation=far[2].factor,
        confidence=fit.options.confidence,
        ratio_extrapolation=far[3].factor,
        serving=serving,
        serving_cost=per_token * extra,
        total=whole,
        total_interval=within.total,
        alone=choices[alone],
        alone_interval=within.alone,
        choices=tuple(choices[n] for n in sorted(choices)),
        warnings=(
            *extrapolation_warning(*far),
            *_caveats(fit, chosen, far[3], unserved),
            *_unreached(drawn, loss, fit.options.confidence),
            *misfits(fit, chosen),
        ),
    )


def if_served(fit: SweepFit, budget: float) -> tuple[ServedPrediction, ...]:
    """Predict what is as good as C = `budget` where 1, 10 and 100 times its D are served; empty without a surface."""
    found = fit.surface
    if found.laws is None or found.surface is None or not found.surface.usable:
        return ()
    tokens = found.laws[1].at(budget)
    return tuple(
        predict_served(fit, Serving(tokens=by * tokens), as_good_as=budget, method=found.name) for by in SERVED
    )


@dataclass(frozen=True, kw_only=True)
class _Target:
    """Aim of a prediction: one of the three."""

    total: float | None
    loss: float | None
    as_good_as: float | None

    def best(
        self, surfaces: Surfaces, cost: CostLaw, extra: float, shift: Floats | float = 0.0
    ) -> tuple[Floats, Floats]:
        """Return ln N and ln D of the optimum, (surfaces,)."""
        if self.total is not None:
            return lowest_loss(surfaces, cost, self.total, extra, shift)
        loss: Floats | float | None = self.loss
        if self.as_good_as is not None:
            loss = surfaces.optimum(self.as_good_as, cost)[2]
        assert loss is not None
        return lowest_total(surfaces, cost, loss, extra, shift)


def _check(serving: Serving, target: _Target) -> None:
    numbers = {
        "the tokens to be served": serving.tokens,
        "the price of a FLOP in serving": serving.price,
        "the FLOPs of training and serving": target.total,
        "the loss": target.loss,
        "the FLOPs to be as good as": target.as_good_as,
        "the tokens served times their price": serving.tokens * serving.price,
    }
    for name, value in numbers.items():
        if value is not None and not 0 < value <= MOST:
            raise FitError(f"{name} must be a positive number up to {MOST:g} (got {value:g})")
    if [target.total, target.loss, target.as_good_as].count(None) != 2:
        raise FitError("give the FLOPs of training and serving, or the loss to be reached, or the C to be as good as")


def _choice(surface: Surfaces, cost: CostLaw, loss: float, params: float, extra: float, whole: float) -> ServedChoice:
    tokens = float(np.exp(tokens_for(surface, loss, np.log([params])))[0])
    f = cost.flops_per_token(params)
    return ServedChoice(
        params=params, tokens=tokens, training=f * tokens, serving=f * extra, factor=f * (tokens + extra) / whole
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Drawn:
    """Optima of all draws, (draws,); NaN where a draw has none."""

    surfaces: Surfaces
    params: Floats
    tokens: Floats
    loss: Floats
    total: Floats
    alone: Floats  # total with the N that costs least in training, over `total`


def _drawn(
    chosen: Method,
    surfaces: Surfaces,
    cost: CostLaw,
    extra: float,
    target: _Target,
    unserved: float,
) -> _Drawn:
    """Solve for each draw.

    Args:
        unserved: C at which the answer's loss is reached for the least training: how far N_opt is bent there is known.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        log_n, log_d = target.best(surfaces, cost, extra)
        reached = surfaces.loss(np.exp(log_n), np.exp(log_d))
        whole = np.exp(cost.per_token(log_n)[0] + np.logaddexp(log_d, np.log(extra)))
        alone_n, alone_d = lowest_total(surfaces, cost, reached, 0.0)
        alone = np.exp(cost.per_token(alone_n)[0] + np.logaddexp(alone_d, np.log(extra)))
        log_n, log_d = target.best(surfaces, cost, extra, _bent(chosen.params_opt, surfaces, cost, unserved))
        return _Drawn(surfaces=surfaces, params=np.exp(log_n), tokens=np.exp(log_d), loss=reached, total=whole,
                      alone=alone / whole)  # fmt: skip


def _bent(law: Law | None, surfaces: Surfaces, cost: CostLaw, budget: float) -> Floats | float:
    """Return the balance where the draws of N_opt lie at C = `budget`, (draws,): 0 where they are the surfaces' own."""
    if law is None or law.draws is None:
        return 0.0
    log_n = np.log(law.draws.at(budget))
    return balance(surfaces, cost, log_n, np.log(budget) - cost.per_token(log_n)[0], 0.0)


@dataclass(frozen=True, kw_only=True)
class _Intervals:
    params: Interval | None = None
    tokens: Interval | None = None
    loss: Interval | None = None
    run: Interval | None = None
    total: Interval | None = None
    alone: Interval | None = None

    @classmethod
    def of(cls, drawn: _Drawn | None, fit: SweepFit, target: _Target, params: float, tokens: float) -> _Intervals:
        """Return the intervals of an answer; that of a loss that was asked for is what its N and D may come to."""
        confidence = fit.options.confidence
        if drawn is None:
            return cls()
        losses = drawn.loss if target.loss is None else drawn.surfaces.loss(np.array(params), np.array(tokens))
        within = {"loss": central_interval(losses, confidence), "run": run_interval(fit, losses)}
        if not _open(drawn, confidence):
            within |= {
                name: central_interval(getattr(drawn, name), confidence) for name in ("params", "tokens", "alone")
            }
            within["total"] = None if target.total is not None else central_interval(drawn.total, confidence)
        return cls(**within)


def _open(drawn: _Drawn, confidence: float) -> bool:
    """Return True where so many draws have no answer that an interval would have an open end."""
    return bool(np.isnan(drawn.params).mean() > (1 - confidence) / 2)


def _unreached(drawn: _Drawn | None, loss: float | None, confidence: float) -> Iterator[Flag]:
    if drawn is None or loss is None or not _open(drawn, confidence):
        return
    share = float(np.isnan(drawn.params).mean())
    message = (
        f"in {100 * share:.2g} % of the draws no model reaches a loss of {loss:.4f}, so N, D and cost have no interval"
    )
    yield Flag("loss_not_reached", "warning", f"{message}: ask for a higher loss, or add larger budgets")


def _caveats(fit: SweepFit, chosen: Method, ratio: Distance, unserved: float) -> Iterator[Flag]:
    """Yield what an answer by the surface far from the valleys rests on."""
    yield from ratio_warning(ratio)
    if fit.default != chosen.name and other_answer(fit, unserved) is not None:
        law, own = fit.params_opt, chosen.params_opt
        assert law is not None and own is not None
        yield Flag(
            "methods_disagree",
            "warning",
            f"without serving, N_opt at C = {fmt.flops(unserved)} is {fmt.count(law.at(unserved))} by the "
            f"{fit.answer.label} and {fmt.count(own.at(unserved))} by the {chosen.label}, beyond their intervals; this "
            "answer is by the latter alone",
        )
