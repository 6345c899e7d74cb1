"""Budgets that two sweeps have in common: the difference of the losses at their minima, and its errors.

What both valleys share leaves the difference: the shape that the curve misses, what a budget's schedule does to all of
its runs, and, where runs of the same N and D share seeds and data, their noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis._sweep_fit import SweepFit, ValleyFit
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.points import NEARNESS
from flops_fit_ray.analysis.valley import Valley

LEAST = 3  # budgets from which a line through the differences has an error
SAME = 0.01  # relative difference of N and of D up to which two runs are a pair
LEAST_RATIO = 1e-6  # of the variance that pairs have left, also where both files hold the same numbers
MOVED = 0.1  # of ln N_opt, by which the optima of two recipes are told to lie at other places of a valley
MOSTLY = 0.5  # share of the runs that must be pairs


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchedBudgets:
    """Arrays (budgets,) by increasing C, of budgets that have an optimum in both sweeps."""

    flops: tuple[Floats, Floats]  # C of each sweep
    loss: tuple[Floats, Floats]  # at the minima
    variance: Floats  # of the difference of the losses, by the noise of the runs
    own: tuple[Floats, Floats]  # of the loss at each minimum, by the noise of its sweep
    run: tuple[float, float]  # variance of one run's loss in each sweep
    df: float  # degrees of freedom of the noise
    pairs: int  # runs of the first that have one of the same N and D in the second
    paired: bool  # most runs are pairs
    ratio: float  # variance of the difference over that of runs that share nothing
    params: tuple[Floats, Floats]  # N at the minima

    @property
    def alike(self) -> bool:
        """True if the valleys miss their curves by about the same: the same sizes about the same optimum."""
        moved = abs(float(np.log(self.params[1] / self.params[0]).mean()))
        return self.paired and moved < MOVED

    def reach(self, budget: float) -> bool:
        """Return True if C = `budget` lies within the matched budgets."""
        low, high = (float(end(c)) for end, c in ((np.min, self.flops[0]), (np.max, self.flops[0])))
        return low / NEARNESS <= budget <= high * NEARNESS


def matched_budgets(a: SweepFit | ValleyFit, b: SweepFit | ValleyFit) -> MatchedBudgets | None:
    """Match the budgets of two sweeps by C; None where fewer than three have an optimum in both, or no noise is known.

    The variance of a difference is that of both minima, times what pairs of runs have left of it: the variance of the
    differences of their residuals over the sum of the variances of both.
    """
    found = list(_matches(a, b))
    if len(found) < LEAST or any(fit.errors is None or fit.noise is None for fit in (a, b)):
        return None
    errors = [
        np.diag(fit.errors.loss)[list(index)]
        for fit, index in zip((a, b), zip(*found, strict=True), strict=True)
        if fit.errors is not None
    ]
    valleys = [(a.valleys[i], b.valleys[j]) for i, j in found]
    first, second = ([pair[k] for pair in valleys] for k in (0, 1))
    pairs, ratio = _pairing(valleys)
    runs = sum(int(v.used.sum()) for v in first), sum(int(v.used.sum()) for v in second)
    paired = pairs > MOSTLY * max(runs)
    ratio = max(ratio, LEAST_RATIO) if paired else 1.0
    noise = [fit.noise for fit in (a, b) if fit.noise is not None]
    return MatchedBudgets(
        flops=(_of(first, "flops"), _of(second, "flops")),
        loss=(_of(first, "loss_opt"), _of(second, "loss_opt")),
        variance=ratio * (errors[0] + errors[1]),
        own=(errors[0], errors[1]),
        run=(noise[0].pooled ** 2, noise[1].pooled ** 2),
        df=float(max(min(one.pooled_df for one in noise), 1)),
        pairs=pairs,
        paired=paired,
        ratio=ratio,
        params=(_of(first, "params_opt"), _of(second, "params_opt")),
    )


def _of(valleys: Sequence[Valley], name: str) -> Floats:
    return np.array([getattr(valley, name) for valley in valleys], dtype=np.float64)


def _matches(a: SweepFit | ValleyFit, b: SweepFit | ValleyFit) -> Iterator[tuple[int, int]]:
    """Yield the numbers of the valleys of each C that both have, once each."""
    free = {j: v.flops for j, v in enumerate(b.valleys) if v.status == "interior"}
    own = [(i, v.flops) for i, v in enumerate(a.valleys) if v.status == "interior"]
    for i, flops in sorted(own, key=lambda one: one[1]):
        if not free:
            return
        j = min(free, key=lambda k: abs(np.log(free[k] / flops)))
        if abs(np.log(free[j] / flops)) < np.log(NEARNESS) / 2:
            del free[j]
            yield i, j


def _pairing(valleys: Sequence[tuple[Valley, Valley]]) -> tuple[int, float]:
    """Return the number of pairs, and the variance of their residuals' differences over that of unrelated runs."""
    differences: list[float] = []
    squares = [0.0, 0.0]
    for first, second in valleys:
        x, y = first.noise_terms.residuals, second.noise_terms.residuals
        n, m, d, e = (v[u] for v, u in ((first.params, first.used), (second.params, second.used),
                                        (first.tokens, first.used), (second.tokens, second.used)))  # fmt: skip
        free = list(range(len(m)))
        for i in range(len(n)):
            near = [k for k in free if abs(m[k] / n[i] - 1) < SAME and abs(e[k] / d[i] - 1) < SAME]
            if near:
                free.remove(near[0])
                differences.append(float(y[near[0]] - x[i]))
                squares[0] += float(x[i]) ** 2
                squares[1] += float(y[near[0]]) ** 2
    total = sum(squares)
    return len(differences), float(np.square(differences).sum()) / total if total > 0 else 1.0
