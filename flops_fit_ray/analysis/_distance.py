"""Distances of a prediction from the runs: how many times C, N or D lies beyond all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flops_fit_ray.analysis.points import Points

Quantity = Literal["C", "N", "D", "D/N", "D/U", "time"]


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Factor by which one quantity lies beyond the nearest run; 1 inside their range."""

    quantity: Quantity
    factor: float
    larger: bool  # than all runs, else smaller

    @property
    def words(self) -> str:
        """The distance in words, such as: N is 30x larger than any run."""
        return f"{self.quantity} is {self.factor:.3g}x {'larger' if self.larger else 'smaller'} than any run"


def distance(quantity: Quantity, value: float, low: float, high: float) -> Distance:
    """Return how far `value` lies beyond the range from `low` to `high`."""
    return Distance(quantity=quantity, factor=max(value / high, low / value, 1.0), larger=value >= high)


def distances(points: Points, params: float, tokens: float) -> tuple[Distance, Distance]:
    """Return how far N and D lie beyond those that were run."""
    n, d = points.params, points.tokens
    return (
        distance("N", params, float(n.min()), float(n.max())),
        distance("D", tokens, float(d.min()), float(d.max())),
    )


def ratio_distance(points: Points, ratio: float) -> Distance:
    """Return how far D/N lies beyond the ratios that were run."""
    ratios = points.tokens / points.params
    return distance("D/N", ratio, float(ratios.min()), float(ratios.max()))


def beyond_words(params: float, tokens: float) -> str:
    """Return the factors of N and D that are above 1, such as: N 30x, D 4x beyond any run; else nothing."""
    shown = [f"{name} {factor:.3g}x" for name, factor in (("N", params), ("D", tokens)) if f"{factor:.3g}" != "1"]
    return f"{', '.join(shown)} beyond any run" if shown else ""
