"""One linear model of the losses over size and a second axis: a valley per budget, moved and lifted by the axis.

    L = a_b + p_b·v + q_b·v² + h_b(z) + S_b·(c·v³ + k·v⁴ + g(z)·v + d(z)·v²) + noise,    v = ln N - c_b

b is the budget and z the axis: ln x or x less the reference, with h_b(z) = s_b·z + r·z², g(z) = g·z + f·z² and
d(z) = d·z; or a value of its own for each kind, h_b, g and d then being a number per kind. What the runs do not tell
apart (r without three values, g where each value has one size, q_b with fewer than four sizes) is shared by the budgets
or left out, and left out means 0: c, k, f and d are there only with `SPARE` runs more than coefficients.

S_b is how steep the valley of a budget is beside the others. On L = E + A/N^alpha + B/D^beta at C = 6·N·D every
derivative about the minimum has the factor alpha·A/N_opt^alpha (Hoffmann et al. 2022, equation 4), so that the valleys
of all C have one shape: S_b·shape(ln N - ln N_opt). S_b is a power of C through the curvatures of the budgets, c_b
their minima, both by parabolas of the reference's runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats, Ints
from flops_fit_ray.errors import FitError

MIN_DF = 3  # runs more than coefficients
OWN_CURVATURE = 4  # sizes of a budget, from which its valley has a curvature of its own
SPARE = 8  # runs more than coefficients, from which the finer terms are fitted
NEEDED, FINER = ("s", "h"), ("c", "k", "d", "f")
NEAR = math.log(4.5)  # ln N about the lowest loss, within which a parabola tells the curvature
MIDDLE = 0.7  # of the range of ln N that a minimum may lie from its middle, to be what v is counted from


@dataclass(frozen=True, kw_only=True, eq=False)
class AxisModel:
    """The fitted coefficients, and draws of them; names are (term, budget or -1, kind or -1)."""

    names: tuple[tuple[str, int, int], ...]
    fitted: Floats  # (coefficients,)
    draws: Floats  # (draws, coefficients), of a multivariate t
    centres: Floats  # (budgets,), ln N
    steepness: Floats  # (budgets,), S
    sigma: float  # nats
    df: int
    p_value: float  # of all terms of the axis together, by an F test

    def has(self, term: str, budget: int = -1, kind: int = -1) -> bool:
        """Return True if the runs tell of a term."""
        return (term, budget, kind) in self.names

    def of(self, term: str, budget: int = -1, kind: int = -1) -> Floats:
        """Return a coefficient, the fitted one first and then its draws, (1 + draws,); 0 where it was left out."""
        if not self.has(term, budget, kind):
            return np.zeros(1 + len(self.draws))
        at = self.names.index((term, budget, kind))
        return np.concatenate([self.fitted[at : at + 1], self.draws[:, at]])

    def curvature(self, budget: int) -> Floats:
        """Return q of a budget, (1 + draws,)."""
        return self.of("q", budget) if self.has("q", budget) else self.shared("q", budget)

    def shared(self, term: str, budget: int, kind: int = -1) -> Floats:
        """Return what a term of one shape is at a budget, (1 + draws,)."""
        return np.asarray(self.of(term, -1, kind) * self.steepness[budget])


def fit_axis_model(
    flops: Floats, log_n: Floats, loss: Floats, z: Floats, kind: Ints | None, *, draws: int, seed: int
) -> AxisModel:
    """Fit the model by least squares.

    Args:
        flops: C of the budget, (runs,); equal at one budget.
        z: (runs,), 0 at the reference.
        kind: (runs,), from 0 for the reference; None: `z` is a number.

    Raises:
        FitError: the runs are too few for it, or do not tell the axis from the size.
    """
    budgets, found = np.unique(flops, return_inverse=True)
    budget, count = found.astype(np.int64), len(budgets)
    centres, steepness = _shapes(np.log(budgets), budget, log_n, loss, (z == 0) if kind is None else (kind == 0))
    v, steep = log_n - centres[budget], steepness[budget]
    base, names = _base(budget, v, steep, count)
    columns, more = _of_axis(budget, v, steep, z, kind, count)
    if not more:
        raise FitError("no budget has runs with two values of the axis")
    rank = np.linalg.matrix_rank(_scaled(base))
    if rank < base.shape[1]:
        raise FitError("a budget has too few sizes for a valley: three, and three runs more than are fitted in all")
    for column, name in zip(columns, more, strict=True):
        wider = np.column_stack([base, column])
        room = len(loss) - wider.shape[1] >= (SPARE if name[0] in FINER else MIN_DF)
        if name[0] == "d" and not _bends(budget, v, z != 0 if kind is None else kind == name[2]):
            continue
        needed = name[0] in NEEDED
        if np.linalg.matrix_rank(_scaled(wider)) > rank and (room or needed):
            base, rank, names = wider, rank + 1, [*names, name]
        elif needed:
            raise FitError(
                "the runs of a budget do not tell the axis from the size: each value moves with N there; run some "
                "value at two sizes, and the reference at three"
            )
    df = len(loss) - base.shape[1]
    if df < MIN_DF:
        raise FitError(f"{len(loss)} runs for {base.shape[1]} coefficients; {MIN_DF} runs more than those are needed")
    return _solved(base, loss, names, (centres, steepness), df, draws=draws, seed=seed)


def _shapes(log_c: Floats, budget: Ints, log_n: Floats, loss: Floats, at_reference: Bools) -> tuple[Floats, Floats]:
    """Return ln N of the minima, or of the middle of the sizes, and S, each (budgets,), by parabolas."""
    centres, bends = np.zeros(len(log_c)), np.full(len(log_c), np.nan)
    for b in range(len(log_c)):
        here = (budget == b) & at_reference
        centres[b] = (log_n[budget == b].min() + log_n[budget == b].max()) / 2
        if len(np.unique(log_n[here].round(6))) < 3:
            continue
        lowest = log_n[here][np.argmin(loss[here])]
        near = here & (np.abs(log_n - lowest) <= NEAR)
        x, y = (log_n[near], loss[near]) if len(np.unique(log_n[near].round(6))) >= 3 else (log_n[here], loss[here])
        centres[b] = middle = (x.min() + x.max()) / 2
        bend, tilt, _ = np.polyfit(x - middle, y, 2)
        bends[b] = bend if bend > 0 else np.nan
        if bend > 0 and abs(tilt / (2 * bend)) < MIDDLE * np.ptp(x):
            centres[b] -= tilt / (2 * bend)
    good = np.isfinite(bends)
    if good.sum() < 2:
        return centres, np.ones(len(log_c))
    exponent, level = np.polyfit(log_c[good], np.log(bends[good]), 1)
    steepness = np.exp(exponent * log_c + level)
    return centres, np.asarray(steepness / steepness.mean())


def _bends(budget: Ints, v: Floats, of_value: Bools) -> bool:
    """Return True if a budget has runs of a value at three sizes, which tell its valley's curvature."""
    return any(len(np.unique(v[of_value & (budget == b)].round(6))) >= 3 for b in range(int(budget.max()) + 1))


def _scaled(columns: Floats) -> Floats:
    return np.asarray(columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300))


def _base(budget: Ints, v: Floats, steep: Floats, count: int) -> tuple[Floats, list[tuple[str, int, int]]]:
    """Return the columns of the parabolas, (runs, columns), and their names."""
    columns, names, shared = [], [], np.zeros(len(v))
    for b in range(count):
        here = (budget == b).astype(float)
        columns += [here, here * v]
        names += [("a", b, -1), ("p", b, -1)]
        if len(np.unique(v[budget == b].round(6))) >= OWN_CURVATURE:
            columns.append(here * v * v)
            names.append(("q", b, -1))
        else:
            shared += here * steep * v * v
    if shared.any():
        columns.append(shared)
        names.append(("q", -1, -1))
    return np.column_stack(columns), names


def _of_axis(
    budget: Ints, v: Floats, steep: Floats, z: Floats, kind: Ints | None, count: int
) -> tuple[list[Floats], list[tuple[str, int, int]]]:
    """Return what the axis adds, the terms that must be there first."""
    columns, names = [], []
    both = [b for b in range(count) if len(np.unique(z[budget == b] if kind is None else kind[budget == b])) > 1]
    for b in both:
        here = (budget == b).astype(float)
        if kind is None:
            columns.append(here * z)
            names.append(("s", b, -1))
            continue
        for k in sorted(set(kind[budget == b].tolist()) - {0}):
            columns.append(here * (kind == k))
            names.append(("h", b, k))
    if not both:
        return [], []
    if kind is None:
        moves = {"r": z * z, "g": steep * z * v}
        finer = {"c": steep * v**3, "k": steep * v**4, "d": steep * z * v * v, "f": steep * z * z * v}
        shared = {**moves, **finer}
        return [*columns, *shared.values()], [*names, *((name, -1, -1) for name in shared)]
    kinds = sorted(set(kind.tolist()) - {0})
    columns += [steep * (kind == k) * v for k in kinds]
    columns += [steep * v**3, steep * v**4, *(steep * (kind == k) * v * v for k in kinds)]
    names += [*(("g", -1, k) for k in kinds), ("c", -1, -1), ("k", -1, -1), *(("d", -1, k) for k in kinds)]
    return columns, names


def _solved(
    columns: Floats,
    loss: Floats,
    names: Sequence[tuple[str, int, int]],
    shapes: tuple[Floats, Floats],
    df: int,
    *,
    draws: int,
    seed: int,
) -> AxisModel:
    from scipy.special import fdtrc

    scale = np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    x = columns / scale
    fitted, *_ = np.linalg.lstsq(x, loss, rcond=None)
    squares = float(((loss - x @ fitted) ** 2).sum())
    plain = x[:, [name[0] in ("a", "p", "q", "c", "k") for name in names]]
    without = float(((loss - plain @ np.linalg.lstsq(plain, loss, rcond=None)[0]) ** 2).sum())
    added = x.shape[1] - plain.shape[1]
    tiny = 1e-24 * float((loss**2).sum())
    ratio = ((without - squares) / added) / ((squares + tiny) / df)
    rng = np.random.default_rng([seed, 7])
    root = np.linalg.cholesky(np.linalg.pinv(x.T @ x) + 1e-14 * np.eye(x.shape[1]))
    spread = np.sqrt(squares / df) * np.sqrt(df / rng.chisquare(df, draws))
    noise = rng.standard_normal((draws, x.shape[1])) @ root.T
    return AxisModel(
        names=tuple(names),
        fitted=fitted / scale,
        draws=(fitted + spread[:, None] * noise) / scale,
        centres=shapes[0],
        steepness=shapes[1],
        sigma=float(np.sqrt(squares / df)),
        df=df,
        p_value=float(fdtrc(added, df, max(ratio, 0.0))),
    )
