"""Space of the runs that are possible, and their prices; of a table any size at any budget, each from scratch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.surface import fit_token_cost

REACH, STEP = 8.0, math.sqrt(2)  # sizes about a minimum: how far, and their ratio
SAME = 1.1  # ratio of N within which sizes are one
WIDER = 4.0  # how far runs of a table may lie beyond those that are there, in N


@dataclass(frozen=True, kw_only=True)
class Place:
    """One run that can be trained."""

    budget: float  # C; that of a budget of the sweep exactly where it belongs to one
    params: float
    tokens: float
    size: int | str | None = None  # of the model; None where only N is known


class RunSpace(Protocol):
    """Possible runs and their prices."""

    @property
    def spent(self) -> float:
        """FLOPs that the runs so far executed."""
        ...

    def places(self, budget: float, around: float) -> list[Place]:
        """Return the runs that are possible at C = `budget`, about N = `around`."""
        ...

    def prices(self, places: Sequence[Place]) -> list[float]:
        """Return the FLOPs that each of these runs executes if they run in this order."""
        ...


class TableSpace:
    """Any size at any budget, each from scratch: all that is known of a table of runs."""

    def __init__(self, fit: SweepFit) -> None:
        points = self._points = fit.points
        self.spent = float(points.flops.sum())
        self._cost = fit_token_cost(points.params, points.tokens, points.flops, points.token_cost)
        self._low, self._high = float(points.params.min()) / WIDER, float(points.params.max()) * WIDER

    def places(self, budget: float, around: float) -> list[Place]:
        """Return the sizes that were run, and between and about them those of a geometric ladder."""
        points = self._points
        there = np.unique(points.params[points.budget == budget])
        others = np.unique(points.params[points.budget != budget]) if points.labelled else np.empty(0)
        reach = round(math.log(REACH) / math.log(STEP))
        ladder = around * STEP ** np.arange(-reach, reach + 1)
        chosen: list[float] = []
        for n in [*there, *others, *ladder]:  # of near ones the first
            inside = max(self._low, around / REACH) <= n <= min(self._high, around * REACH)
            if inside and all(max(n / m, m / n) > SAME for m in chosen):
                chosen.append(float(n) if n in there or n in others else float(f"{n:.3g}"))
        return [Place(budget=budget, params=n, tokens=self._tokens(budget, n)) for n in chosen]

    def prices(self, places: Sequence[Place]) -> list[float]:
        """C of each."""
        return [place.budget for place in places]

    def _tokens(self, budget: float, params: float) -> float:
        points = self._points
        same = (points.budget == budget) & (points.params == params)
        if same.any():
            return float(points.tokens[same].mean())
        return budget / math.exp(float(self._cost.per_token(np.array([math.log(params)]))[0][0]))
