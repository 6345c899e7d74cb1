"""The next runs: which of those that could be trained narrow N_opt at a target most for what they cost.

Every law that fits the runs is asked, the answer's with half of the weight and all by how they predict minima that they
have not seen. Arrays in, runs out: what sizes there are, and what they cost, comes in as a `RunSpace`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._design_laws import linear_laws
from flops_fit_ray.analysis._run_choice import LEAST_SIZES, RATIO, NextRuns, RunChoice
from flops_fit_ray.analysis._run_space import SAME, Place, RunSpace, TableSpace
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.prediction import check_budget
from flops_fit_ray.errors import FitError, SpecError
from flops_fit_ray.fit_options import MethodName

BEYOND = 10.0  # times the largest budget: the target where none is given
AT_MOST = 2.0  # times what the runs so far executed, that the next ones may cost where nothing is said


def next_runs(
    fit: SweepFit,
    count: int = 5,
    target: float | None = None,
    *,
    at_most: float | None = None,
    space: RunSpace | None = None,
) -> NextRuns:
    """Choose the `count` runs that narrow the interval of N_opt at C = `target` most for what they cost.

    Args:
        target: FLOPs, beyond the data; None: ten times the largest budget.
        at_most: FLOPs of all of them; None: twice what the runs so far executed.
        space: what can be run; None: any size at any budget, each from scratch.

    Raises:
        SpecError: a number is out of range, or the target lies inside the data.
        FitError: there is no interval to narrow, and which run would give one; or no run is left for `at_most`.
    """
    if count < 1:
        raise SpecError("--next", [f"must be a number of runs, 1 or more (got {count})"])
    if at_most is not None and not (0 < at_most < math.inf):
        raise SpecError("--at-most", [f"must be a positive number of FLOPs (got {at_most:g})"])
    _refuse_without_interval(fit)
    largest = fit.fitted_range[1]
    target = BEYOND * largest if target is None else target
    check_budget(target)
    if target <= largest:
        beyond = f"is not beyond the budgets, which reach {fmt.flops(largest)}: N_opt there is interpolated, and"
        way_out = f"`predict` tells it; give a larger target, e.g. {fmt.flops(BEYOND * largest)}"
        raise SpecError("--target", [f"C = {fmt.flops(target)} {beyond} {way_out}"])
    space = TableSpace(fit) if space is None else space
    return RunChoice(fit, target, space, AT_MOST * space.spent if at_most is None else at_most).runs(count)


def expected_factors(fit: SweepFit, target: float, places: Sequence[Place]) -> dict[MethodName, float]:
    """Return the factor within which N_opt at C = `target` is expected to be known after these runs, by each law.

    The answer's comes first; laws without an interval are left out.
    """
    budgets, params, tokens = (np.array([getattr(p, name) for p in places]) for name in ("budget", "params", "tokens"))
    every = np.arange(len(places))[None, :]
    return {
        name: math.exp(float(law.after(every)[0]))
        for name, law in linear_laws(fit, target, (budgets, params, tokens)).items()
    }


def _refuse_without_interval(fit: SweepFit) -> None:
    """Refuse a fit without an interval of N_opt, with the runs that would give one.

    Raises:
        FitError: there is no law, or no interval.
    """
    law = fit.params_opt
    if law is None:
        others = [name for name, method in fit.methods.items() if method.params_opt is not None]
        way_out = _first_runs(fit) if fit.default == "valley" or not others else f"there is one by --method {others[0]}"
        raise FitError(f"no law of N_opt that runs could narrow: {fit.problem}; {way_out}")
    if not fit.options.draws:
        raise FitError("no interval of N_opt that runs could narrow: draws is 0; set it to 2000")
    if law.interval(fit.fitted_range[1], fit.options.confidence) is None:
        lowest = fit.optima[0][0] if fit.optima else None
        where = "" if lowest is None else f" C = {fmt.flops(lowest.budget)}, N = {fmt.count(lowest.params_opt)}"
        raise FitError(
            "no interval of N_opt that runs could narrow: the noise of the losses is not known, as every curve goes "
            f"through all of its points; run{where or ' one of them'} with two more seeds, or a fourth size"
        )


def _first_runs(fit: SweepFit) -> str:
    """Name the runs that would give a law."""
    found = []
    for v in fit.valleys:
        if v.status == "interior" or not len(v.loss):
            continue
        ran = np.unique(v.params)
        step = max(SAME**2, (ran[-1] / ran[0]) ** (1 / max(len(ran) - 1, 1))) if len(ran) > 1 else 2.0
        lowest = int(np.argmin(v.loss))
        larger = bool(v.params[lowest] > math.sqrt(ran[0] * ran[-1]))
        more = [ran[-1] * step**k for k in (1, 2)] if larger else [ran[0] / step**k for k in (2, 1)]
        if len(ran) < LEAST_SIZES and len(ran) > 0:
            more = [v.params[lowest] / step, v.params[lowest] * step]
        found.append(f"C = {fmt.flops(v.budget)} with N = {' and '.join(fmt.count(n) for n in more)}")
    if found and len(fit.valleys) > 1:
        return f"sizes that may bracket its minima: {'; '.join(found[:3])}"
    top = max(fit.valleys, key=lambda v: v.budget)
    best = float(top.params[int(np.argmin(top.loss))]) if len(top.loss) else 0.0
    more = [best * math.sqrt(RATIO[1]) * factor for factor in (0.5, 1.0, 2.0)]
    sizes = ", ".join(fmt.count(n) for n in more)
    one = f"one more budget gives one: C = {fmt.flops(RATIO[1] * top.flops)} with N = {sizes}"
    return f"{one}, and sizes that may bracket {found[0]}" if found else one
