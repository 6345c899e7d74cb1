"""Tests of lack of fit: do losses and minima lie off their laws by more than their noise explains?

A law through points that are not of its form has small formal errors and a wrong answer. Each test compares a deviation
with a noise that does not contain it, by F: minima about their law with the noise of their losses; losses about a
budget's curve with seeds; residuals of a surface that go together in a block of budgets with those that do not; and the
losses of the largest C about a surface through the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flops_fit_ray.analysis._methods import Method
from flops_fit_ray.analysis._valley_cost import BentLaw
from flops_fit_ray.analysis._valley_minima import MinimaErrors, interior
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.noise import Noise, SeedNoise
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.random_effects import chi_square
from flops_fit_ray.analysis.surface import (
    MIN_BLOCKS,
    SurfaceFit,
    Surfaces,
    block_columns,
    fit_surface,
    left_over,
    linearised,
    root_weights,
)
from flops_fit_ray.analysis.valley import Valley
from flops_fit_ray.fit_options import SURFACES, FitOptions, MethodName, SurfaceOptions
from flops_fit_ray.flags import Flag

FitVerdict = Literal["fits", "doubtful", "does_not_fit"]
REFUSED, DOUBTED = 0.01, 0.05  # p-values below which a law does not fit, or is doubted
TOP_SHARE = 0.2  # of the points with the largest C, held out where the budgets are not labelled
EXACT = 1e-9  # relative residual below which losses lie on their law exactly


@dataclass(frozen=True, kw_only=True)
class FitTest:
    """One test: the ratio of the mean square that a law should not leave to that of the noise, and its p-value."""

    name: str  # minima, curves, blocks or top
    method: MethodName
    ratio: float
    df: tuple[int, int]
    p: float
    words: str  # what was found, and the way out

    @property
    def verdict(self) -> FitVerdict:
        """Verdict by the p-value."""
        return "does_not_fit" if self.p < REFUSED else "doubtful" if self.p < DOUBTED else "fits"

    def flag(self, default: MethodName) -> Flag:
        """The test as a warning about its method."""
        return Flag("lack_of_fit", "warning" if self.method == default else "info", self.words)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "test": self.name,
            "method": self.method,
            "verdict": self.verdict,
            "ratio": self.ratio,
            "degrees_of_freedom": list(self.df),
            "p": self.p,
            "message": self.words,
        }


def fit_tests(
    points: Points,
    valleys: Sequence[Valley],
    errors: MinimaErrors | None,
    noise: Noise | None,
    seeds: SeedNoise | None,
    methods: Mapping[MethodName, Method],
    default: MethodName,
    top: HeldOutTop | None,
    options: FitOptions,
) -> list[FitTest]:
    """Run every test that the points allow; those of the largest C for the default and the Huber surface alone.

    Args:
        top: the largest C, held out of the Huber surface.
    """
    tests = [*_minima(valleys, errors, noise, methods), *_curves(noise, seeds)]
    for name in SURFACES:
        surface = methods[name].surface if name in methods else None
        if surface is not None and surface.usable:
            tests += _blocks(points, surface, name, options)
            if name == "surface_huber":
                tests += _top(top, name, options)
            elif name == default:
                tests += _top(hold_out_top(points, options.surface(name)), name, options)
    return tests


def _minima(
    valleys: Sequence[Valley],
    errors: MinimaErrors | None,
    noise: Noise | None,
    methods: Mapping[MethodName, Method],
) -> Iterator[FitTest]:
    used = interior(valleys)
    law = methods["valley"].params_opt
    if errors is None or noise is None or law is None or law.effects is None or len(used) < 3:
        return
    x = np.log10([valleys[i].flops for i in used])
    y = np.log10([valleys[i].params_opt for i in used])
    covariance = errors.of(used).log10_params
    if isinstance(law, BentLaw):
        slope = law.correction.slope(y)
        y, covariance = law.correction.straight(y), covariance * np.outer(slope, slope)
    square, df = chi_square(x, y, covariance)
    ratio, degrees = square / df, (df, max(int(noise.df.min()), 1))  # where budgets differ in noise, each is known less
    p = _p_value(ratio, degrees)
    words = (
        f"the minima lie {np.sqrt(ratio):.2g} times as far from the law of N_opt as the noise of their losses explains "
        f"(p = {p:.1g}): the law bends, or budgets differ in more than C; the interval allows for a scatter of "
        f"x/÷{10**law.effects.tau:.3g} between budgets and a bend of {law.effects.bend:+.2g} per decade of C. "
        "Check what differs between budgets (learning rate, steps, data), or add budgets near the target"
    )
    yield FitTest(name="minima", method="valley", ratio=ratio, df=degrees, p=p, words=words)


def _curves(noise: Noise | None, seeds: SeedNoise | None) -> Iterator[FitTest]:
    if noise is None or seeds is None or seeds.sigma == 0:
        return
    degrees = (noise.pooled_df - seeds.df, seeds.df)
    if degrees[0] < 1:
        return
    # What curves leave, less what seeds explain of it
    left = noise.pooled**2 * noise.pooled_df - seeds.sigma**2 * seeds.df
    ratio = max(left, 0.0) / degrees[0] / seeds.sigma**2
    p = _p_value(ratio, degrees)
    words = (
        f"losses lie {noise.pooled:.2g} about their budgets' curves and {seeds.sigma:.2g} between seeds (p = {p:.1g}): "
        "the curves do not follow these valleys; try a smaller window or the Akima curve, or look for badly trained "
        "runs"
    )
    yield FitTest(name="curves", method="valley", ratio=ratio, df=degrees, p=p, words=words)


def _blocks(points: Points, fit: SurfaceFit, method: MethodName, options: FitOptions) -> Iterator[FitTest]:
    """Test whether residuals of a block of budgets go together, as a shift or a tilt over ln N.

    With J (points, parameters) the derivatives of the surface and B (points, 2·blocks) a shift and a tilt of each,
    F = ((RSS_J - RSS_JB) / (rank JB - rank J)) / (RSS_JB / (points - rank JB)).
    """
    columns = np.column_stack(block_columns(points))
    if fit.surface is None or columns.shape[1] < 2 * MIN_BLOCKS:
        return
    residuals, derivatives = linearised(fit.surface, points, options.surface(method))
    both = np.column_stack([derivatives, columns * root_weights(points)[:, None]])
    (without, rank_without), (within, rank_within) = left_over(derivatives, residuals), left_over(both, residuals)
    degrees = (rank_within - rank_without, points.num_runs - rank_within)
    if min(degrees) < 1 or _exact(residuals):
        return
    ratio = ((without - within) / degrees[0]) / max(within / degrees[1], 1e-300)
    p = _p_value(ratio, degrees)
    words = (
        f"residuals of one budget about the surface go together, {np.sqrt(max(ratio, 0)):.2g} times as much as by "
        f"chance (p = {p:.1g}): the losses are not of this form, or budgets differ in more than C; the interval allows "
        "for such shifts, not for another form: trust valleys more, or another law"
    )
    yield FitTest(name="blocks", method=method, ratio=ratio, df=degrees, p=p, words=words)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOutTop:
    """The points with the largest C, and a surface through the others."""

    low: Points
    high: Points
    surface: Surfaces  # through the low ones

    @property
    def extrapolation(self) -> float:
        """Largest C over the largest that the surface is fitted to."""
        return float(self.high.flops.max() / self.low.flops.max())


def hold_out_top(points: Points, options: SurfaceOptions) -> HeldOutTop | None:
    """Hold out the largest budget, or the top fifth of C; None where the rest does not fix a surface."""
    if not len(points):
        return None
    if points.labelled:
        top = points.budget == points.budget.max()
    else:
        top = points.flops > np.quantile(points.flops, 1 - TOP_SHARE)
    if not top.any() or top.all():
        return None
    low, high = points.pick(~top), points.pick(top)
    below = fit_surface(low, options)
    if not below.usable or below.surface is None:
        return None
    return HeldOutTop(low=low, high=high, surface=below.surface)


def _top(top: HeldOutTop | None, method: MethodName, options: FitOptions) -> Iterator[FitTest]:
    """Test whether the losses at the largest C lie where a surface through the others has them.

    t² = bias² / (s²·(1/m + g'(J'J)^-1·g)): m runs held out, s their noise by the others, g their mean derivative.
    """
    if top is None:
        return
    wanted = options.surface(method)
    residuals, derivatives = linearised(top.surface, top.low, wanted)
    held, further = linearised(top.surface, top.high, wanted)
    square, rank = left_over(derivatives, residuals)
    df = top.low.num_runs - rank
    if df < 1 or _exact(residuals):
        return
    root = root_weights(top.high)
    mean, bias = root @ further / (root @ root), float(root @ held / (root @ root))
    spread = square / df * (1 / float(root @ root) + float(mean @ np.linalg.pinv(derivatives.T @ derivatives) @ mean))
    ratio = bias**2 / max(spread, 1e-300)
    p = _p_value(ratio, (1, df))
    words = (
        f"a surface through the other runs misses the losses at the largest C ({top.extrapolation:.3g}x beyond) by "
        f"{-100 * bias:+.2g} % on average, {np.sqrt(ratio):.2g} standard errors (p = {p:.1g}): it will miss those "
        "beyond the data by more; use another law, or valleys"
    )
    yield FitTest(name="top", method=method, ratio=ratio, df=(1, df), p=p, words=words)


def _exact(residuals: Floats) -> bool:
    return float(np.abs(residuals).max()) < EXACT


def _p_value(ratio: float, df: tuple[int, int]) -> float:
    from scipy.special import fdtrc

    return float(fdtrc(df[0], df[1], max(ratio, 0.0)))
