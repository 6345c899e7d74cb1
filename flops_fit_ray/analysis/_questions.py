"""Questions to a fit: for C FLOPs or a loss, of new tokens or of few that are repeated, with serving or without."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._capped import predict_capped
from flops_fit_ray.analysis._inversion import log_compute_for, one_draw
from flops_fit_ray.analysis._law import LawDraws, central_interval
from flops_fit_ray.analysis._limited_data import predict_limited
from flops_fit_ray.analysis._served import Serving, predict_served
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.prediction import Prediction, predict
from flops_fit_ray.errors import FitError
from flops_fit_ray.flags import Flag

REACH = math.log(1e9)  # of ln C beyond the fitted budgets, within which a loss is looked for
OPEN = math.log(1e6)  # of ln C beyond the answer, within which a draw's is looked for


@dataclass(frozen=True, kw_only=True)
class Question:
    """Question to a fit: for a `budget`, a `loss`, or `as_good_as`, and what is given."""

    budget: float | None = None  # FLOPs; of training plus serving where there is `serving`
    loss: float | None = None  # nats per token, to be reached for the fewest FLOPs
    as_good_as: float | None = None  # C whose loss, all spent on training, is to be reached with `serving`
    unique: float | None = None  # distinct tokens that there are; None: all are new
    serving: Serving | None = None
    max_params: float | None = None  # the largest N that may be

    def __post_init__(self) -> None:
        if [self.budget, self.loss, self.as_good_as].count(None) != 2:
            raise FitError("give a number of FLOPs, or the loss to be reached, and not both")
        if self.max_params is not None and [self.unique, self.serving, self.loss].count(None) != 3:
            raise FitError("with a largest N give a number of FLOPs of training alone")
        if self.as_good_as is not None and self.serving is None:
            raise FitError("as good as some C is asked of a model that is served: say how many tokens")
        if self.unique is not None and (self.loss is not None or self.serving is not None):
            raise FitError("with limited data give a number of FLOPs of training alone: no loss, and no serving")


def answer(fit: SweepFit, question: Question) -> Prediction:
    """Answer a question by the methods that can.

    Raises:
        FitError: there is no law, a number is out of range, or nothing reaches the loss.
    """
    if question.serving is not None:
        return predict_served(
            fit, question.serving, total=question.budget, loss=question.loss, as_good_as=question.as_good_as
        )
    if question.loss is not None:
        return predict_for_loss(fit, question.loss)
    assert question.budget is not None
    if question.unique is not None:
        return predict_limited(fit, question.budget, question.unique)
    if question.max_params is not None:
        return predict_capped(fit, question.budget, question.max_params)
    return predict(fit, question.budget)


def predict_for_loss(fit: SweepFit, loss: float) -> Prediction:
    """Predict the C at which the law of L_opt comes down to `loss` nats, and N and D there.

    Raises:
        FitError: there is no law, or it does not come down to that loss within 1e9 times the budgets.
    """
    if not (math.isfinite(loss) and loss > 0):
        raise FitError(f"the loss must be a positive number (got {loss:g})")
    law = fit.answer.loss_opt
    if law is None:
        raise FitError(f"there is no scaling law to predict from: {fit.answer.reason}")
    low, high = (math.log(c) for c in fit.fitted_range)
    log_c = float(_log_compute(one_draw(law), loss, low - REACH, high + REACH)[0])
    if math.isnan(log_c):
        last = math.exp(high + REACH)
        raise FitError(
            f"the law of L_opt does not come down to a loss of {loss:.4f}: at {fmt.flops(last)} FLOPs it is "
            f"{law.at(last):.4f}; ask for a higher one"
        )
    if log_c <= low - REACH:
        raise FitError(f"a loss of {loss:.4g} needs less than {fmt.flops(math.exp(log_c))} FLOPs: ask for a lower one")
    found = predict(fit, math.exp(log_c))
    if law.draws is None:
        return found
    drawn = np.exp(_log_compute(law.draws, loss, log_c - OPEN, log_c + OPEN))
    share = float(np.isnan(drawn).mean())
    if share > (1 - fit.options.confidence) / 2:
        message = f"in {100 * share:.2g} % of the draws no C up to 1e6 times as much reaches a loss of {loss:.4f}"
        flag = Flag("loss_not_reached", "warning", f"{message}, so C, N and D have no interval: add larger budgets")
        return replace(found, params_interval=None, tokens_interval=None, warnings=(*found.warnings, flag))
    within = [central_interval(values, fit.options.confidence) for values in (drawn, *_at_drawn(fit, drawn))]
    if fit.rates is None:  # as `predict` has it
        own = (found.budget, found.params, found.tokens)
        within = [one and one.with_value(value) for one, value in zip(within, own, strict=True)]
    return replace(found, budget_interval=within[0], params_interval=within[1], tokens_interval=within[2])


def _at_drawn(fit: SweepFit, budgets: Floats) -> Iterator[Floats]:
    """Yield N and D of every draw at its own C (draws,)."""
    for law in (fit.params_opt, fit.tokens_opt):
        assert law is not None and law.draws is not None
        yield law.draws.at(budgets)


def _log_compute(law: LawDraws, loss: float, low: float, high: float) -> Floats:
    """Return the least ln C from `low` to `high` at which each law is down to `loss`, (laws,); NaN where none is."""
    x = log_compute_for(law, np.array([loss]))
    at = np.where(law.exponent < 0, np.maximum(x, low), np.where(x >= low, low, np.nan))  # a law that rises: at once
    return np.where(at <= high, at, np.nan)
