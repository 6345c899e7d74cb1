"""Prediction for C FLOPs where only so many distinct tokens exist: N and D that are best when they are repeated.

argmin over N of L(N', D') at D = C / f(N), with what repeats are worth as the runs show it (`repetition`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._distance import distance, distances
from flops_fit_ray.analysis._law import Interval, central_interval
from flops_fit_ray.analysis._methods import Method
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.diagnostics import extrapolation_warning
from flops_fit_ray.analysis.prediction import Prediction, check_budget, misfits, run_interval, surface_of
from flops_fit_ray.analysis.repetition import REPEATED, Repetition, faded, optimal_for
from flops_fit_ray.analysis.surface import CostLaw, Surfaces
from flops_fit_ray.errors import FitError
from flops_fit_ray.fit_options import MethodName
from flops_fit_ray.flags import Flag

REACH = 14.0  # ln N on either side of N_opt for new tokens, within which the best N is looked for
CELLS = 281  # of the first search; each further one narrows it by ten
ROUNDS = 5  # after which ln N is known to 1e-6
DEAREST, FACTORS = 1e3, 61  # of C, as which more data are worth at most, and how many are looked at
FLAT = 0.1  # of ln N: an optimum so near the end of the search is none


@dataclass(frozen=True, kw_only=True)
class MoreData:
    """Worth of twice the distinct tokens, at one C."""

    loss: float  # that they would reach, with the N and D that are best then
    gain: float  # nats by which it is lower
    gain_interval: Interval | None
    compute_factor: float | None  # of C that reaches as low a loss with the tokens that there are; None: none does


@dataclass(frozen=True, kw_only=True, repr=False)
class LimitedPrediction(Prediction):
    """N, D and loss that are best with few distinct tokens, and what more of them are worth."""

    more_data: MoreData

    def _more(self) -> list[str]:
        data = self.more_data
        if not data.gain > 0:
            return ["  with twice the distinct tokens the same"]
        gain = f"{data.gain:.4f}"
        if data.gain_interval is not None:
            gain += f" [{data.gain_interval.low:.4f}, {data.gain_interval.high:.4f}]"
        factor = data.compute_factor
        worth = "as no C reaches with these" if factor is None else f"as x{factor:.3g} the C with these"
        return [f"  with twice the distinct tokens L is lower by {gain}, {worth}"]


def predict_limited(fit: SweepFit, budget: float, unique: float, method: MethodName | None = None) -> LimitedPrediction:
    """Predict the best N and D at C = `budget` FLOPs where only `unique` distinct tokens exist, and their loss.

    1) Of the surface and of each draw, with its R_D* and R_N*: the optimum with `unique` tokens, over that for new ones
    2) This ratio times N_opt and D_opt of the surface's laws, the difference added to L_opt: at `unique` >= D_opt it is
       the prediction of `predict` by that surface

    Raises:
        FitError: the runs do not show what repeats cost, there is no surface, or a number is out of range.
    """
    check_budget(budget)
    if not (math.isfinite(unique) and unique > 0):
        raise FitError(f"U must be a positive number of distinct tokens (got {unique})")
    known, chosen = _repetition_of(fit), surface_of(fit, method, "with limited data")
    found = chosen.surface
    assert chosen.laws is not None and found is not None and found.surface is not None and found.cost is not None
    scale, kappa = np.array([known.tokens_scale]), np.array([1 / known.params_scale if known.params_scale else 0.0])
    moved = _moved(found.surface, found.cost, budget, unique, scale, kappa)
    if not np.isfinite(moved[0]).all():
        raise FitError(
            f"{fmt.count(unique)} distinct tokens are so few for C = {fmt.flops(budget)} that no N is the best: more "
            "of either changes nothing; give more tokens, or a smaller C"
        )
    at = [law.at(budget) for law in chosen.laws]
    params, tokens = (value * math.exp(by[0]) for value, by in zip(at[:2], moved[:2], strict=True))
    loss = at[2] + float(moved[2][0])
    more = _moved(found.surface, found.cost, budget, 2 * unique, scale, kappa)[2] - moved[2]
    drawn: list[Floats] | None = None
    gains: Floats | None = None
    if found.draws is not None and found.case is not None and known.tokens_interval is not None:
        pairs = np.array(known.pairs)[found.case]
        by = _moved(found.draws, found.cost, budget, unique, pairs[:, 0], pairs[:, 1])
        gains = by[2] - _moved(found.draws, found.cost, budget, 2 * unique, pairs[:, 0], pairs[:, 1])[2]
        laws = [law.draws.at(budget) for law in chosen.laws if law.draws is not None]
        drawn = [laws[0] * np.exp(by[0]), laws[1] * np.exp(by[1]), laws[2] + by[2]]
    confidence = fit.options.confidence
    within = [None] * 3 if drawn is None else [central_interval(values, confidence) for values in drawn]
    epochs = max(tokens / unique, 1.0)
    far = [
        distance("C", budget, float(fit.points.flops.min()), float(fit.points.flops.max())),
        *distances(fit.points, params, tokens),
        distance("D/U", epochs, 1.0, known.max_epochs),
    ]
    worth = MoreData(
        loss=loss + float(more[0]),
        gain=-float(more[0]),
        gain_interval=None if gains is None else central_interval(gains, confidence),
        compute_factor=_compute_factor(chosen, budget, unique, scale, kappa, loss + float(more[0])),
    )
    return LimitedPrediction(
        more_data=worth,
        budget=budget,
        method=chosen.name,
        params=params,
        tokens=tokens,
        loss=loss,
        params_interval=within[0],
        tokens_interval=within[1],
        loss_interval=within[2],
        run_interval=None if drawn is None else run_interval(fit, drawn[2]),
        extrapolation=far[0].factor,
        params_extrapolation=far[1].factor,
        tokens_extrapolation=far[2].factor,
        confidence=confidence,
        unique=unique,
        epochs=epochs,
        warnings=(*extrapolation_warning(*far), *misfits(fit, chosen), *_repeat_flags(known, chosen, budget, epochs)),
    )


def _repetition_of(fit: SweepFit) -> Repetition:
    """Return what repeats cost, as the runs show it."""
    if fit.points.unique is None:
        why = "how many distinct tokens they saw is not known; give a column unique_tokens or epochs"
    elif fit.repetition is None:
        why = "none of them saw its data more than once; add runs that do (data.max_epochs above 1)"
    elif fit.repetition.tokens_interval is None:
        why = f"{fit.repetition.words}: {fit.surface.reason or 'more runs are needed, of several N, D and U'}"
    else:
        return fit.repetition
    raise FitError(f"these runs do not show what repeated tokens are worth: {why}")


def _moved(
    surfaces: Surfaces, cost: CostLaw, budget: float, unique: float, scale: Floats, kappa: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return how far ln N, ln D and L of the optimum move where only `unique` tokens exist; arrays (surfaces,).

    Args:
        scale: R_D* of each surface, (surfaces,).
        kappa: 1 / R_N*, (surfaces,); 0 counts N in full.
    """
    log_n, log_d, loss = surfaces.optimum(budget, cost)
    short = log_d > math.log(unique)
    by_n, by_d, by_loss = (np.where(np.isnan(log_n), np.nan, 0.0) for _ in range(3))
    if not short.any():
        return by_n, by_d, by_loss
    few = Surfaces(**{name: getattr(surfaces, name)[short] for name in surfaces.__dataclass_fields__})
    column = Surfaces(**{name: getattr(few, name)[:, None] for name in few.__dataclass_fields__})
    scale, kappa = scale[short, None], kappa[short, None]

    def losses(x: Floats) -> Floats:
        tokens = np.exp(math.log(budget) - cost.per_token(x)[0])
        seen = np.minimum(tokens, unique)
        base = optimal_for(column, cost, x, np.log(seen))
        return column.loss(faded(np.exp(x), base, kappa), faded(tokens, seen, 1 / scale))

    start = log_n[short]
    x = start[:, None] + np.linspace(-REACH, REACH, CELLS)
    step, rows = 2 * REACH / (CELLS - 1), np.arange(len(start))
    for _ in range(ROUNDS):
        best = x[rows, np.argmin(losses(x), axis=1)]
        x = best[:, None] + step * np.linspace(-1, 1, 21)
        step /= 10
    best = x[rows, np.argmin(losses(x), axis=1)]
    best = np.where(np.abs(best - start) > REACH - FLAT, np.nan, best)
    by_n[short] = best - start
    by_d[short] = math.log(budget) - cost.per_token(best)[0] - log_d[short]
    by_loss[short] = losses(best[:, None])[:, 0] - loss[short]
    return by_n, by_d, by_loss


def _compute_factor(
    chosen: Method, budget: float, unique: float, scale: Floats, kappa: Floats, loss: float
) -> float | None:
    """Return the factor of C that reaches `loss` with `unique` tokens, up to `DEAREST`; None where none does."""
    found = chosen.surface
    assert chosen.loss_opt is not None and found is not None and found.surface is not None and found.cost is not None
    factors = np.geomspace(1, DEAREST, FACTORS)
    moved = [float(_moved(found.surface, found.cost, budget * g, unique, scale, kappa)[2][0]) for g in factors]
    levels = np.array([chosen.loss_opt.at(budget * g) for g in factors]) + moved
    below = np.flatnonzero(levels <= loss + 1e-12)
    if not len(below):
        return None
    i = int(below[0])
    if i == 0:
        return 1.0
    part = (levels[i - 1] - loss) / (levels[i - 1] - levels[i])
    return float(factors[i - 1] * (factors[i] / factors[i - 1]) ** part)


def _repeat_flags(known: Repetition, chosen: Method, budget: float, epochs: float) -> Iterator[Flag]:
    """Yield what the repeats change."""
    assert chosen.laws is not None
    n, d, loss = (law.at(budget) for law in chosen.laws)
    new = f"N = {fmt.count(n)}, D = {fmt.count(d)}, L = {loss:.4f} by the {chosen.label}"
    if epochs <= 1:
        yield Flag("limited_data", "info", f"there are enough distinct tokens: this is the optimum for new ones, {new}")
        return
    worth = float(faded(np.array(epochs), np.ones(()), 1 / known.tokens_scale)) / epochs
    beyond = (
        f" (the runs saw theirs up to {known.max_epochs:.3g} times)" if epochs > REPEATED * known.max_epochs else ""
    )
    yield Flag(
        "limited_data",
        "info",
        f"{epochs:.3g} epochs{beyond}, in which a token counts for {worth:.2g} of a new one on average; with new "
        f"tokens alone {new}",
    )
