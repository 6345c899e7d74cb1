"""Diagnostics of a fit: budgets without an optimum, narrow ranges, unordered minima, lost draws, extrapolation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._distance import Distance
from flops_fit_ray.analysis._law import MIN_DRAWS
from flops_fit_ray.analysis._methods import METHODS, Method
from flops_fit_ray.analysis._valley_minima import Minima, interior
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.noise import Noise
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.valley import Valley
from flops_fit_ray.fit_options import MethodName
from flops_fit_ray.flags import Flag, Severity

TRUSTED_RANGE = 32.0  # largest over smallest budget from which an exponent is trusted
ROUNDING = 0.98  # of that range, as budgets of whole batches may come to
TRUSTED_BUDGETS = 4
WARN_EXTRAPOLATION = 10.0
FAR_RATIO = 2.0  # times the D/N of all runs, from which a caveat is due
HEADLINE_EXTRAPOLATION = 100.0
LOST_DRAWS_WARNING = 0.05
CLEAR_SHIFT = 1.96  # standard errors by which N_opt must fall with C to be called unordered: 95 % of a normal
COST_SCATTER_WARNING = 0.05  # standard deviation of ln C about ln(k·N^c·D)


def diagnose(
    points: Points,
    valleys: Sequence[Valley],
    minima: Minima | None,
    noise: Noise | None,
    methods: Mapping[MethodName, Method],
    default: MethodName,
) -> Iterator[Flag]:
    """Yield every warning about a fit, its budgets and its methods."""
    yield from _lost_budgets(points, valleys, "warning" if default == "valley" else "info")
    if default == "valley":
        yield from _diagnose_valleys(valleys, minima, noise)
    yield from _diagnose_methods(methods, default)
    surface = methods["surface_huber"].surface
    if surface is not None and surface.cost is not None and surface.cost.scatter > COST_SCATTER_WARNING:
        yield Flag(
            "cost_law",
            "warning",
            f"C deviates from k·N^c·D by {100 * surface.cost.scatter:.2g} %, and the surfaces' N_opt and D_opt rest on "
            "it: check how the FLOPs were counted",
        )
    if points.run is not None and points.num_runs < len(points):
        yield Flag(
            "checkpoints",
            "info",
            f"{len(points)} losses come from {points.num_runs} runs: the bootstrap takes those of a run as correlated",
        )


def _lost_budgets(points: Points, valleys: Sequence[Valley], severity: Severity) -> Iterator[Flag]:
    for valley in valleys:
        if valley.status != "interior" and (points.labelled or valley.status != "too_few"):
            yield Flag(
                f"valley_{valley.status}",
                severity,
                f"no optimum at C = {fmt.flops(valley.budget)}: {valley.reason}",
            )
    unused = sum(len(v.loss) for v in valleys if v.status == "too_few")
    if unused and not points.labelled:
        yield Flag(
            "no_budget",
            "info",
            f"{unused} of {len(points)} points are near no budget and not used by the valleys; a column that labels "
            "the budgets would keep them",
        )


def _diagnose_methods(methods: Mapping[MethodName, Method], default: MethodName) -> Iterator[Flag]:
    for name in METHODS:
        method = methods.get(name)
        if method is None:
            continue
        severity: Severity = "warning" if name == default else "info"
        unasked = method.status == "same_as_additive" and name != default
        if method.reason and name != "valley" and not unasked:
            yield Flag(f"{name}_{method.status}", severity, f"{method.label}: {method.reason}")
        if method.lost_draws > LOST_DRAWS_WARNING * max(method.draws, 1):
            too_many = method.lost_draws > (1 - MIN_DRAWS) * method.draws
            effect = "there is no interval" if too_many else "the intervals are too narrow"
            message = f"{method.label}: {method.lost_draws} of {method.draws} bootstrap draws gave no optimum: {effect}"
            yield Flag("lost_draws", severity, message)
        if method.loss_opt is not None and method.loss_opt.exponent > 0:
            message = f"{method.label}: the fitted loss rises with C; look for bad runs at the largest budgets"
            yield Flag("loss_rises", "severe" if severity == "warning" else severity, message)


def _diagnose_valleys(valleys: Sequence[Valley], minima: Minima | None, noise: Noise | None) -> Iterator[Flag]:
    used = interior(valleys)
    fitted = [valleys[i].flops for i in used]
    if len(fitted) >= 2:
        yield from range_warning(max(fitted) / min(fitted), len(fitted))
        if _unordered(valleys, used, minima):
            message = (
                "N_opt falls from one budget to the next larger one: the noise is as large as the effect, or a run is "
                "bad; add seeds or sizes"
            )
            yield Flag("unordered_minima", "warning", message)
    if noise is None and valleys:
        message = (
            "no intervals: every curve passes through all of its points, so the noise cannot be estimated; add sizes "
            "or seeds"
        )
        yield Flag("no_intervals", "warning", message)


def _unordered(valleys: Sequence[Valley], used: Sequence[int], minima: Minima | None) -> bool:
    """Return True if a larger budget has a significantly smaller N_opt, by the bootstrap draws where there are any."""
    for i, j in itertools.pairwise(used):
        fall: Floats | float = np.log10(valleys[i].params_opt) - np.log10(valleys[j].params_opt)
        if fall <= 0:
            continue
        if minima is None:
            return True
        spread = float(np.nanstd(minima.log10_params[:, i] - minima.log10_params[:, j]))
        if fall > CLEAR_SHIFT * spread or spread == 0:
            return True
    return False


def range_warning(span: float, count: int) -> Iterator[Flag]:
    """Warn if the budgets are too few or span too small a range for an exponent."""
    if span < ROUNDING * TRUSTED_RANGE or count < TRUSTED_BUDGETS:
        yield Flag(
            "narrow_range",
            "warning",
            f"an exponent from {fmt.counted(count, 'budget')} over a range of {span:.3g}x is not trustworthy: "
            f"use at least {TRUSTED_BUDGETS} over {TRUSTED_RANGE:g}x",
        )


def ratio_warning(ratio: Distance) -> Iterator[Flag]:
    """Warn of a D/N far above that of all runs."""
    if ratio.larger and ratio.factor > FAR_RATIO:
        yield Flag(
            "tokens_per_param",
            "warning",
            f"{ratio.words}: surfaces fitted to smaller D/N overstate what more tokens give there (Sardana et al. "
            "2024); add runs of small models on many tokens",
        )


def extrapolation_warning(*distances: Distance) -> Iterator[Flag]:
    """Warn of a prediction far beyond the runs, by the largest of its distances; of equal ones by the first."""
    farthest = max(distances, key=lambda distance: distance.factor)
    factor, side = farthest.factor, "larger" if farthest.larger else "smaller"
    where = "" if farthest.quantity == "C" else f"{farthest.words}; "
    remedies = {"N": f"{side} sizes", "D/U": "runs of more epochs", "D/N": f"runs of {side} D/N"}
    remedy = remedies.get(farthest.quantity, f"a {side} budget")
    if factor > HEADLINE_EXTRAPOLATION:
        message = (
            f"EXTRAPOLATION BY {factor:.3g}x: {where}the interval does not cover a change of the law on the way; "
            f"add {remedy}"
        )
        yield Flag("extrapolation", "severe", message)
    elif factor > WARN_EXTRAPOLATION:
        message = (
            f"extrapolation by {factor:.3g}x: {where}so far out the interval rests more on how much a power law "
            "usually bends than on these budgets"
        )
        yield Flag("extrapolation", "warning", message)
