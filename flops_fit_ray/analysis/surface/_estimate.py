"""Approach 3: the surface L(N, D) through all runs, with the status of the fit and its bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats, Ints
from flops_fit_ray.analysis.noise import draw_scatter, group_noise
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.surface import _huber as huber
from flops_fit_ray.analysis.surface import _squared as squared
from flops_fit_ray.analysis.surface._block_effects import draw_block_effects
from flops_fit_ray.analysis.surface._cost import CostLaw, fit_token_cost
from flops_fit_ray.analysis.surface._identified import STEEPEST, cannot_be_fitted, weak_design, weak_optimum
from flops_fit_ray.analysis.surface._search import (
    NAMES,
    Scaled,
    refit_huber,
    scaled_problem,
    search_huber,
    search_squared,
    starts,
    theta_of,
)
from flops_fit_ray.analysis.surface._value import Surfaces
from flops_fit_ray.fit_options import SurfaceForm, SurfaceLoss, SurfaceOptions, SurfaceStatus

REFUSED: frozenset[SurfaceStatus] = frozenset({"did_not_move", "not_converged", "unidentified"})

CASE_RUNS = (
    100  # from so many runs whole runs are resampled; below, noise about the surface is drawn (measured coverage)
)
ILL_CONDITIONED = 1e12  # condition number of the scaled second derivatives


@dataclass(frozen=True, kw_only=True)
class StartAgreement:
    """Agreement between the starting points of a search."""

    total: int
    arrived: int  # within 0.1 % of the best objective when that had converged
    exponent_low: float  # smallest and largest a among those within 1 % of the best objective
    exponent_high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceFit:
    """The fitted surface L = E + (A/N^alpha + B/D^beta)^k in nats, its status and its bootstrap draws."""

    loss: SurfaceLoss
    form: SurfaceForm
    status: SurfaceStatus
    reason: str
    surface: Surfaces | None  # one surface
    objective: float | None
    starts: StartAgreement | None
    cost: CostLaw | None
    flops_range: tuple[float, float]  # smallest and largest C of the runs
    residuals: Floats  # of ln L for huber, of L for squared; (points,), observed less fitted
    draws: Surfaces | None
    exact: Bools | None  # draws in which budgets do nothing beyond the noise of their runs; None where none can be told
    lost_draws: int
    resampled: str  # description of the bootstrap
    case: Ints | None = None  # number of the case of each draw; None where N and D are certain

    @property
    def usable(self) -> bool:
        """True if there is a surface that can be used."""
        return self.surface is not None and self.status not in REFUSED


def fit_surface(points: Points, options: SurfaceOptions, weights: Floats | None = None) -> SurfaceFit:
    """Fit one surface; `status` and `reason` tell whether it can be trusted."""
    w = points.weights if weights is None else weights
    fitted = points.pick(w > 0)
    reason = cannot_be_fitted(fitted, options)
    if reason:
        return _no_surface(options, "unidentified", reason)
    scaled = scaled_problem(points, options)
    log_loss = np.log(points.loss) - scaled.log_unit
    start = starts(scaled, np.exp(log_loss))
    cost = fit_token_cost(points.params, points.tokens, points.flops, points.token_cost)
    if options.loss == "huber":
        search, best = search_huber(scaled, start, log_loss, w)
        scale = 1.0
    else:
        search, best = search_squared(scaled, start[:, [1, 3]], np.exp(log_loss), w)
        scale = float(np.exp(2 * scaled.log_unit))  # in nats²
    theta, objective = search.theta[best : best + 1], float(search.objective[best])
    surface = scaled.surfaces(theta)
    status, reason = _status(scaled, theta[0], start[min(best, len(start) - 1)], bool(search.converged[best]), w)
    if status in ("converged", "at_bound"):
        weak = weak_design(fitted) or weak_optimum(fitted, surface, cost)
        if weak:
            status, reason = "ill_conditioned", weak
    value = surface.loss(points.params, points.tokens)
    return SurfaceFit(
        loss=options.loss,
        form=options.form,
        status=status,
        reason=reason,
        surface=surface,
        objective=objective * scale,
        starts=_start_agreement(scaled, search.theta, search.objective, objective, cost),
        cost=cost,
        flops_range=(float(points.flops.min()), float(points.flops.max())),
        residuals=np.log(points.loss / value) if options.loss == "huber" else points.loss - value,
        draws=None,
        exact=None,
        lost_draws=0,
        resampled="",
    )


def refit_surfaces(
    fit: SurfaceFit, points: Points, options: SurfaceOptions, *, loss: Floats, weights: Floats, tolerance: float = 1e-8
) -> Surfaces:
    """Fit many surfaces, starting at `fit`; `loss`, `weights`: (points,) or (draws, points). NaN where one failed."""
    assert fit.surface is not None
    scaled = scaled_problem(points, options)
    draws = max(len(a) if a.ndim == 2 else 1 for a in (loss, weights))
    theta = np.repeat(scaled.theta(fit.surface), draws, axis=0)
    if options.loss == "huber":
        search = refit_huber(scaled, theta, np.log(loss) - scaled.log_unit, weights, tolerance)
        theta = search.theta
    else:
        unit = float(np.exp(scaled.log_unit))
        search = squared.minimise_squared(scaled.projection(), theta[:, [1, 3]], loss / unit, weights, tolerance)
        theta = theta_of(search)
    # ln E has an end of its own, E = 0; every other parameter at a bound is a draw without a surface
    bounded = np.flatnonzero(scaled.free)
    bounded = bounded[bounded != 4]
    inside = (theta[:, bounded] > huber.LOWER[bounded]) & (theta[:, bounded] < huber.UPPER[bounded])
    good = search.converged & inside.all(axis=1) & ~np.isnan(theta).any(axis=1)
    return scaled.surfaces(np.where(good[:, None], theta, np.nan))


def bootstrap_surface(
    fit: SurfaceFit,
    points: Points,
    options: SurfaceOptions,
    draws: int,
    rng: np.random.Generator,
    excess: Floats | None = None,
) -> SurfaceFit:
    """Add bootstrap draws to a fit: of whole runs where there are many, else of noise about the surface.

    Resampling runs over-covers on small designed sweeps, and drawn noise assumes equal variance; see
    benchmarks/README.md.

    Args:
        excess: of the losses for their learning rates (draws, points), which is taken off.
    """
    if not fit.usable or fit.surface is None or draws < 1:
        return fit
    if fit.status == "ill_conditioned":  # noise is not what this answer is unsure of
        return replace(fit, reason=f"{fit.reason} (no interval)")
    runs, count = points.runs, points.num_runs
    blocks = None
    if points.labelled or count < CASE_RUNS:
        blocks = draw_block_effects(fit.surface, points, options, draws, rng.spawn(1)[0])
    factor, exact = (np.float64(1.0), None) if blocks is None else (np.exp(blocks[0]), blocks[1])
    off = np.float64(0.0) if excess is None else excess
    if count >= CASE_RUNS:
        # Case resampling: the number of times that a run was drawn is its weight
        drawn = rng.integers(0, count, size=(draws, count))
        cells = (drawn + count * np.arange(draws)[:, None]).reshape(-1)
        times = np.bincount(cells, minlength=draws * count).reshape(draws, count).astype(np.float64)
        drawn_surfaces = refit_surfaces(
            fit,
            points,
            options,
            loss=_positive(points.loss - off, points.loss) * factor,
            weights=times[:, runs] * points.weights,
        )
        resampled = f"{count} runs with replacement"
    else:
        # Parametric bootstrap: sigma from all residuals; the mean leverage is coefficients / points
        fitted = fit.surface.loss(points.params, points.tokens)
        residuals = (points.loss - fitted) * np.sqrt(points.weights)
        coefficients = options.parameters
        leverage = np.full(len(points), coefficients / len(points))
        noise = group_noise([residuals], [len(points) - coefficients], [leverage], runs)
        if noise is None:
            return fit
        group = np.zeros(len(points), dtype=np.int64)
        scatter = draw_scatter(rng, draws, noise, group, runs, count) / np.sqrt(points.weights)
        loss = _positive(fitted + scatter - off, fitted) * factor
        drawn_surfaces = refit_surfaces(fit, points, options, loss=loss, weights=points.weights)
        resampled = f"new scatter of {noise.pooled:.2g} about the surface"
    return _with_draws(fit, drawn_surfaces, exact, resampled)


def _positive(loss: Floats, fitted: Floats) -> Floats:
    """Losses of draws that have a logarithm."""
    return np.maximum(loss, 1e-3 * fitted)


def bootstrap_cases(
    fit: SurfaceFit,
    cases: Sequence[Points],
    options: SurfaceOptions,
    draws: int,
    rng: np.random.Generator,
    excess: Floats | None = None,
) -> SurfaceFit:
    """Add bootstrap draws to a fit whose N and D are themselves uncertain: equally many draws under each of the cases.

    In each the surface is fitted anew, and its draws are about that fit; `excess` as in `bootstrap_surface`.
    """
    parts: list[SurfaceFit] = []
    of_part: list[int] = []
    numbers = np.bincount(np.arange(draws) % len(cases), minlength=len(cases))
    for i, (points, number) in enumerate(zip(cases, numbers, strict=True)):
        if not fit.usable or fit.status == "ill_conditioned" or not number:
            break
        surface = refit_surfaces(fit, points, options, loss=points.loss, weights=points.weights)
        if np.isfinite(surface.alpha).all():
            off = None if excess is None else excess[: int(number)]
            parts.append(bootstrap_surface(replace(fit, surface=surface), points, options, int(number), rng, off))
            of_part.append(i)
    drawn = [part.draws for part in parts if part.draws is not None]
    case = np.repeat(of_part, [0 if part.draws is None else len(part.draws.alpha) for part in parts])
    if not drawn:
        return bootstrap_surface(fit, cases[0], options, draws, rng, excess)
    order = rng.permutation(sum(len(one.alpha) for one in drawn))  # a part of the draws stands for all cases
    joined = {f.name: np.concatenate([getattr(one, f.name) for one in drawn])[order] for f in fields(Surfaces)}
    exact = [part.exact for part in parts if part.exact is not None]
    together = np.concatenate(exact)[order] if len(exact) == len(drawn) else None
    return replace(_with_draws(fit, Surfaces(**joined), together, parts[0].resampled), case=case[order])


def _with_draws(fit: SurfaceFit, draws: Surfaces, exact: Bools | None, resampled: str) -> SurfaceFit:
    lost = int(np.isnan(draws.alpha).sum())
    fit = replace(fit, draws=draws, exact=exact, lost_draws=lost, resampled=resampled)
    low, high = np.nanquantile(draws.k, [0.025, 0.975]) if lost < len(draws.k) else (1.0, 1.0)
    if fit.form == "coupled" and fit.status == "converged" and low <= 1 <= high:
        k = f"k = {fit.surface.k[0]:.3g} [{low:.3g}, {high:.3g}]" if fit.surface is not None else ""
        reason = f"{k} is not told from 1, and at k = 1 the law is the additive one, with a parameter less"
        return replace(fit, status="same_as_additive", reason=reason)
    return fit


def _no_surface(options: SurfaceOptions, status: SurfaceStatus, reason: str) -> SurfaceFit:
    return SurfaceFit(loss=options.loss, form=options.form, status=status, reason=reason, surface=None,
                      objective=None, starts=None, cost=None, flops_range=(np.nan, np.nan), residuals=np.empty(0),
                      draws=None, exact=None, lost_draws=0, resampled="")  # fmt: skip


def _status(
    scaled: Scaled, theta: Floats, start: Floats, converged: bool, weights: Floats
) -> tuple[SurfaceStatus, str]:
    if np.isnan(theta).any():
        return "unidentified", "the best fit has a negative coefficient: the loss does not fall with both N and D"
    for i in (1, 3, 0, 2):  # alpha and beta, then A and B
        if scaled.free[i] and not huber.LOWER[i] < theta[i] < huber.UPPER[i]:
            message = f"{NAMES[i]} reached its bound {theta[i]:g}: the losses do not determine it; widen the range of"
            return "unidentified", f"{message} {'N' if i in (0, 1) else 'D'}"
    k = float(np.exp(theta[5])) if len(theta) == 6 else 1.0
    for i, size in ((1, "N"), (3, "D")):
        if scaled.free[i] and theta[i] * k > STEEPEST:
            message = f"the loss would fall as {size}^-{theta[i] * k:.3g}, and no loss is known to fall faster than"
            return (
                "unidentified",
                f"{message} {size}^-{STEEPEST:g}: the runs do not determine it; widen the range of {size}",
            )
    if not converged:
        moved = np.abs(theta - start).max() > 1e-9
        return ("not_converged", "the optimizer stopped before reaching a minimum") if moved else (
            "did_not_move", "no step from the best starting point lowered the objective")  # fmt: skip
    if scaled.free[4] and theta[4] <= huber.LOWER[4]:
        return "at_bound", "E was fitted as 0: the losses show no irreducible term"
    if len(theta) == 6 and not huber.LOWER[5] < theta[5] < huber.UPPER[5]:
        return "at_bound", f"k reached its bound {k:.3g}: the losses do not determine it"
    # Condition number of the majoriser, its diagonal scaled to 1
    _, _, _, majoriser = huber.derivatives(
        scaled.huber_problem(1.0), theta[None], np.zeros((1, len(scaled.x))), weights[None]
    )
    keep = np.flatnonzero(scaled.free)
    m = majoriser[0][np.ix_(keep, keep)]
    scale = 1 / np.sqrt(np.maximum(np.diag(m), 1e-300))
    condition = float(np.linalg.cond(m * scale[:, None] * scale[None, :]))
    if condition > ILL_CONDITIONED:
        return "ill_conditioned", f"the parameters trade off against each other (condition {condition:.1e})"
    return "converged", ""


def _start_agreement(scaled: Scaled, thetas: Floats, objectives: Floats, best: float, cost: CostLaw) -> StartAgreement:
    near = (objectives <= best * 1.01 + 1e-300) & ~np.isnan(thetas).any(axis=1)
    exponents = scaled.surfaces(thetas[near]).params_exponent(cost) if near.any() else np.array([np.nan])
    return StartAgreement(
        total=len(objectives),
        arrived=int((objectives <= best * (1 + 1e-3) + 1e-20).sum()),
        exponent_low=float(exponents.min()),
        exponent_high=float(exponents.max()),
    )
