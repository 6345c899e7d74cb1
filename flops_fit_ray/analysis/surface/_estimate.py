"""Approach 3: the surface L(N, D) through all runs, with the status of the fit and its bootstrap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats
from flops_fit_ray.analysis.noise import draw_scatter, group_noise
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.surface import _huber as huber
from flops_fit_ray.analysis.surface import _squared as squared
from flops_fit_ray.analysis.surface._newton import SearchResult
from flops_fit_ray.analysis.surface._seeds import TABLE, seeds
from flops_fit_ray.analysis.surface._value import CostLaw, Surfaces, fit_cost_law
from flops_fit_ray.fit_options import SurfaceLoss, SurfaceOptions

SurfaceStatus = Literal["converged", "at_bound", "did_not_move", "not_converged", "ill_conditioned", "unidentified"]
REFUSED: frozenset[SurfaceStatus] = frozenset({"did_not_move", "not_converged", "unidentified"})

CASE_RUNS = (
    100  # from so many runs whole runs are resampled; below, noise about the surface is drawn (measured coverage)
)
PATIENCE = 2  # iterations left to the other starts once the lowest has converged
WIDE_DELTA = 1e-2  # the starts first converge on a smoother loss
ILL_CONDITIONED = 1e12  # condition number of the scaled second derivatives
ONE_LINE = 1e-3  # rms of ln D about a line in ln N below which the points lie on it


@dataclass(frozen=True, kw_only=True)
class StartAgreement:
    """Agreement between the starting points of a search."""

    total: int
    arrived: int  # within 0.1 % of the best objective when that had converged
    exponent_low: float  # smallest and largest a among those within 1 % of the best objective
    exponent_high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceFit:
    """The fitted surface L = E + A/N^alpha + B/D^beta in nats, its status and its bootstrap draws."""

    loss: SurfaceLoss
    status: SurfaceStatus
    reason: str
    surface: Surfaces | None  # one surface
    objective: float | None
    starts: StartAgreement | None
    cost: CostLaw | None
    residuals: Floats  # of ln L for huber, of L for squared; (points,), observed less fitted
    draws: Surfaces | None
    lost_draws: int
    resampled: str  # description of the bootstrap

    @property
    def usable(self) -> bool:
        """True if there is a surface that can be used."""
        return self.surface is not None and self.status not in REFUSED


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scaled:
    """The problem in x = ln N and y = ln D, centred so that it is well scaled."""

    x: Floats
    y: Floats
    x_mean: float
    y_mean: float
    options: SurfaceOptions

    @property
    def free(self) -> Bools:
        """True (5,) for each of a, alpha, b, beta, e that is not pinned."""
        return np.array([name not in self.options.pins for name in ("A", "alpha", "B", "beta", "E")])

    def huber_problem(self, delta: float) -> huber.HuberProblem:
        return huber.HuberProblem(x=self.x, y=self.y, delta=delta, undertuned=self.options.undertuned, free=self.free)

    def projection(self) -> squared.Projection:
        return squared.Projection(x=self.x, y=self.y, pinned_e=self.options.pins.get("E"), free=self.free[[1, 3]])

    def surfaces(self, theta: Floats) -> Surfaces:
        """Convert theta (surfaces, 5) to surfaces over N and D: A/N^alpha = exp(a - alpha·(ln N - x_mean))."""
        a, alpha, b, beta, e = theta.T
        return Surfaces(
            log_e=e, log_a=a + alpha * self.x_mean, log_b=b + beta * self.y_mean, alpha=alpha, beta=beta
        )  # fmt: skip


def fit_surface(points: Points, options: SurfaceOptions, weights: Floats | None = None) -> SurfaceFit:
    """Fit one surface; `status` and `reason` tell whether it can be trusted."""
    w = points.weights if weights is None else weights
    reason = _unidentified(points.pick(w > 0), options)
    if reason:
        return _no_surface(options, "unidentified", reason)
    scaled = _scaled(points, options)
    log_loss = np.log(points.loss)
    start = _starts(scaled, points.loss)
    cost = fit_cost_law(points.params, points.tokens, points.flops)
    if options.loss == "huber":
        # 1) all starts, wide delta  2) the delta wanted, until the lowest converges  3) the lowest to the end
        wide = huber.minimise(scaled.huber_problem(max(WIDE_DELTA, options.delta)), start, log_loss, w, 1e-6, 8)
        problem = scaled.huber_problem(options.delta)
        search = huber.minimise(problem, wide.theta, log_loss, w, 1e-9, 30, PATIENCE)
        best = int(np.argmin(search.objective))
        polished = huber.minimise(problem, search.theta[best : best + 1], log_loss, w)
        theta, objective, converged = polished.theta, float(polished.objective[0]), bool(polished.converged[0])
        thetas, objectives = search.theta, search.objective
    else:
        projected = squared.minimise_squared(scaled.projection(), start[:, [1, 3]], points.loss, w)
        best = int(np.argmin(projected.objective))
        thetas, objectives = _theta_of(projected), projected.objective
        theta, objective, converged = thetas[best : best + 1], float(objectives[best]), bool(projected.converged[best])
    surface = scaled.surfaces(theta)
    status, reason = _status(scaled, theta[0], start[best], converged, w)
    fitted = surface.loss(points.params, points.tokens)
    return SurfaceFit(
        loss=options.loss,
        status=status,
        reason=reason,
        surface=surface,
        objective=objective,
        starts=_start_agreement(scaled, thetas, objectives, objective, cost),
        cost=cost,
        residuals=log_loss - np.log(fitted) if options.loss == "huber" else points.loss - fitted,
        draws=None,
        lost_draws=0,
        resampled="",
    )


def refit_surfaces(
    fit: SurfaceFit, points: Points, options: SurfaceOptions, *, loss: Floats, weights: Floats, tolerance: float = 1e-8
) -> Surfaces:
    """Fit many surfaces, starting at `fit`; `loss`, `weights`: (points,) or (draws, points). NaN where one failed."""
    assert fit.surface is not None
    scaled = _scaled(points, options)
    draws = max(len(a) if a.ndim == 2 else 1 for a in (loss, weights))
    s = fit.surface
    theta = np.stack(
        [s.log_a - s.alpha * scaled.x_mean, s.alpha, s.log_b - s.beta * scaled.y_mean, s.beta, s.log_e], axis=1
    )
    theta = np.repeat(theta, draws, axis=0)
    if options.loss == "huber":
        search = huber.minimise(scaled.huber_problem(options.delta), theta, np.log(loss), weights, tolerance)
        theta, good = search.theta, search.converged
    else:
        projected = squared.minimise_squared(scaled.projection(), theta[:, [1, 3]], loss, weights, tolerance)
        theta, good = _theta_of(projected), projected.converged
    inside = (theta[:, [1, 3]] > huber.LOWER[[1, 3]]) & (theta[:, [1, 3]] < huber.UPPER[[1, 3]])
    good = good & (inside | ~scaled.free[[1, 3]]).all(axis=1) & ~np.isnan(theta).any(axis=1)
    return scaled.surfaces(np.where(good[:, None], theta, np.nan))


def bootstrap_surface(
    fit: SurfaceFit, points: Points, options: SurfaceOptions, draws: int, rng: np.random.Generator
) -> SurfaceFit:
    """Add bootstrap draws to a fit: of whole runs where there are many, else of noise about the surface.

    Resampling runs over-covers on small designed sweeps, and drawn noise assumes equal variance; see
    benchmarks/README.md.
    """
    if not fit.usable or fit.surface is None or draws < 1:
        return fit
    runs, count = points.runs, points.num_runs
    if count >= CASE_RUNS:
        # Case resampling: the number of times that a run was drawn is its weight
        drawn = rng.integers(0, count, size=(draws, count))
        cells = (drawn + count * np.arange(draws)[:, None]).reshape(-1)
        times = np.bincount(cells, minlength=draws * count).reshape(draws, count).astype(np.float64)
        drawn_surfaces = refit_surfaces(fit, points, options, loss=points.loss, weights=times[:, runs] * points.weights)
        resampled = f"{count} runs with replacement"
    else:
        # Parametric bootstrap: sigma from all residuals; the mean leverage is coefficients / points
        fitted = fit.surface.loss(points.params, points.tokens)
        residuals = (points.loss - fitted) * np.sqrt(points.weights)
        coefficients = 5 - len(options.pins)
        leverage = np.full(len(points), coefficients / len(points))
        noise = group_noise([residuals], [len(points) - coefficients], [leverage], runs)
        if noise is None:
            return fit
        group = np.zeros(len(points), dtype=np.int64)
        scatter = draw_scatter(rng, draws, noise, group, runs, count) / np.sqrt(points.weights)
        loss = np.maximum(fitted + scatter, 1e-3 * fitted)  # positive, for its logarithm
        drawn_surfaces = refit_surfaces(fit, points, options, loss=loss, weights=points.weights)
        resampled = f"new scatter of {noise.pooled:.2g} about the surface"
    lost = int(np.isnan(drawn_surfaces.alpha).sum())
    return replace(fit, draws=drawn_surfaces, lost_draws=lost, resampled=resampled)


def _scaled(points: Points, options: SurfaceOptions) -> _Scaled:
    x, y = np.log(points.params), np.log(points.tokens)
    return _Scaled(x=x - x.mean(), y=y - y.mean(), x_mean=float(x.mean()), y_mean=float(y.mean()), options=options)


def _starts(scaled: _Scaled, loss: Floats) -> Floats:
    pins = scaled.options.pins
    alphas, betas = (np.array([pins[n]]) if n in pins else TABLE for n in ("alpha", "beta"))
    theta = seeds(scaled.x, scaled.y, loss, alphas, betas)
    if "E" in pins:
        theta[:, 4] = np.log(pins["E"])
    return theta


def _theta_of(projected: SearchResult) -> Floats:
    """Theta (rows, 5) in the order of `huber`; NaN where a coefficient has no logarithm, minus infinity where E = 0."""
    e, a, b = projected.known[1].T
    alpha, beta = projected.theta.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([np.log(a), alpha, np.log(b), beta, np.log(e)], axis=1)


def _no_surface(options: SurfaceOptions, status: SurfaceStatus, reason: str) -> SurfaceFit:
    return SurfaceFit(loss=options.loss, status=status, reason=reason, surface=None, objective=None, starts=None,
                      cost=None, residuals=np.empty(0), draws=None, lost_draws=0, resampled="")  # fmt: skip


def _unidentified(points: Points, options: SurfaceOptions) -> str:
    """Reason why the points do not determine a surface; empty if they may."""
    free = 5 - len(options.pins)
    if len(points) <= free:
        return f"{len(points)} points for {free} parameters; at least {free + 1} are needed"
    x, y = np.log(points.params), np.log(points.tokens)
    for name, values, other in (("N", x, "sizes"), ("D", y, "token counts")):
        if len(np.unique(np.round(values, 6))) < 3:
            return f"{len(np.unique(np.round(values, 6)))} different values of {name}; at least 3 {other} are needed"
    # A line of slope 1 in (ln N, ln D) is a fixed D/N, of slope -1 one budget; A/N^alpha and B/D^beta are confounded
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    scatter = float(np.sqrt(np.mean((y - slope * x) ** 2)))
    if scatter < ONE_LINE:
        cause = (
            "D/N is fixed" if abs(slope - 1) < 0.01 else "one budget" if abs(slope + 1) < 0.01 else "D follows from N"
        )
        return f"all points lie on one line in (log N, log D): {cause}; vary N and D independently"
    return ""


def _status(
    scaled: _Scaled, theta: Floats, start: Floats, converged: bool, weights: Floats
) -> tuple[SurfaceStatus, str]:
    names = ("A", "alpha", "B", "beta", "E")
    if np.isnan(theta).any():
        return "unidentified", "the best fit has a negative coefficient: the loss does not fall with both N and D"
    for i in (1, 3):  # alpha and beta
        if scaled.free[i] and not huber.LOWER[i] < theta[i] < huber.UPPER[i]:
            message = f"{names[i]} reached its bound {theta[i]:g}: the losses do not determine it; widen the range of"
            return "unidentified", f"{message} {'N' if i == 1 else 'D'}"
    if not converged:
        moved = np.abs(theta - start).max() > 1e-9
        return ("not_converged", "the optimizer stopped before reaching a minimum") if moved else (
            "did_not_move", "no step from the best starting point lowered the objective")  # fmt: skip
    if scaled.free[4] and theta[4] <= huber.LOWER[4]:
        return "at_bound", "E was fitted as 0: the losses show no irreducible term"
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


def _start_agreement(scaled: _Scaled, thetas: Floats, objectives: Floats, best: float, cost: CostLaw) -> StartAgreement:
    near = (objectives <= best * 1.01 + 1e-300) & ~np.isnan(thetas).any(axis=1)
    exponents = scaled.surfaces(thetas[near]).params_exponent(cost) if near.any() else np.array([np.nan])
    return StartAgreement(
        total=len(objectives),
        arrived=int((objectives <= best * (1 + 1e-3) + 1e-20).sum()),
        exponent_low=float(exponents.min()),
        exponent_high=float(exponents.max()),
    )
