"""Sensitivity of N_opt at one budget to every choice of the analysis and to single runs, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flops_fit_ray.analysis._curved_law import CurvedLaw
from flops_fit_ray.analysis._methods import Method, surface_method, valley_optimum
from flops_fit_ray.analysis._sweep_fit import SweepFit, fit_minima, fit_valleys, valley_of
from flops_fit_ray.analysis.arrays import Bools, Floats, Ints
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.prediction import other_answer
from flops_fit_ray.analysis.surface import fit_surface, refit_surfaces
from flops_fit_ray.analysis.valley import MIN_DISTINCT_SIZES, Valley
from flops_fit_ray.fit_options import SURFACES, FitOptions, MethodName
from flops_fit_ray.flags import Flag
from flops_fit_ray.formatting import count, flops

MAX_LEFT_OUT = 200  # runs that are left out in turn, those with the greatest influence first
NOTABLE_BIAS = 1.02  # ratio of N_opt from which a bias is reported
NOTABLE_SHARE = 0.25  # of half the interval's width (in log), from which the interval covers less than stated
SAME_FLOPS = 1e-3  # relative; another definition of C that differs by less is not reported
DISAGREE = 1.25  # ratio of two methods' N_opt from which it is called a disagreement
WINDOWS = (3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class SensitivityRow:
    """The result of one choice; `params` are in the base definition of N, so that all rows compare."""

    lever: str
    choice: str
    params: float | None
    tokens: float | None
    exponent: float | None
    own_params: float | None = None  # N_opt in the row's own definition of N, where that is the choice
    reason: str = ""  # of a missing result


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """All rows at one budget."""

    budget: float
    method: MethodName
    rows: tuple[SensitivityRow, ...]  # the first is the result of the fit itself

    @property
    def answers(self) -> list[float]:
        """N_opt of every row that has one."""
        return [row.params for row in self.rows if row.params is not None]

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest N_opt of all choices."""
        return min(self.answers), max(self.answers)

    @property
    def levers(self) -> list[tuple[str, float]]:
        """Ratio of largest to smallest N_opt for each lever, the fit itself included; the greatest first."""
        base = self.rows[0].params
        assert base is not None
        values: dict[str, list[float]] = {}
        for row in self.rows[1:]:
            if row.params is not None:
                values.setdefault(row.lever, [base]).append(row.params)
        return sorted(((lever, max(v) / min(v)) for lever, v in values.items()), key=lambda item: -item[1])

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        low, high = self.bounds
        if not self.levers:
            return f"N_opt({flops(self.budget)}) is {count(low)}; no other choice could be tried."
        lever, factor = self.levers[0]
        return (
            f"N_opt({flops(self.budget)}) lies between {count(low)} and {count(high)} over "
            f"{len(self.answers)} choices; the largest lever is {lever} (x{factor:.3g})."
        )


def sensitivity(fit: SweepFit, budget: float) -> Sensitivity | None:
    """Evaluate every choice at C = `budget`; None where the fit has no law."""
    if fit.params_opt is None or fit.tokens_opt is None:
        return None
    base = SensitivityRow(lever="answer", choice=fit.answer.label, params=fit.params_opt.at(budget),
               tokens=fit.tokens_opt.at(budget), exponent=fit.params_opt.exponent)  # fmt: skip
    rows = [base, *_methods(fit, budget), *_settings(fit, budget), *_definitions(fit, budget)]
    rows += [*_without_budgets(fit, budget), *_without_runs(fit, budget)]
    return Sensitivity(budget=budget, method=fit.default, rows=tuple(rows))


def method_agreement(fit: SweepFit, budget: float) -> Flag | None:
    """Compare N_opt of valleys and surface at C = `budget`; None where one of them has no law."""
    valley, surface = fit.methods["valley"].params_opt, fit.surface.params_opt
    if valley is None or surface is None:
        return None
    one, other = valley.at(budget), surface.at(budget)
    ratio = max(one / other, other / one)
    first, second = (law.interval(budget, fit.options.confidence) for law in (valley, surface))
    apart = first is not None and second is not None and not first.overlaps(second)
    n_opts = f"{count(one)} by the valleys and {count(other)} by the {fit.surface.label.split(' (')[0]} (x{ratio:.3g})"
    message = f"at C = {flops(budget)} N_opt is {n_opts}"
    if apart and other_answer(fit, budget) is not None:
        message = f"{message}: their intervals do not overlap, and the interval that is given is the union of both"
        return Flag("methods_disagree", "warning", message)
    if apart or ratio > DISAGREE:
        overlap = "do not overlap" if apart else "overlap" if first and second else "are unknown"
        return Flag("methods_disagree", "warning", f"{message}: they disagree (the intervals {overlap}); report both")
    return Flag("methods_agree", "info", f"{message}: they agree")


def valley_bias(fit: SweepFit, budget: float) -> Flag | None:
    """Estimate the bias of the valleys' N_opt at C = `budget`, the surface taken for true; None if it is negligible.

    The same valleys are fitted to the noiseless losses of the surface at the same points. The intervals of the valleys
    contain it as far as all valleys lean together (Open-Athena, arXiv 2603.22339).
    """
    surface = fit.methods["surface_huber"].surface
    if fit.default != "valley" or surface is None or not surface.usable or surface.surface is None or not surface.cost:
        return None
    fresh = fit.points_of("surface_huber")
    exact = replace(fit.points, loss=surface.surface.loss(fresh.params, fresh.tokens), run=None)
    method = _optimum_of(fit, list(fit_valleys(exact, fit.options)))
    if method.params_opt is None:
        return None
    # Ratio of N_opt by the valleys of the noiseless surface to that of the surface itself
    factor = method.params_opt.at(budget) / float(np.exp(surface.surface.optimum(budget, surface.cost)[0][0]))
    within = fit.params_opt.interval(budget, fit.options.confidence) if fit.params_opt is not None else None
    # Half the interval in log is ln(high / low) / 2: a quarter of it is a factor of (high / low)^(1/8)
    notable = NOTABLE_BIAS if within is None else min(NOTABLE_BIAS, within.factor ** (NOTABLE_SHARE / 2))
    if max(factor, 1 / factor) < notable:
        return None
    message = (
        f"if the surface is true, the {fit.options.curve} fits misplace N_opt({flops(budget)}) by x{factor:.3g}: "
        "the interval allows for the skew that all valleys show together, and a smaller window reduces the bias"
    )
    return Flag("valley_bias", "warning" if max(factor, 1 / factor) > DISAGREE else "info", message)


def _optimum_of(fit: SweepFit, valleys: Sequence[Valley]) -> Method:
    """Fit the laws of N_opt and D_opt through other valleys of the same budgets."""
    return valley_optimum(valleys, fit.errors, fit.options.law_weights, fit.methods["valley"].correction)


def _quick(points: Points, options: FitOptions, name: MethodName) -> Method:
    """Fit one method without its bootstrap."""
    if name == "valley":
        return fit_minima(points, replace(options, draws=0)).method
    return surface_method(fit_surface(points, options.surface(name)))


def _row_of(lever: str, choice: str, method: Method, budget: float) -> SensitivityRow:
    if method.params_opt is None or method.tokens_opt is None:
        return SensitivityRow(lever=lever, choice=choice, params=None, tokens=None, exponent=None, reason=method.reason)
    n, d = method.params_opt, method.tokens_opt
    return SensitivityRow(lever=lever, choice=choice, params=n.at(budget), tokens=d.at(budget), exponent=n.exponent)


def _methods(fit: SweepFit, budget: float) -> Iterator[SensitivityRow]:
    for name, method in fit.methods.items():
        if name not in (fit.default, "envelope"):  # the envelope is known to be biased
            yield _row_of("the method", method.label, method, budget)


def _settings(fit: SweepFit, budget: float) -> Iterator[SensitivityRow]:
    options, points = fit.options, fit.points_of(fit.default)
    if fit.default != "valley":
        surface = fit.answer.surface
        if surface is not None and surface.cost is not None and surface.cost.curve is not None:
            straight = replace(surface, cost=replace(surface.cost, curve=None), draws=None)
            yield _row_of("the cost of a token", "a power of N", surface_method(straight), budget)
        for delta in (1e-4, 1e-2):
            if fit.default != "surface_squared" and fit.default in SURFACES and delta != options.delta:
                changed = _quick(points, replace(options, delta=delta), fit.default)
                yield _row_of("the loss function", f"Huber delta {delta:g}", changed, budget)
        return
    if isinstance(fit.params_opt, CurvedLaw):
        unbent = valley_optimum(fit.valleys, fit.errors, options.law_weights, None)
        yield _row_of("the cost of a token", "a power of N", unbent, budget)
    for curve in MIN_DISTINCT_SIZES:
        if curve != options.curve:
            yield _row_of("the curve", curve, _quick(points, replace(options, curve=curve), "valley"), budget)
    max_sizes = max((len(np.unique(v.params)) for v in fit.valleys), default=0)
    for window in [*(w for w in WINDOWS if w < max_sizes), None]:
        others = replace(options, window=window, reach=None)
        if others != options:
            choice = "all sizes" if window is None else f"the {window} sizes nearest to the lowest loss"
            yield _row_of("the window", choice, _quick(points, others, "valley"), budget)


def _definitions(fit: SweepFit, budget: float) -> Iterator[SensitivityRow]:
    points = fit.points_of(_of_definition(fit))
    for name, params in points.params_as.items():
        method = _quick(replace(points, params=params, token_cost=None), fit.options, _of_definition(fit))
        row = _row_of("the N definition", f"N as {name}", method, budget)
        if row.params is not None:
            row = replace(row, own_params=row.params, params=_converted(row.params, params, points.params))
        yield row
    others = {"6·N·D": 6 * points.params * points.tokens, **points.flops_as}
    for name, cost in others.items():
        if np.abs(cost / points.flops - 1).max() > SAME_FLOPS:
            method = _quick(replace(points, flops=cost, token_cost=None), fit.options, _of_definition(fit))
            yield _row_of("the FLOP definition", f"C as {name}", method, budget)


def _of_definition(fit: SweepFit) -> MethodName:
    return "valley" if fit.default == "envelope" else fit.default


def _converted(value: float, own: Floats, base: Floats) -> float:
    """Convert N from one definition to another, by linear interpolation in log-log between the sizes that were run.

    Beyond them it extrapolates by the slope over all sizes.
    """
    x, y = np.log(own), np.log(base)
    x, first = np.unique(x, return_index=True)
    y = y[first]
    at = np.log(value)
    if len(x) < 2:
        return value
    nearest = float(np.clip(at, x[0], x[-1]))
    slope = float(np.polyfit(x, y, 1)[0])
    return float(np.exp(np.interp(nearest, x, y) + slope * (at - nearest)))


def _without_budgets(fit: SweepFit, budget: float) -> Iterator[SensitivityRow]:
    points, groups = fit.points_of(fit.default), np.unique(fit.points.budget)
    if fit.default == "valley":
        for i, v in enumerate(fit.valleys):
            if v.status != "interior":
                continue
            left = [j for j in range(len(fit.valleys)) if j != i]
            errors = None if fit.errors is None else fit.errors.of(left)
            method = valley_optimum(
                [fit.valleys[j] for j in left], errors, fit.options.law_weights, fit.methods["valley"].correction
            )
            yield _row_of("one budget left out", f"without C = {flops(v.budget)}", method, budget)
    elif fit.default != "envelope" and points.labelled and len(groups) > 2:
        for group in groups:
            method = _quick(points.pick(points.budget != group), fit.options, fit.default)
            yield _row_of("one budget left out", f"without C = {flops(group)}", method, budget)


def _without_runs(fit: SweepFit, budget: float) -> Iterator[SensitivityRow]:
    """Rows of the two runs without which N_opt is smallest and largest."""
    if fit.default == "envelope":
        return
    picked = _influential(fit)
    left = _left_out_valley(fit, picked, budget) if fit.default == "valley" else _left_out_surface(fit, picked, budget)
    left = [row for row in left if row.params is not None]
    if left:
        yield min(left, key=lambda row: row.params or 0.0)
        yield max(left, key=lambda row: row.params or 0.0)


def _influential(fit: SweepFit) -> Ints:
    """Runs by decreasing influence, at most `MAX_LEFT_OUT`.

    1) valleys: DFFIT = |r|·h / (1 - h), the change of the curve at the point if it is left out
    2) surface: |r|·(1 + Mahalanobis distance² of (ln N, ln D)), a cheap stand-in for the same
    """
    points = fit.points_of(fit.default)
    strength = np.zeros(len(points))
    if fit.default == "valley":
        for v in fit.valleys:
            if v.smooth is not None:
                h = np.minimum(v.smooth.leverage, 1 - 1e-9)
                strength[v.index[v.used]] = np.abs(v.smooth.residuals) * h / (1 - h)
    else:
        surface = fit.answer.surface
        assert surface is not None
        position = np.stack([np.log(points.params), np.log(points.tokens)])
        centred = position - position.mean(axis=1, keepdims=True)
        distance = np.einsum("ip,ij,jp->p", centred, np.linalg.pinv(centred @ centred.T / len(points)), centred)
        strength = np.abs(surface.residuals) * (1 + distance)
    by_run = np.bincount(points.runs, weights=strength, minlength=points.num_runs)
    return np.argsort(-by_run, kind="stable")[:MAX_LEFT_OUT]


def _left_out_valley(fit: SweepFit, runs: Ints, budget: float) -> list[SensitivityRow]:
    points, which = fit.points, fit.points.runs
    rows = []
    for run in runs:
        valleys = [_refitted(v, points, which != run, fit.options) for v in fit.valleys]
        method = _optimum_of(fit, valleys)
        rows.append(_row_of("one run left out", _without_label(points, int(run)), method, budget))
    return rows


def _refitted(valley: Valley, points: Points, keep: Bools, options: FitOptions) -> Valley:
    index = valley.index[keep[valley.index]]
    if len(index) == len(valley.index) or not len(index):
        return valley
    return valley_of(points, valley.budget, index, options, valley.skew)


def _left_out_surface(fit: SweepFit, runs: Ints, budget: float) -> list[SensitivityRow]:
    points, surface, options = fit.points_of(fit.default), fit.answer.surface, fit.options
    assert surface is not None and surface.cost is not None
    weights = points.weights * (points.runs[None, :] != runs[:, None])
    wanted = options.surface(fit.default)
    refits = refit_surfaces(surface, points, wanted, loss=points.loss, weights=weights, tolerance=1e-10)
    log_n, log_d, _ = refits.optimum(budget, surface.cost)
    law = surface_method(replace(surface, draws=refits)).params_opt
    assert law is not None and law.draws is not None
    return [
        SensitivityRow(lever="one run left out", choice=_without_label(points, int(run)), params=float(np.exp(n)),
                       tokens=float(np.exp(d)), exponent=float(a))
        for run, n, d, a in zip(runs, log_n, log_d, law.draws.exponent, strict=True)
        if np.isfinite(n)
    ]  # fmt: skip


def _without_label(points: Points, run: int) -> str:
    i = np.flatnonzero(points.runs == run)[-1]
    return f"without N = {count(points.params[i])} at C = {flops(points.flops[i])}"
