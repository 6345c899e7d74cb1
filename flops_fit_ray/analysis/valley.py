"""One budget's loss curve: a parabola in log size (Hoffmann et al. 2022, section 3.2), and whether it has a minimum.

A vertex outside the measured sizes is no optimum. It is named, and never used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flops_fit_ray.errors import FitError

Floats: TypeAlias = NDArray[np.float64]
ValleyStatus = Literal["interior", "edge", "concave", "too_few"]

MIN_POINTS = 3  # a parabola has three coefficients


@dataclass(frozen=True, kw_only=True, eq=False)
class Parabola:
    """loss = a·(x - centre)² + b·(x - centre) + c with x = log10 of N or D.

    `solver` maps losses to (a, b, c); it is kept because the bootstrap applies it to many losses at once.
    """

    centre: float
    coefficients: Floats  # (3,)
    solver: Floats  # (3, points)
    residuals: Floats  # (points,)
    x_range: tuple[float, float]

    @property
    def vertex(self) -> float:
        """log10 of the size at the minimum. Meaningless unless `coefficients[0]` is positive."""
        a, b, _ = self.coefficients
        return float(self.centre - b / (2 * a))

    @property
    def minimum(self) -> float:
        """The loss at the vertex: c - b² / 4a."""
        a, b, c = self.coefficients
        return float(c - b * b / (4 * a))

    def at(self, x: Floats) -> Floats:
        """The curve's loss at x = log10 of N or D."""
        return np.asarray(np.polyval(self.coefficients, x - self.centre), dtype=np.float64)


def fit_parabola(size: Floats, loss: Floats) -> Parabola:
    """Least squares of loss over log10 size; sizes (points,), losses (points,).

    Raises:
        FitError: fewer than three distinct sizes.
    """
    if len(np.unique(size)) < MIN_POINTS:
        raise FitError(f"a parabola needs {MIN_POINTS} distinct sizes, and there are {len(np.unique(size))}")
    x = np.log10(size)
    centre = float(x.mean())
    design = np.vander(x - centre, 3)
    solver = np.asarray(np.linalg.pinv(design), dtype=np.float64)
    coefficients = solver @ loss
    return Parabola(
        centre=centre,
        coefficients=coefficients,
        solver=solver,
        residuals=loss - design @ coefficients,
        x_range=(float(x.min()), float(x.max())),
    )


def status_of(parabola: Parabola) -> ValleyStatus:
    """Whether the curve has a minimum between the smallest and the largest size that were measured."""
    if not parabola.coefficients[0] > 0:
        return "concave"
    low, high = parabola.x_range
    return "interior" if low < parabola.vertex < high else "edge"


@dataclass(frozen=True, kw_only=True, eq=False)
class Valley:
    """One budget: the points, the curves over N and D, and the verdict."""

    budget: float  # C asked for
    flops: float  # mean of what was really spent; this is the C that laws are fitted to
    params: Floats  # N of the points, increasing
    tokens: Floats  # D of the points
    loss: Floats
    status: ValleyStatus
    reason: str  # why there is no optimum, and the way out; empty for an interior minimum
    over_params: Parabola | None
    over_tokens: Parabola | None  # fitted apart: C = 6·N·D is not taken for granted

    @property
    def params_opt(self) -> float:
        """N at the minimum."""
        return float(10 ** self._curve(self.over_params).vertex)

    @property
    def tokens_opt(self) -> float:
        """D at the minimum."""
        return float(10 ** self._curve(self.over_tokens).vertex)

    @property
    def loss_opt(self) -> float:
        """Loss at the minimum over N."""
        return self._curve(self.over_params).minimum

    def _curve(self, parabola: Parabola | None) -> Parabola:
        if self.status != "interior" or parabola is None:
            raise FitError(f"budget {self.budget:g} has no optimum: {self.reason}")
        return parabola


def fit_valley(budget: float, flops: Floats, params: Floats, tokens: Floats, loss: Floats) -> Valley:
    """The valley of one budget. It always returns: what is missing is in `status` and `reason`."""
    order = np.argsort(params, kind="stable")
    flops, params, tokens, loss = flops[order], params[order], tokens[order], loss[order]
    over_params = over_tokens = None
    status: ValleyStatus
    if min(len(np.unique(params)), len(np.unique(tokens))) < MIN_POINTS:
        status, reason = "too_few", f"{len(params)} finished size(s), and a valley needs at least {MIN_POINTS}"
    else:
        over_params, over_tokens = fit_parabola(params, loss), fit_parabola(tokens, loss)
        status = status_of(over_params)
        if status == "interior" and status_of(over_tokens) != "interior":
            status = "edge"
        reason = _reason(status, over_params, params, int(np.argmin(loss)))
    return Valley(
        budget=budget,
        flops=float(flops.mean()) if len(flops) else budget,
        params=params,
        tokens=tokens,
        loss=loss,
        status=status,
        reason=reason,
        over_params=over_params,
        over_tokens=over_tokens,
    )


def _reason(status: ValleyStatus, parabola: Parabola, params: Floats, lowest: int) -> str:
    if status == "interior":
        return ""
    ends = (0, len(params) - 1)
    if status == "concave" and lowest not in ends:
        return "the losses do not form a valley (the parabola opens downwards): noise, or a bad run among them"
    # A concave curve has no vertex to point at, but its lowest loss is at one end
    larger = lowest == ends[1] if status == "concave" else parabola.vertex > parabola.centre
    side, end = ("larger", params[-1]) if larger else ("smaller", params[0])
    return f"the minimum is not between the sizes that were run; add sizes {side} than N = {end:.3g}"
