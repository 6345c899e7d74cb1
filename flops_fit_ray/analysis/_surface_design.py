"""A surface as a linear model of ln L: its parameters, and a shift and a tilt of each budget.

    ln L = ln surface(N, D; theta) + shift_b + tilt_b·(ln N - mean_b) + noise

The minimum of the surface at the target is linear in theta nearby. Shifts and tilts have the prior that the runs left
possible (`block_effects`): the worse the form fits, the less a further run at an old budget tells, and the less one far
from the middle of its budget.
"""

from __future__ import annotations

import numpy as np

from flops_fit_ray.analysis._design import LinearLaw, coarse_cells
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.arrays import Floats, Ints
from flops_fit_ray.analysis.points import Points, blocks_by_budget
from flops_fit_ray.analysis.surface import (
    CASE_RUNS,
    STEP,
    block_effects,
    left_over,
    linearised,
    moved_surfaces,
    root_weights,
)
from flops_fit_ray.fit_options import MethodName

VAGUE = 10.0  # standard deviation of a parameter that no run has told yet; all are exponents or logarithms
LEAST_EFFECT = 1e-7  # of shifts and tilts


def surface_design(
    fit: SweepFit, name: MethodName, target: float, budgets: Floats, params: Floats, tokens: Floats
) -> LinearLaw | None:
    """Return the law of N_opt by a surface, in ln N at C = `target`, with candidates (C, N, D); None without a surface.

    Args:
        budgets: C of the candidates (candidates,); those at a budget of the sweep have its nominal C exactly.
        params: N of them.
        tokens: D of them.
    """
    found, points, options = fit.methods[name].surface, fit.points_of(name), fit.options.surface(name)
    if found is None or not found.usable or found.surface is None or found.cost is None:
        return None
    surface = found.surface
    # 1) derivatives of ln L: of the runs that are there, and of candidates, whose losses are those of the surface
    residuals, derivatives = linearised(surface, points, options)
    there = Points(budget=budgets, flops=budgets, params=params, tokens=tokens, loss=surface.loss(params, tokens))
    _, further = linearised(surface, there, options)
    # 2) that of ln N_opt at the target
    at = surface.optimum(target, found.cost)[0]
    wanted = np.concatenate([(m.optimum(target, found.cost)[0] - at) / STEP for m in moved_surfaces(surface, options)])
    # 3) shifts and tilts of the budgets, as far as the bootstrap has them
    effects = None
    if points.labelled or points.num_runs < CASE_RUNS:
        effects = block_effects(surface, points, options)
    free = derivatives.shape[1]
    df = float(max(points.num_runs - free, 1))
    p, s, t = np.ones(1), np.zeros(1), np.zeros(1)
    noise = left_over(derivatives, residuals)[0] / df
    if effects is not None:
        p, s, t = coarse_cells(effects.probability, effects.shifts, effects.tilts)
        noise = effects.noise
    block, others = _blocks(points, budgets)
    count = int(max(block.max(), others.max())) + 1
    middle = _middles(block, others, np.log(points.params), np.log(params), count)
    prior = np.full((len(p), free + 2 * count), VAGUE**-2)
    prior[:, free : free + count] = 1 / (s + LEAST_EFFECT**2)[:, None]
    prior[:, free + count :] = 1 / (t + LEAST_EFFECT**2)[:, None]
    root = root_weights(points)
    return LinearLaw(
        probability=p,
        prior=prior,
        wanted=np.concatenate([wanted, np.zeros(2 * count)]),
        runs=np.hstack([derivatives, root[:, None] * _columns(block, np.log(points.params), middle)]),
        noise=np.full(len(points), noise),
        bias=np.zeros(len(points)),
        candidates=np.hstack([further, _columns(others, np.log(params), middle)]),
        candidate_noise=np.full(len(params), noise),
        candidate_bias=np.zeros(len(params)),
        skew=0.0,
        df=df,
        informs=np.ones(len(params)),
        confidence=fit.options.confidence,
    )


def _blocks(points: Points, budgets: Floats) -> tuple[Ints, Ints]:
    """Blocks of the runs, and of candidates: that of their budget, else one of their own (by nearness of C without)."""
    block = blocks_by_budget(points)
    if not points.labelled:
        nearest = np.abs(np.log(points.flops)[None, :] - np.log(budgets)[:, None]).argmin(axis=1)
        return block, block[nearest]
    index = {float(c): i for i, c in enumerate([*np.unique(points.budget), *np.setdiff1d(budgets, points.budget)])}
    return block, np.array([index[float(c)] for c in budgets], dtype=np.int64)


def _middles(block: Ints, others: Ints, log_n: Floats, candidates: Floats, count: int) -> Floats:
    """Mean ln N (count,) of the runs of each block; of a block without any, of its candidates."""
    found = np.empty(count)
    for b in range(count):
        inside = block == b
        found[b] = (
            log_n[inside].mean() if inside.any() else candidates[others == b].mean() if (others == b).any() else 0
        )
    return found


def _columns(block: Ints, log_n: Floats, middle: Floats) -> Floats:
    """A shift and a tilt of each block, (points, 2·blocks)."""
    inside = (block[:, None] == np.arange(len(middle))).astype(np.float64)
    return np.hstack([inside, inside * (log_n[:, None] - middle)])
