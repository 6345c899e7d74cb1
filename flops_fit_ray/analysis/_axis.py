"""Effect of a second axis, such as depth or sparsity, on the loss at equal C, each value at its best N."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._axis_model import AxisModel, fit_axis_model
from flops_fit_ray.analysis._law import Interval, central_interval
from flops_fit_ray.analysis.arrays import Bools, Floats, Ints
from flops_fit_ray.analysis.points import Points, check_points
from flops_fit_ray.errors import FitError
from flops_fit_ray.fit_options import FitOptions
from flops_fit_ray.flags import Flag

AxisScale = Literal["log", "linear", "kinds"]
LOG_RANGE = 3.0  # ratio of the largest to the smallest value, from which an axis of positive numbers is taken as ln x
MOST_VALUES = 50
REACH, ENOUGH_SIZES = 4.5, 5  # factor of N about the lowest loss within which runs are compared, and sizes needed there
NEWTON = 6  # steps to the minimum of a quartic
FARTHEST = 8.0  # factor beyond the sizes of a budget, at which a minimum is none
MOST_WORTH = 1e6  # factor of C


@dataclass(frozen=True, kw_only=True)
class AxisValue:
    """One value of the axis at one budget, at the N that is best for it."""

    value: float | str
    runs: int
    # None: the sizes show no minimum, and the difference is at the middle of the sizes. It has no interval, as the
    # valley's finer shape moves it more than noise does: a fit of this value's runs alone has one
    params_opt: float | None
    loss: float
    difference: float  # nats, against the reference at its best N; below 0 is better
    interval: Interval | None
    compute: (
        float | None
    )  # factor of C that the reference needs for the same loss; None where one budget tells no slope
    compute_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class AxisBudget:
    """The axis at one budget."""

    budget: float
    values: tuple[AxisValue, ...]  # those that were run, in order
    slope: float | None  # d ln L / d ln x, or / dx, at the reference; None for kinds
    slope_interval: Interval | None
    best: float | str | None  # of the values that were run or lie between them; None: not asked of fewer than two
    best_interval: Interval | None  # of numbers with three values
    best_share: float  # of the draws, in which the best one is the best: of kinds and of two values
    at_edge: bool  # the best value is the smallest or the largest that was run


@dataclass(frozen=True, kw_only=True)
class AxisFit:
    """Effect of a second axis on the loss."""

    name: str
    scale: AxisScale
    reference: float | str
    runs: int
    sigma: float  # of a run about the model, nats
    df: int
    p_value: float  # of no effect at all
    told: bool  # the effect is told apart from none, at the confidence of the intervals
    confidence: float
    budgets: tuple[AxisBudget, ...]  # those with two values or more
    moves_size: bool  # the best N may differ between values; False: it was taken to be the same
    warnings: tuple[Flag, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        content = asdict(self)
        content["warnings"] = [flag.to_json() for flag in self.warnings]
        for row in content["budgets"]:
            for one in (row, *row["values"]):
                for name in [name for name in one if name.endswith("interval") and one[name] is not None]:
                    one[name] = [one[name]["low"], one[name]["high"]]
        return content


def fit_axis(
    points: Points,
    name: str,
    values: Sequence[float | str],
    *,
    reference: float | str | None = None,
    scale: AxisScale | None = None,
    confidence: float = FitOptions.confidence,
    draws: int = FitOptions.draws,
    seed: int = FitOptions.seed,
    known: Sequence[Flag] = (),
) -> AxisFit:
    """Fit what a second axis does to the loss at equal C.

    Args:
        points: the runs; those of one budget are compared.
        values: of the axis, (runs,): numbers, or names of kinds.
        reference: the value that others are compared with; by default the one with most runs.
        scale: log takes d/d ln x and linear d/dx of numbers, kinds takes every value for itself; by default log for
            positive numbers over a factor of 3 or more, linear for other numbers with three values or more, else kinds.
        known: what was assumed of the runs.

    Raises:
        FitError: there are fewer than two values, too few runs to tell the axis from size and noise, or a setting is
            beyond its limits.
    """
    FitOptions(confidence=confidence, draws=draws, seed=seed)  # refuses what no fit takes
    check_points(points)
    all_values = sorted(set(values), key=lambda x: (isinstance(x, str), x))
    if not 2 <= len(all_values) <= MOST_VALUES:
        many = f"{name} has {len(all_values)}"
        found = many if len(all_values) > 1 else f"all runs have {name} {shown_value(all_values[0])}"
        raise FitError(f"an axis has 2 to {MOST_VALUES} values; {found}")
    counts = {x: sum(y == x for y in values) for x in all_values}
    reference = max(all_values, key=lambda x: counts[x]) if reference is None else reference
    if reference not in counts:
        raise FitError(
            f"no run has {name} {shown_value(reference)}; they have {fmt.listed(list(map(shown_value, all_values)), 8)}"
        )
    scale = _scale(all_values, scale, name)
    _, budget = np.unique(points.budget, return_inverse=True)
    kept = _with_valleys(budget.astype(np.int64), np.log(points.params), values, reference)
    if not kept.any():
        raise FitError("no budget has three sizes; the axis is compared at the best size of each budget")
    near = _near_minima(budget.astype(np.int64), np.log(points.params), points.loss, values, reference)
    far = int((kept & ~near).sum())
    kept &= near
    used = [x for x, keep in zip(values, kept, strict=True) if keep]
    budgets, budget = np.unique(points.budget[kept], return_inverse=True)
    z, kind = _coordinates(used, all_values, reference, scale)
    model = fit_axis_model(
        budgets[budget], np.log(points.params[kept]), points.loss[kept], z, kind, draws=draws, seed=seed
    )
    view = _View(name, scale, all_values, reference, model, budgets, confidence)
    runs = [
        [int(np.sum((budget == b) & np.array([x == y for y in used]))) for x in all_values] for b in range(len(budgets))
    ]
    sizes = [np.log(points.params[kept][budget == b]) for b in range(len(budgets))]
    rows = tuple(view.row(b, runs[b], sizes) for b in range(len(budgets)) if sum(n > 0 for n in runs[b]) > 1)
    flags = (*known, *_flags(points, kept, model, rows, view, far))
    return AxisFit(name=name, scale=scale, reference=reference, runs=int(kept.sum()), sigma=model.sigma, df=model.df,
                   p_value=model.p_value, told=model.p_value < 1 - confidence, confidence=confidence, budgets=rows,
                   moves_size=any(term == "g" for term, *_ in model.names), warnings=flags)  # fmt: skip


def shown_value(value: float | str) -> str:
    """Return a value of an axis for people."""
    return value if isinstance(value, str) else f"{value:.4g}"


def _scale(known: Sequence[float | str], wanted: AxisScale | None, name: str) -> AxisScale:
    numbers = [float(x) for x in known if not isinstance(x, str)]
    if wanted in ("log", "linear") and len(numbers) < len(known):
        raise FitError(f"{name} has values that are no numbers, so its scale is kinds (got {wanted})")
    if wanted == "log" and min(numbers) <= 0:
        raise FitError(f"{name} has the value {min(numbers):g}, which has no logarithm; take the scale linear or kinds")
    if wanted is not None:
        return wanted
    if len(numbers) < len(known) or len(numbers) < 3:
        return "kinds"
    return "log" if min(numbers) > 0 and max(numbers) >= LOG_RANGE * min(numbers) else "linear"


def _with_valleys(budget: Ints, log_n: Floats, values: Sequence[float | str], reference: float | str) -> Bools:
    """Return True for the runs of budgets with three sizes, of which the reference has one."""
    at_reference = np.array([x == reference for x in values])
    good = [b for b in range(int(budget.max()) + 1) if len(np.unique(log_n[budget == b].round(6))) >= 3
            and at_reference[budget == b].any()]  # fmt: skip
    return np.isin(budget, good)


def _near_minima(
    budget: Ints, log_n: Floats, loss: Floats, values: Sequence[float | str], reference: float | str
) -> Bools:
    """Return False for runs far from the lowest loss of the reference at their budget, if five sizes are nearer.

    What lies far out tells of the valley's finer shape, and not of its minimum.
    """
    at_reference, near = np.array([x == reference for x in values]), np.ones(len(log_n), dtype=bool)
    for b in np.unique(budget[at_reference]):
        own = at_reference & (budget == b)
        lowest = log_n[own][np.argmin(loss[own])]
        distance = np.abs(log_n - lowest)
        least = np.sort(np.abs(np.unique(log_n[own].round(6)) - lowest))[:ENOUGH_SIZES].max()
        near[(budget == b) & (distance > max(math.log(REACH), least) + 1e-6)] = False
    return near


def _coordinates(
    values: Sequence[float | str], known: Sequence[float | str], reference: float | str, scale: AxisScale
) -> tuple[Floats, Ints | None]:
    if scale == "kinds":
        order = [reference, *(x for x in known if x != reference)]
        return np.zeros(len(values)), np.array([order.index(x) for x in values], dtype=np.int64)
    return np.array([_coordinate(x, reference, scale) for x in values]), None


def _coordinate(value: float | str, reference: float | str, scale: AxisScale) -> float:
    x, x0 = float(value), float(reference)
    return math.log(x / x0) if scale == "log" else x - x0


@dataclass(frozen=True, eq=False)
class _View:
    """The answers of a fitted model."""

    name: str
    scale: AxisScale
    known: Sequence[float | str]
    reference: float | str
    model: AxisModel
    budgets: Floats
    confidence: float

    def row(self, b: int, runs: Sequence[int], sizes: Sequence[Floats]) -> AxisBudget:
        """Return the axis at one budget."""
        ran = [x for x, n in zip(self.known, runs, strict=True) if n]
        lowest = {x: self._lowest(b, self._terms(b, x), sizes[b]) for x in ran}
        size, base = lowest[self.reference]  # which has run at every budget that is left
        slope = self._compute_slope(b, sizes)
        found = tuple(self._value(x, n, lowest[x], base, slope) for x, n in zip(self.known, runs, strict=True) if n)
        best, within, share, edge = self._best(b, ran, lowest, sizes[b])
        own = None if self.scale == "kinds" else self._slope_at(b, size, base)
        return AxisBudget(budget=float(self.budgets[b]), values=found,
                          slope=None if own is None else float(own[0]),
                          slope_interval=None if own is None else central_interval(own[1:], self.confidence),
                          best=best, best_interval=within, best_share=share, at_edge=edge)  # fmt: skip

    def _terms(self, b: int, value: float | str | None = None, z: float | None = None) -> tuple[Floats, ...]:
        """Return what a value adds to a, p and q of a budget, each (1 + draws,)."""
        m = self.model
        if self.scale == "kinds":
            if value is None or value == self.reference:
                return (np.zeros(1 + len(m.draws)),) * 3
            k = 1 + [x for x in self.known if x != self.reference].index(value)
            return m.of("h", b, k), m.shared("g", b, k), m.shared("d", b, k)
        at = z if z is not None else _coordinate(self.reference if value is None else value, self.reference, self.scale)
        moved = m.shared("g", b) * at + m.shared("f", b) * at**2
        return m.of("s", b) * at + m.of("r") * at**2, moved, m.shared("d", b) * at

    def _lowest(self, b: int, terms: tuple[Floats, ...], log_n: Floats) -> tuple[Floats, Floats]:
        """Return ln N and loss at the minimum over N, (1 + draws,) each; at the middle of the sizes where it is far."""
        m = self.model
        a, p, q = m.of("a", b) + terms[0], m.of("p", b) + terms[1], m.curvature(b) + terms[2]
        c, k = m.shared("c", b), m.shared("k", b)
        with np.errstate(all="ignore"):  # the root of p + 2·q·v + 3·c·v² with a minimum, for any c; then Newton's steps
            v = np.where(q > 0, -p / (q + np.sqrt(q * q - 3 * c * p)), np.nan)
            for _ in range(NEWTON if k.any() else 0):
                bend = 2 * q + 6 * c * v + 12 * k * v**2
                v = np.where(bend > 0, v - (p + 2 * q * v + 3 * c * v**2 + 4 * k * v**3) / bend, np.nan)
        low, high = log_n.min() - m.centres[b] - math.log(FARTHEST), log_n.max() - m.centres[b] + math.log(FARTHEST)
        v = np.where((v >= low) & (v <= high), v, np.nan)
        at = np.nan_to_num(v)
        return v + m.centres[b], a + p * at + q * at**2 + c * at**3 + k * at**4

    def _value(
        self, value: float | str, runs: int, lowest: tuple[Floats, Floats], base: Floats, slope: Floats | None
    ) -> AxisValue:
        n, loss = lowest
        difference = loss - base
        worth = None
        if slope is not None and value != self.reference:
            with np.errstate(all="ignore"):
                worth = np.where(
                    slope < 0, np.exp(np.clip(difference / slope, *np.log([1 / MOST_WORTH, MOST_WORTH]))), np.nan
                )
        other = value != self.reference
        is_there = np.isfinite(n[0]) and central_interval(n[1:], self.confidence) is not None
        return AxisValue(
            value=value, runs=runs, params_opt=float(np.exp(n[0])) if is_there else None,
            loss=float(loss[0]), difference=float(difference[0]),
            interval=central_interval(difference[1:], self.confidence) if other else None,
            compute=None if worth is None or not np.isfinite(worth[0]) else float(worth[0]),
            compute_interval=None if worth is None else central_interval(worth[1:], self.confidence),
        )  # fmt: skip

    def _compute_slope(self, b: int, sizes: Sequence[Floats]) -> Floats | None:
        """Return d L_opt / d ln C of the reference at a budget, by the budgets beside it, (1 + draws,); None of one."""
        beside = [i for i in (b - 1, b, b + 1) if 0 <= i < len(self.budgets)]
        if len(beside) < 2:
            return None
        lowest = [self._lowest(i, self._terms(i), sizes[i])[1] for i in (beside[0], beside[-1])]
        return np.asarray((lowest[1] - lowest[0]) / math.log(self.budgets[beside[-1]] / self.budgets[beside[0]]))

    def _slope_at(self, b: int, size: Floats, base: Floats) -> Floats:
        """Return d ln L / dz at the reference, each value at its best N (envelope theorem), (1 + draws,)."""
        m = self.model
        v = np.nan_to_num(size - m.centres[b])
        return np.asarray((m.of("s", b) + m.shared("g", b) * v + m.shared("d", b) * v * v) / base)

    def _best(
        self, b: int, ran: Sequence[float | str], lowest: dict[float | str, tuple[Floats, Floats]], log_n: Floats
    ) -> tuple[float | str | None, Interval | None, float, bool]:
        losses = np.array([lowest[x][1] for x in ran])  # (values, 1 + draws)
        first = np.argmin(losses, axis=0)
        best = ran[int(first[0])]
        share = float(np.mean(first[1:] == first[0])) if losses.shape[1] > 1 else math.nan
        edge = self.scale != "kinds" and best in (ran[0], ran[-1])
        if self.scale == "kinds" or len(ran) < 3 or not self.model.has("r"):
            return best, None, share, edge
        ends = [_coordinate(x, self.reference, self.scale) for x in (ran[0], ran[-1])]
        grid = np.linspace(ends[0], ends[1], 201)
        along = np.array([self._lowest(b, self._terms(b, z=float(z)), log_n)[1] for z in grid])
        z = grid[np.argmin(along, axis=0)]
        x = np.exp(z) * float(self.reference) if self.scale == "log" else z + float(self.reference)
        return float(x[0]), central_interval(x[1:], self.confidence), share, bool(z[0] in (grid[0], grid[-1]))


def _flags(
    points: Points, kept: Bools, model: AxisModel, rows: Sequence[AxisBudget], view: _View, far: int
) -> list[Flag]:
    flags = []
    if far:
        flags.append(Flag("assumed", "info", f"{fmt.counted(far, 'run')} over {REACH:g} times larger or smaller than "
                          "the best size of their budget are left out"))  # fmt: skip
    if (~kept).sum() > far:
        left = fmt.counted(int((~kept).sum()) - far, "run")
        flags.append(Flag("assumed", "info", f"{left} of budgets with fewer than three sizes, or without {view.name} "
                          f"{shown_value(view.reference)}, say nothing here"))  # fmt: skip
    if not any(term == "g" for term, *_ in model.names):
        flags.append(Flag("assumed", "info", f"the best N is taken to be the same for every {view.name}: no value but "
                          "the reference has two sizes that would tell"))  # fmt: skip
    if points.run is not None and len(np.unique(points.run)) < len(points):
        flags.append(Flag("assumed", "info", "runs on one trunk share a part of their noise: the intervals of two "
                          "budgets are not independent"))  # fmt: skip
    flat = [row for row in rows if any(one.params_opt is None for one in row.values)]
    if flat:
        where = fmt.listed([fmt.flops(row.budget) for row in flat], 4)
        flags.append(Flag("no_budget", "warning", f"C = {where}: the sizes show no minimum for some values, which are "
                          "compared at the middle of the sizes"))  # fmt: skip
    return flags
