"""Estimates by valleys and surfaces: each method ends in the laws N_opt(C), D_opt(C), L_opt(C), to be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._curved_law import curved_laws
from flops_fit_ray.analysis._law import Law, LawDraws
from flops_fit_ray.analysis._valley_cost import BentLaw, Correction, bent_tokens, cost_correction
from flops_fit_ray.analysis._valley_minima import Minima, MinimaErrors, bent_minima_law, fit_laws, interior, minima_law
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.surface import CostLaw, SurfaceFit, Surfaces
from flops_fit_ray.analysis.valley import Valley
from flops_fit_ray.fit_options import SURFACES, LawWeights, MethodName

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
    def correction(self) -> Correction | None:
        """The correction of N in which a law of minima is straight, where the cost bends it."""
        return self.params_opt.correction if isinstance(self.params_opt, BentLaw) else None

    @property
    def label(self) -> str:
        """The name of the method for people."""
        return METHOD_LABELS[self.name]


def valley_method(
    valleys: Sequence[Valley],
    minima: Minima | None,
    errors: MinimaErrors | None = None,
    weights: LawWeights = "precision",
    cost: CostLaw | None = None,
) -> Method:
    """Fit approach 2: power laws through the minima of the valleys, N and D separately (Hoffmann et al. 2022, 3.2).

    Args:
        errors: covariances of the optima, for the weights and for what the budgets do beyond their noise; None where
            the noise is not known, and every minimum weighs the same.
        cost: of a token, which bends the laws where it is no power of N; None: it is one.
    """
    found = _optima(valleys)
    if isinstance(found, str):
        return no_law("valley", found)
    used, flops, (n, d, loss) = found
    draws = 0 if minima is None else len(minima.loss)
    lost = 0 if minima is None else int(np.isnan(minima.loss[:, used]).any(axis=1).sum())
    errors, minima = errors and errors.of(used), minima and minima.of(used)
    laws = fit_laws(flops, (n, d, loss), errors, minima, weights)
    correction = cost_correction(cost, [valleys[i] for i in used], laws[0], laws[2])
    if correction is not None:
        known = (None if errors is None else errors.log10_params, None if minima is None else minima.params)
        bent = bent_minima_law(laws[0], flops, n, *known, weights, correction)
        if bent is not None:
            laws = bent, bent_tokens(laws[1], bent), laws[2]
    return Method(name="valley", status="fitted", reason="", params_opt=laws[0], tokens_opt=laws[1], loss_opt=laws[2],
                  draws=draws, lost_draws=lost)  # fmt: skip


def valley_optimum(
    valleys: Sequence[Valley], errors: MinimaErrors | None, weights: LawWeights, correction: Correction | None
) -> Method:
    """Fit N_opt and D_opt as `valley_method` does, without draws and without L_opt, which takes longer than both.

    Args:
        correction: of N where the cost bends the laws, as `Method.correction`.
    """
    found = _optima(valleys)
    if isinstance(found, str):
        return no_law("valley", found)
    used, flops, (n, d, _) = found
    of_n, of_d = (None, None) if errors is None else (errors.of(used).log10_params, errors.of(used).log10_tokens)
    params = minima_law(flops, n, of_n, None, weights, correction)
    tokens = minima_law(flops, d, of_d, None, weights)
    if isinstance(params, BentLaw):
        tokens = bent_tokens(tokens, params)
    return Method(name="valley", status="fitted", reason="", params_opt=params, tokens_opt=tokens, loss_opt=None)


def _optima(valleys: Sequence[Valley]) -> tuple[list[int], Floats, tuple[Floats, Floats, Floats]] | str:
    """Return the valleys with an optimum, their C, and N, D and L there, (budgets,) each; or why they give no law."""
    used = interior(valleys)
    if len(used) < 2:
        without = "; ".join(f"C = {fmt.flops(v.budget)}: {v.reason}" for v in valleys if v.status != "interior")
        found = f"{fmt.counted(len(used), 'budget')} {'has' if len(used) == 1 else 'have'}"
        return f"{found} an optimum, and a law needs 2{f' ({without})' if without else ''}"
    flops = np.array([valleys[i].flops for i in used])
    if len(np.unique(flops)) < 2:
        return "all budgets spent the same C, and a law needs two that differ"
    n, d, loss = (np.array([getattr(valleys[i], o) for i in used]) for o in ("params_opt", "tokens_opt", "loss_opt"))
    if not (loss > 0).all():
        return "the loss at a minimum is not positive, so it has no power law"
    return used, flops, (n, d, loss)


def surface_method(fit: SurfaceFit) -> Method:
    """Derive the laws of approach 3 from the surface and the cost C = f(N)·D (Hoffmann et al. 2022, 3.3).

    They are power laws where f is a power of N.
    """
    name = next(name for name, kind in SURFACES.items() if kind == (fit.loss, fit.form))
    if not fit.usable or fit.surface is None or fit.cost is None:
        return no_law(name, fit.reason, status=fit.status, surface=fit)
    made = _straight_laws(fit.surface, fit.draws, fit.cost) if fit.cost.curve is None else curved_laws(fit)
    return Method(name=name, status=fit.status, reason=fit.reason, params_opt=made[0], tokens_opt=made[1],
                  loss_opt=made[2], surface=fit, draws=0 if fit.draws is None else len(fit.draws.alpha),
                  lost_draws=fit.lost_draws)  # fmt: skip


def _straight_laws(surface: Surfaces, draws: Surfaces | None, cost: CostLaw) -> list[Law]:
    laws = surface_laws(surface, cost)
    drawn = surface_laws(draws, cost) if draws is not None else None
    return [Law.first_of(law, draws=None if drawn is None else drawn[i]) for i, law in enumerate(laws)]


def surface_laws(surfaces: Surfaces, cost: CostLaw) -> tuple[LawDraws, LawDraws, LawDraws]:
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


def bent_as_valleys(method: Method, valleys: Law, minima: Minima) -> Method:
    """Bend the draws of a surface's N_opt and D_opt as far as the valleys leave a bend of N_opt(C) possible.

    A surface's form fixes how its optimum goes on beyond the runs, so its own draws cannot know of another course. Only
    draws in which budgets do something beyond the noise of their runs are bent: in the others the form is true.
    """
    fit, drawn = method.surface, valleys.draws
    if fit is None or fit.exact is None or drawn is None or valleys.effects is None:
        return method
    bend = valleys.effects.draw(minima.source).bend[: len(fit.exact)] * ~fit.exact
    laws = []
    for law, sign in ((method.params_opt, 1), (method.tokens_opt, -1)):
        if law is None or law.draws is None:
            return method
        laws.append(replace(law, draws=replace(law.draws, bend=sign * bend, parabola=drawn.parabola)))
    return replace(method, params_opt=laws[0], tokens_opt=laws[1])


def no_law(name: MethodName, reason: str, *, status: str = "no_law", surface: SurfaceFit | None = None) -> Method:
    """Return a method that gave no law, with the reason."""
    return Method(
        name=name, status=status, reason=reason, params_opt=None, tokens_opt=None, loss_opt=None, surface=surface
    )
