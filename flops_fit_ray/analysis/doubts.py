"""What speaks against a fit: lost budgets, narrow ranges, minima that move back, draws that were lost, far answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.flags import Flag, Severity
from flops_fit_ray.analysis.law import MIN_DRAWS
from flops_fit_ray.analysis.methods import METHODS, Method, MethodName, Minima, interior
from flops_fit_ray.analysis.noise import Noise
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.valley import Valley

TRUSTED_RANGE = 32.0  # largest over smallest budget, from which an exponent can be trusted
TRUSTED_BUDGETS = 4
WARN_EXTRAPOLATION = 10.0
HEADLINE_EXTRAPOLATION = 100.0
LOST_DRAWS_WARNING = 0.05
CLEAR_SHIFT = 1.96  # standard errors by which minima must move against C to be called unordered
COST_SCATTER_WARNING = 0.05  # of ln C about k·N^c·D


def doubts(
    points: Points,
    valleys: Sequence[Valley],
    minima: Minima | None,
    noise: Noise | None,
    methods: Mapping[MethodName, Method],
    default: MethodName,
) -> Iterator[Flag]:
    """Everything that speaks against a fit, its budgets and its methods."""
    yield from _lost_budgets(points, valleys, "warning" if default == "valley" else "info")
    if default == "valley":
        yield from _valley_doubts(valleys, minima, noise)
    yield from _method_doubts(methods, default)
    surface = methods["surface_huber"].surface
    if surface is not None and surface.cost is not None and surface.cost.scatter > COST_SCATTER_WARNING:
        yield Flag(
            "cost_law",
            "warning",
            f"C is not k·N^c·D: {100 * surface.cost.scatter:.2g} % scatter; N_opt and D_opt of the surfaces rest on it",
        )
    if points.run is not None and points.num_runs < len(points):
        yield Flag(
            "checkpoints",
            "info",
            f"{len(points)} losses come from {points.num_runs} runs: the bootstrap keeps those of a run together",
        )


def _lost_budgets(points: Points, valleys: Sequence[Valley], severity: Severity) -> Iterator[Flag]:
    for valley in valleys:
        if valley.status != "interior" and (points.labelled or valley.status != "too_few"):
            yield Flag(
                f"valley_{valley.status}",
                severity,
                f"no optimum at C = {fmt.flops(valley.budget)}: {valley.reason}",
            )
    alone = sum(len(v.loss) for v in valleys if v.status == "too_few")
    if alone and not points.labelled:
        yield Flag(
            "no_budget", "info", f"{alone} of {len(points)} points lie near no budget: the valleys leave them out"
        )


def _method_doubts(methods: Mapping[MethodName, Method], default: MethodName) -> Iterator[Flag]:
    for name in METHODS:
        method = methods.get(name)
        if method is None:
            continue
        loud: Severity = "warning" if name == default else "info"
        if method.reason and name != "valley":
            yield Flag(f"{name}_{method.status}", loud, f"{method.words}: {method.reason}")
        if method.lost_draws > LOST_DRAWS_WARNING * max(method.draws, 1):
            most = method.lost_draws > (1 - MIN_DRAWS) * method.draws
            what = "there is no interval" if most else "the intervals are too narrow"
            words = f"{method.words}: {method.lost_draws} of {method.draws} bootstrap draws gave no optimum: {what}"
            yield Flag("lost_draws", loud, words)
        if method.loss_opt is not None and method.loss_opt.exponent > 0:
            yield Flag("loss_rises", "severe" if loud == "warning" else loud, f"{method.words}: the loss rises with C")


def _valley_doubts(valleys: Sequence[Valley], minima: Minima | None, noise: Noise | None) -> Iterator[Flag]:
    used = interior(valleys)
    fitted = [valleys[i].flops for i in used]
    if len(fitted) >= 2:
        yield from range_warning(max(fitted) / min(fitted), len(fitted))
        if _moves_back(valleys, used, minima):
            words = "the minima do not move right with C: the noise is as large as the effect, or a run is bad"
            yield Flag("unordered_minima", "warning", words)
    if noise is None and valleys:
        words = (
            "no intervals: every curve goes through all of its points and leaves no scatter to see; add sizes or seeds"
        )
        yield Flag("no_intervals", "warning", words)


def _moves_back(valleys: Sequence[Valley], used: Sequence[int], minima: Minima | None) -> bool:
    """Whether a larger budget has a clearly smaller N_opt; clearly by the draws, where there are any."""
    for i, j in itertools.pairwise(used):
        back: Floats | float = np.log10(valleys[i].params_opt) - np.log10(valleys[j].params_opt)
        if back <= 0:
            continue
        if minima is None:
            return True
        spread = float(np.nanstd(minima.log10_params[:, i] - minima.log10_params[:, j]))
        if back > CLEAR_SHIFT * spread or spread == 0:
            return True
    return False


def range_warning(span: float, count: int) -> Iterator[Flag]:
    """What to say where the budgets lie too close together for an exponent."""
    if span < TRUSTED_RANGE or count < TRUSTED_BUDGETS:
        yield Flag(
            "narrow_range",
            "warning",
            f"an exponent from {count} budgets over a range of {span:.3g}x is not trustworthy: at least "
            f"{TRUSTED_BUDGETS} over {TRUSTED_RANGE:g}x are needed",
        )


def extrapolation_warning(factor: float) -> Iterator[Flag]:
    """What to say of an answer so far beyond the data."""
    if factor > HEADLINE_EXTRAPOLATION:
        words = f"EXTRAPOLATION BY {factor:.3g}x: the interval does not cover what may change on the way"
        yield Flag("extrapolation", "severe", words)
    elif factor > WARN_EXTRAPOLATION:
        words = f"extrapolation by {factor:.3g}x: the interval assumes that the straight line goes on"
        yield Flag("extrapolation", "warning", words)
