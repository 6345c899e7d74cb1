"""The run that would decide between two recipes: the cheapest that would, or what narrows ln s most per FLOP."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._matched_budgets import MatchedBudgets
from flops_fit_ray.analysis._straight import Straight
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.points import NEARNESS

MOST_RUNS = 100  # of one kind, up to which is counted how many decide
WORTH = 1 / 3  # of the largest gain, below which a run is not named however cheap it is
SIZES = 5  # of a new valley
KNOWN = 1e-3  # of ln s, within which nothing more is worth a run

Recipe = Literal["first", "second", "both"]


@dataclass(frozen=True, kw_only=True)
class DecidingRun:
    """One more seed of one recipe or of both at the optimum of a budget that both ran, or a new budget of both."""

    recipe: Recipe
    budget: float  # C
    params: float | None  # N at the optimum there; None: a valley of `SIZES` sizes at a new budget
    flops: float  # of one such run, of both recipes where it is both, or of the new valleys
    half_width: float  # of ln s at the compared C as it is
    half_width_after: float  # with one such run
    runs_to_decide: int | None  # so many of them leave 1 outside of the interval if the factor stays; None: over 100

    @property
    def words(self) -> str:
        """The run in one sentence."""
        who = {"first": "the first recipe", "second": "the second recipe", "both": "both recipes, of one seed,"}
        what = f"one more of {who[self.recipe]} at C = {fmt.flops(self.budget)}"
        if self.params is None:
            what = f"a budget of C = {fmt.flops(self.budget)} with {SIZES} sizes of both recipes"
        size = "" if self.params is None else f", N = {fmt.count(self.params)}"
        many = "so near to 1 no number up to 100 of them would decide it"
        if self.runs_to_decide is not None:
            many = f"{self.runs_to_decide} of these would decide it, if the factor stays"
        return (
            f"which run would decide it: {what}{size} ({fmt.flops(self.flops)} FLOPs) narrows ln s from "
            f"+-{self.half_width:.3g} to +-{self.half_width_after:.3g}; {many}"
        )


@dataclass(frozen=True)
class _Kind:
    """A kind of run, and the FLOPs of one."""

    recipe: Recipe
    index: int | None  # of the budget; None: a new one at the compared C
    flops: float


def deciding_run(
    matched: MatchedBudgets,
    line: Straight,
    place: tuple[float, float],
    log_factor: float,
    slopes: tuple[Floats, float],
    confidence: float,
) -> DecidingRun | None:
    """Return the cheapest runs of one kind that would decide, else those that narrow ln s most per FLOP.

    None where the line is known well enough, and other answers leave it open.

    Args:
        line: through ln s over the matched budgets.
        place: the compared C, and its place on the line.
        slopes: d ln s / d L at each budget (budgets,), and at the compared C.
        confidence: of the interval.
    """
    budget, x = place
    now = _half_width(line, x, confidence)
    if not (
        math.isfinite(now) and now > max(abs(log_factor), KNOWN)
    ):  # what is open then is how ln s goes on, which no seed tells
        return None

    def after(kind: _Kind, count: int) -> float:
        if kind.index is not None:
            noise = _noise(matched, kind.recipe, kind.index, count, slopes[0])
            return _half_width(replace(line, noise=noise), x, confidence)
        new = float(np.median(matched.variance)) * slopes[1] ** 2 / count
        return _half_width(replace(line, x=np.append(line.x, x), noise=np.append(line.noise, new)), x, confidence)

    gains = {kind: now - after(kind, 1) for kind in _kinds(matched, budget)}
    best = max(gains.values())
    if best <= 0:
        return None
    counts = {
        kind: next((n for n in range(1, MOST_RUNS + 1) if after(kind, n) < abs(log_factor)), None) for kind in gains
    }
    decided = {kind: count * kind.flops for kind, count in counts.items() if count is not None}
    kind = (
        min(decided, key=lambda one: decided[one])
        if decided
        else max((one for one, gain in gains.items() if gain >= WORTH * best), key=lambda one: gains[one] / one.flops)
    )
    at = budget if kind.index is None else float(matched.flops[0][kind.index])
    params = None if kind.index is None else float(matched.params[1 if kind.recipe == "second" else 0][kind.index])
    return DecidingRun(recipe=kind.recipe, budget=at, params=params, flops=kind.flops, half_width=now,
                       half_width_after=now - gains[kind], runs_to_decide=counts[kind])  # fmt: skip


def _kinds(matched: MatchedBudgets, budget: float) -> Iterator[_Kind]:
    """Yield one more seed at each budget, of both where runs are pairs; and a new budget where C lies beyond all."""
    recipes: Sequence[Recipe] = ("both",) if matched.paired else ("first", "second")
    for i in range(len(matched.variance)):
        costs = {"first": matched.flops[0][i], "second": matched.flops[1][i]}
        for recipe in recipes:
            yield _Kind(recipe, i, float(sum(costs.values()) if recipe == "both" else costs[recipe]))
    if budget > NEARNESS * float(max(c.max() for c in matched.flops)):
        yield _Kind("both", None, 2 * SIZES * budget)


def _noise(matched: MatchedBudgets, recipe: Recipe, i: int, count: int, slope: Floats) -> Floats:
    """Return the variances of ln s (budgets,) with `count` more runs of one kind.

    A run at the optimum measures the loss there with the variance of a run: precisions add. A pair of runs measures
    the difference, with what pairs have left of the variance of both.
    """
    variance = matched.variance.copy()
    if recipe == "both":
        variance[i] = 1 / (1 / variance[i] + count / (matched.ratio * sum(matched.run)))
    else:
        k = 0 if recipe == "first" else 1
        own = matched.own[k][i]
        variance[i] -= own - 1 / (1 / own + count / matched.run[k])
    return np.maximum(variance * slope**2, 1e-18)


def _half_width(line: Straight, x: float, confidence: float) -> float:
    from scipy.special import stdtrit

    _, sd, df = line.at(x)
    return float(sd * stdtrit(df, (1 + confidence) / 2))
