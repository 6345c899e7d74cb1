"""Estimates by valleys and surfaces: each method ends in the laws N_opt(C), D_opt(C), L_opt(C), to be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.arrays import Floats, Ints
from flops_fit_ray.analysis.law import Interval, Law, LawDraws, central_interval, fit_power_law, fit_shifted_law
from flops_fit_ray.analysis.noise import Noise, draw_scatter, group_noise
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.surface import CostLaw, SurfaceFit, Surfaces
from flops_fit_ray.analysis.valley import Polynomial, Valley
from flops_fit_ray.fit_options import SURFACES, LawWeights, MethodName

MIN_FOR_SHIFT = 4  # budgets from which the loss law has an irreducible term: one more than its parameters
METHODS: tuple[MethodName, ...] = get_args(MethodName)
METHOD_LABELS: dict[MethodName, str] = {
    "valley": "valleys (approach 2)",
    "surface_huber": "surface, Huber loss (approach 3)",
    "surface_squared": "surface, squared error (approach 3)",
    "surface_coupled": "surface, coupled law (approach 3)",
    "envelope": "envelope of training curves (approach 1)",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Method:
    """The result of one method. `reason` explains missing laws, or a weakness of those that are there."""

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
        """The laws of N_opt, D_opt and L_opt; None where the method has none."""
        if self.params_opt is None or self.tokens_opt is None or self.loss_opt is None:
            return None
        return self.params_opt, self.tokens_opt, self.loss_opt

    @property
    def label(self) -> str:
        """The name of the method for people."""
        return METHOD_LABELS[self.name]


@dataclass(frozen=True, kw_only=True, eq=False)
class Minima:
    """The optima of the valleys in every bootstrap draw: arrays (draws, valleys), NaN where a draw has no minimum."""

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
    """Indices of the valleys that have an optimum."""
    return [i for i, valley in enumerate(valleys) if valley.status == "interior"]


def fitted(valleys: Sequence[Valley]) -> list[tuple[int, Polynomial, Ints]]:
    """Index, curve and point indices of every valley with a polynomial, about which the noise is measured."""
    return [(i, v.smooth, v.index[v.used]) for i, v in enumerate(valleys) if v.smooth is not None]


def valley_noise(valleys: Sequence[Valley], points: Points) -> Noise | None:
    """Estimate the noise about the curves, one group per valley; None where every curve interpolates its points."""
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
    """Bootstrap the minima: add new noise to all points of a draw at once, and find the minimum of every valley again.

    Laws fitted to these draws carry the noise of the losses through both stages, minima and power law.
    """
    groups = fitted(valleys)
    members = np.concatenate([index for _, _, index in groups])
    group = np.repeat(np.arange(len(groups)), [len(index) for _, _, index in groups])
    scatter = draw_scatter(rng, draws, noise, group, points.runs[members], points.num_runs)
    scatter /= np.sqrt(points.weights[members])
    minima = np.full((3, draws, len(valleys)), np.nan)  # log10 N, log10 D, loss
    for number, (i, _, _) in enumerate(groups):
        valley = valleys[i]
        if valley.status != "interior" or valley.over_params is None or valley.over_tokens is None:
            continue
        here = scatter[:, group == number]
        minima[0, :, i], minima[2, :, i] = valley.over_params.minima(here)
        minima[1, :, i], _ = valley.over_tokens.minima(here)
    minima[:, ~np.isfinite(minima).all(axis=0) | (minima[2] <= 0)] = np.nan  # a loss <= 0 has no logarithm
    return Minima(log10_params=minima[0], log10_tokens=minima[1], loss=minima[2])


def valley_intervals(
    valleys: Sequence[Valley], minima: Minima | None, confidence: float
) -> list[ValleyIntervals | None]:
    """Intervals of the minima, one entry per valley; None without a minimum or without measured noise."""
    intervals: list[ValleyIntervals | None] = []
    for i, valley in enumerate(valleys):
        n = d = loss = None
        if minima is not None and valley.status == "interior":
            drawn = (minima.log10_params, minima.log10_tokens, minima.loss)
            n, d, loss = (central_interval(values[:, i], confidence) for values in drawn)
        known = None
        if n is not None and d is not None and loss is not None:
            known = ValleyIntervals(params_opt=_power(n), tokens_opt=_power(d), loss_opt=loss)
        intervals.append(known)
    return intervals


def _power(log10: Interval) -> Interval:
    return Interval(10**log10.low, 10**log10.high)


def valley_method(valleys: Sequence[Valley], minima: Minima | None, weights: LawWeights = "equal") -> Method:
    """Fit approach 2: power laws through the minima of the valleys, N and D separately (Hoffmann et al. 2022, 3.2)."""
    used = interior(valleys)
    draws = 0 if minima is None else len(minima.loss)
    lost = 0 if minima is None or not used else int(np.isnan(minima.loss[:, used]).any(axis=1).sum())
    if len(used) < 2:
        without = "; ".join(f"C = {fmt.flops(v.budget)}: {v.reason}" for v in valleys if v.status != "interior")
        reason = f"{len(used)} budget(s) have an optimum, and a law needs 2{f' ({without})' if without else ''}"
        return no_law("valley", reason)
    flops = np.array([valleys[i].flops for i in used])
    if len(np.unique(flops)) < 2:
        return no_law("valley", "all budgets spent the same C, and a law needs two that differ")
    values = [np.array([getattr(valleys[i], name) for i in used]) for name in ("params_opt", "tokens_opt", "loss_opt")]
    if not (values[2] > 0).all():
        return no_law("valley", "the loss at a minimum is not positive, so it has no power law")
    drawn: list[Floats | None] = [None, None, None]
    if minima is not None:
        drawn = [minima.log10_params[:, used], minima.log10_tokens[:, used], np.log10(minima.loss[:, used])]
    laws = [
        fit_power_law(flops, value, _inverse_variance(draw) if weights == "precision" else None, draw)
        for value, draw in zip(values, drawn, strict=True)
    ]
    if len(used) >= MIN_FOR_SHIFT and laws[2].exponent < 0:  # a loss that rises has no irreducible term
        laws[2] = fit_shifted_law(flops, values[2], None if minima is None else minima.loss[:, used])
    return Method(name="valley", status="fitted", reason="", params_opt=laws[0], tokens_opt=laws[1], loss_opt=laws[2],
                  draws=draws, lost_draws=lost)  # fmt: skip


def _inverse_variance(draws: Floats | None) -> Floats | None:
    """Weights (valleys,): 1 / variance of log10 of each minimum over its draws."""
    if draws is None:
        return None
    return np.asarray(1 / np.maximum(np.nanvar(draws, axis=0), 1e-12))


def surface_method(fit: SurfaceFit) -> Method:
    """Derive the laws of approach 3 from the surface and the cost law C = k·N^c·D (Hoffmann et al. 2022, 3.3)."""
    name = next(name for name, kind in SURFACES.items() if kind == (fit.loss, fit.form))
    if not fit.usable or fit.surface is None or fit.cost is None:
        return no_law(name, fit.reason, status=fit.status, surface=fit)
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
    """Laws of N_opt, D_opt and L_opt for many surfaces; the coefficients are the values at C = 1.

    1) N_opt = k_N·C^a with a = beta / (alpha + c·beta)  (Hoffmann et al. 2022, equation 4, for c = 1)
    2) D_opt = k_D·C^b with b = 1 - c·a, because N^c·D is proportional to C
    3) L_opt - E = K·C^-gamma with gamma = alpha·a·k: A·N^-alpha and B·D^-beta fall alike, as alpha·a = beta·b
    """
    a = surfaces.params_exponent(cost)
    log_n, log_d, loss = surfaces.optimum(1.0, cost)
    e = np.exp(surfaces.log_e)
    with np.errstate(invalid="ignore", divide="ignore"):
        # At C = 1 the reducible loss is many orders of magnitude above E, so the subtraction loses no digits
        log_excess = np.log10(loss - e)
    ten = np.log(10)
    return (
        LawDraws(exponent=a, log10_coefficient=log_n / ten),
        LawDraws(exponent=1 - cost.n_exponent * a, log10_coefficient=log_d / ten),
        LawDraws(exponent=-surfaces.alpha * a * surfaces.k, log10_coefficient=log_excess, offset=e),
    )


def no_law(name: MethodName, reason: str, *, status: str = "no_law", surface: SurfaceFit | None = None) -> Method:
    """Return a method that gave no law, with the reason."""
    return Method(
        name=name, status=status, reason=reason, params_opt=None, tokens_opt=None, loss_opt=None, surface=surface
    )
