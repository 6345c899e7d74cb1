"""The laws that further runs are to narrow, each with its weight: the answer, and all others that still fit.

The answer has half of the weight, because its interval is what is reported. The other half is shared by all by how
they predict: forecasts are combined by the inverse of their mean squared errors (Bates and Granger 1969), here of
ln N_opt of budgets that were held out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from flops_fit_ray.analysis._design_search import WeighedLaw
from flops_fit_ray.analysis._extrapolation import MIN_FITTED, hold_outs
from flops_fit_ray.analysis._rate_part import rate_floor
from flops_fit_ray.analysis._surface_design import surface_design
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis._valley_design import valley_design
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.surface import fit_surface
from flops_fit_ray.fit_options import MethodName

LEAST_ERROR = 0.01  # of ln N_opt, so that two that hit by chance share
HIDDEN = 1e9  # variance of a run that a law does not read

Places = tuple[Floats, Floats, Floats]  # C, N and D of candidates


def linear_laws(
    fit: SweepFit, target: float, places: Places, there: int | None = None, unread: Floats | None = None
) -> dict[MethodName, WeighedLaw]:
    """Return the laws by method, the answer first, each with half of today's interval of ln N_opt; all weigh 1.

    Args:
        places: C, N and D of the candidates, (candidates,) each.
        there: number of the first candidate that is a run which is there, in a valley without a minimum.
        unread: 1 for candidates that the valleys' fit would not read, (candidates,).
    """
    budgets, params, tokens = places
    found: dict[MethodName, WeighedLaw] = {}
    for name in _names(fit):
        law_now = fit.methods[name].params_opt
        factor = None if law_now is None else law_now.known_within(target, fit.options.confidence)
        if factor is None or not factor > 1 or not math.isfinite(factor):
            continue
        hidden = np.zeros(len(params), dtype=bool)
        if name == "valley":
            law = valley_design(fit, target, budgets, params)
            hidden |= False if unread is None else unread > 0
        else:
            law = surface_design(fit, name, target, budgets, params, tokens)
            hidden[there:] = there is not None  # a surface has read them
        if law is not None:
            law.candidates[hidden] = 0.0
            law.candidate_noise[hidden], law.candidate_bias[hidden] = HIDDEN, 0.0
            law.informs[hidden] = 0.0
            found[name] = WeighedLaw(law=law, weight=1.0, now=math.log(factor), floor=rate_floor(fit, target, name))
    return found


def weighed_laws(
    fit: SweepFit, target: float, places: Places, there: int, unread: Floats
) -> dict[MethodName, WeighedLaw]:
    """Return the laws of `linear_laws`, with their weights."""
    found = linear_laws(fit, target, places, there, unread)
    errors = _errors(fit, list(found))
    shares = {name: 1 / (errors.get(name, LEAST_ERROR) + LEAST_ERROR**2) for name in found}
    total = sum(shares.values())
    return {
        name: replace(one, weight=0.5 * (name == fit.default) + 0.5 * shares[name] / total)
        for name, one in found.items()
    }


def _names(fit: SweepFit) -> Iterator[MethodName]:
    """Yield the answer, then valleys and surfaces that no test of lack of fit refuses."""
    refused = {test.method for test in fit.lack_of_fit if test.verdict == "does_not_fit"}
    yield fit.default
    if fit.default != "valley" and fit.points.labelled and "valley" not in refused:
        yield "valley"
    for name in ("surface_huber", "surface_coupled"):
        method = fit.methods.get(name)
        usable = method is not None and method.surface is not None and method.status == "converged"
        if usable and name not in refused and name != fit.default:
            yield name


def _errors(fit: SweepFit, names: list[MethodName]) -> dict[MethodName, float]:
    """Mean squared error of ln N_opt of held-out larger budgets, by method; empty where none can be held out."""
    minima = hold_outs(fit)
    if not minima:
        return {}
    found: dict[MethodName, float] = {}
    known = sorted(v.budget for v, _ in fit.optima)
    for name in names:
        if name == "valley":
            off = [math.log(one.predicted / one.observed) for one in minima]
        else:
            off = list(_surface_errors(fit, name, known))
        if off:
            found[name] = float(np.mean(np.square(off)))
    worst = max(found.values(), default=LEAST_ERROR)
    return {name: found.get(name, worst) for name in names}


def _surface_errors(fit: SweepFit, name: MethodName, known: list[float]) -> Iterator[float]:
    """Yield ln N_opt predicted by the surface through the lower budgets less that observed, as hold-outs of valleys."""
    points, options = fit.points_of(name), fit.options.surface(name)
    observed = {v.budget: v for v, _ in fit.optima}
    for cut in range(MIN_FITTED, len(known)):
        below = fit_surface(points.pick(points.budget <= known[cut - 1]), options)
        if below.usable and below.surface is not None and below.cost is not None:
            for budget in known[cut:]:
                predicted = float(below.surface.optimum(observed[budget].flops, below.cost)[0][0])
                yield predicted - math.log(observed[budget].params_opt)
