"""One question, several methods: each ends in the same three laws, so that they can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.arrays import Floats, Ints
from flops_fit_ray.analysis.law import Interval, Law, LawDraws, fit_power_law, fit_shifted_law, interval
from flops_fit_ray.analysis.noise import Noise, draw_scatter, group_noise
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.surface import CostLaw, SurfaceFit, Surfaces
from flops_fit_ray.analysis.valley import Polynomial, Valley

MethodName = Literal["valley", "surface_huber", "surface_squared", "envelope"]
LawWeights = Literal["equal", "precision"]
MIN_FOR_SHIFT = 4  # budgets from which the loss law has an irreducible term
METHODS: tuple[MethodName, ...] = ("valley", "surface_huber", "surface_squared", "envelope")
WORDS: dict[MethodName, str] = {
    "valley": "valleys (approach 2)",
    "surface_huber": "surface, Huber loss (approach 3)",
    "surface_squared": "surface, squared error (approach 3)",
    "envelope": "envelope of training curves (approach 1)",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Method:
    """What one method says. Without laws, `reason` says why; with them, it may say what is weak."""

    name: MethodName
    status: str  # valley: fitted or no_law; surfaces: their own
    reason: str
    params_opt: Law | None
    tokens_opt: Law | None
    loss_opt: Law | None
    surface: SurfaceFit | None = None
    draws: int = 0
    lost_draws: int = 0

    @property
    def laws(self) -> tuple[Law, Law, Law] | None:
        """N_opt, D_opt and L_opt; None where there are none."""
        if self.params_opt is None or self.tokens_opt is None or self.loss_opt is None:
            return None
        return self.params_opt, self.tokens_opt, self.loss_opt

    @property
    def words(self) -> str:
        """The method's name for people."""
        return WORDS[self.name]


@dataclass(frozen=True, kw_only=True, eq=False)
class Minima:
    """The optima of the valleys in every bootstrap draw: arrays (draws, valleys), NaN where a draw had none."""

    log10_params: Floats
    log10_tokens: Floats
    loss: Floats


@dataclass(frozen=True, kw_only=True)
class ValleyIntervals:
    """Intervals of one interior valley's minimum."""

    params_opt: Interval
    tokens_opt: Interval
    loss_opt: Interval


def interior(valleys: Sequence[Valley]) -> list[int]:
    """Which valleys have an optimum."""
    return [i for i, valley in enumerate(valleys) if valley.status == "interior"]


def fitted(valleys: Sequence[Valley]) -> list[tuple[int, Polynomial, Ints]]:
    """The valleys that have a curve: their place, the curve that noise is measured about, and its points."""
    return [(i, v.smooth, v.index[v.used]) for i, v in enumerate(valleys) if v.smooth is not None]


def valley_noise(valleys: Sequence[Valley], points: Points) -> Noise | None:
    """Scatter about the curves, one group per valley; None where every curve goes through all of its points."""
    groups = fitted(valleys)
    if not groups:
        return None
    return group_noise(
        [curve.residuals * np.sqrt(points.weights[members]) for _, curve, members in groups],
        [len(members) - curve.num_coefficients for _, curve, members in groups],
        [curve.leverage for _, curve, _ in groups],
        points.runs[np.concatenate([members for _, _, members in groups])],
    )


def draw_minima(
    valleys: Sequence[Valley], points: Points, noise: Noise, draws: int, rng: np.random.Generator
) -> Minima:
    """Both stages begin here: new scatter on every point, and the minimum of every valley again."""
    groups = fitted(valleys)
    members = np.concatenate([own for _, _, own in groups])
    group = np.repeat(np.arange(len(groups)), [len(own) for _, _, own in groups])
    scatter = draw_scatter(rng, draws, noise, group, points.runs[members], points.num_runs)
    scatter /= np.sqrt(points.weights[members])
    found = np.full((3, draws, len(valleys)), np.nan)
    for number, (i, _, _) in enumerate(groups):
        valley = valleys[i]
        if valley.status != "interior" or valley.over_params is None or valley.over_tokens is None:
            continue
        here = scatter[:, group == number]
        found[0, :, i], found[2, :, i] = valley.over_params.minima(here)
        found[1, :, i], _ = valley.over_tokens.minima(here)
    found[:, ~np.isfinite(found).all(axis=0) | (found[2] <= 0)] = np.nan
    return Minima(log10_params=found[0], log10_tokens=found[1], loss=found[2])


def valley_intervals(
    valleys: Sequence[Valley], minima: Minima | None, confidence: float
) -> list[ValleyIntervals | None]:
    """Beside the valleys: intervals of their minima, None where there is no minimum or no scatter."""
    found: list[ValleyIntervals | None] = []
    for i, valley in enumerate(valleys):
        n = d = loss = None
        if minima is not None and valley.status == "interior":
            drawn = (minima.log10_params, minima.log10_tokens, minima.loss)
            n, d, loss = (interval(values[:, i], confidence) for values in drawn)
        known = None
        if n is not None and d is not None and loss is not None:
            known = ValleyIntervals(params_opt=_power(n), tokens_opt=_power(d), loss_opt=loss)
        found.append(known)
    return found


def _power(log10: Interval) -> Interval:
    return Interval(10**log10.low, 10**log10.high)


def valley_method(valleys: Sequence[Valley], minima: Minima | None, weights: LawWeights = "equal") -> Method:
    """Approach 2: straight lines through the log minima, N and D apart."""
    used = interior(valleys)
    draws = 0 if minima is None else len(minima.loss)
    lost = 0 if minima is None or not used else int(np.isnan(minima.loss[:, used]).any(axis=1).sum())
    if len(used) < 2:
        without = "; ".join(f"C = {fmt.flops(v.budget)}: {v.reason}" for v in valleys if v.status != "interior")
        reason = f"{len(used)} budget(s) have an optimum, and a law needs 2{f' ({without})' if without else ''}"
        return _no_law("valley", reason)
    flops = np.array([valleys[i].flops for i in used])
    if len(np.unique(flops)) < 2:
        return _no_law("valley", "all budgets spent the same C")
    values = [np.array([getattr(valleys[i], name) for i in used]) for name in ("params_opt", "tokens_opt", "loss_opt")]
    if not (values[2] > 0).all():
        return _no_law("valley", "the loss at a minimum is not positive, so it has no power law")
    drawn: list[Floats | None] = [None, None, None]
    if minima is not None:
        drawn = [minima.log10_params[:, used], minima.log10_tokens[:, used], np.log10(minima.loss[:, used])]
    laws = [
        fit_power_law(flops, value, _precision(draw) if weights == "precision" else None, draw)
        for value, draw in zip(values, drawn, strict=True)
    ]
    if len(used) >= MIN_FOR_SHIFT and laws[2].exponent < 0:  # a loss that rises has no irreducible part
        laws[2] = fit_shifted_law(flops, values[2], None if minima is None else minima.loss[:, used])
    return Method(name="valley", status="fitted", reason="", params_opt=laws[0], tokens_opt=laws[1], loss_opt=laws[2],
                  draws=draws, lost_draws=lost)  # fmt: skip


def _precision(draws: Floats | None) -> Floats | None:
    """1 / variance of every minimum's logarithm, over the draws that have it."""
    if draws is None:
        return None
    return np.asarray(1 / np.maximum(np.nanvar(draws, axis=0), 1e-12))


def surface_method(fit: SurfaceFit) -> Method:
    """Approach 3: the laws that follow from the surface and from what an experiment costs."""
    name: MethodName = "surface_huber" if fit.loss == "huber" else "surface_squared"
    if not fit.usable or fit.surface is None or fit.cost is None:
        return _no_law(name, fit.reason, status=fit.status, surface=fit)
    laws = _surface_laws(fit.surface, fit.cost)
    drawn = _surface_laws(fit.draws, fit.cost) if fit.draws is not None else None
    made = [
        Law(
            exponent=float(law.exponent[0]),
            log10_coefficient=float(law.log10_coefficient[0]),
            offset=float(np.asarray(law.offset).reshape(-1)[0]),
            draws=None if drawn is None else drawn[i],
        )
        for i, law in enumerate(laws)
    ]
    return Method(name=name, status=fit.status, reason=fit.reason, params_opt=made[0], tokens_opt=made[1],
                  loss_opt=made[2], surface=fit, draws=0 if fit.draws is None else len(fit.draws.alpha),
                  lost_draws=fit.lost_draws)  # fmt: skip


def _surface_laws(surfaces: Surfaces, cost: CostLaw) -> tuple[LawDraws, LawDraws, LawDraws]:
    """N_opt = k·C^a, D_opt = k'·C^b and L_opt = E + K·C^-gamma, with a = beta/(alpha + c·beta), b = 1 - c·a,
    gamma = alpha·a; the coefficients are the values at C = 1."""
    a = surfaces.params_exponent(cost)
    log_n, log_d, loss = surfaces.optimum(1.0, cost)
    e = np.exp(surfaces.log_e)
    with np.errstate(invalid="ignore", divide="ignore"):
        # At C = 1 the reducible part is many powers of ten above E: no digit of it is lost
        log_excess = np.log10(loss - e)
    ten = np.log(10)
    return (
        LawDraws(exponent=a, log10_coefficient=log_n / ten),
        LawDraws(exponent=1 - cost.n_exponent * a, log10_coefficient=log_d / ten),
        LawDraws(exponent=-surfaces.alpha * a, log10_coefficient=log_excess, offset=e),
    )


def _no_law(name: MethodName, reason: str, *, status: str = "no_law", surface: SurfaceFit | None = None) -> Method:
    return Method(
        name=name, status=status, reason=reason, params_opt=None, tokens_opt=None, loss_opt=None, surface=surface
    )
