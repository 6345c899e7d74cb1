"""The learning rate guard: rates to probe, the best of them, and the rule over N that follows.

Rates are probed with the schedule of the sweep, by factors of two until the best is bracketed: at the smallest budget,
and the larger one again at a larger budget: the best rate of one size falls with D, and at one C a larger N means a
smaller D. On the trunks of the shorter probes that costs a per cent of the grid, and a second size would tell no more.
Then ln lr is a plane over ln N and ln D. Its slopes have priors at published values, because few probes determine them
poorly. The grid takes it along D = r·N, where the minima are expected, so that all budgets of a size share a trunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.learning_rates import PARAMS_SLOPE, PARAMS_SLOPE_SD, TOKENS_SLOPE, TOKENS_SLOPE_SD
from flops_fit_ray.planning.experiment import MeasuredLr, ModelSize

FACTORS = (0.5, 1.0, 2.0, 4.0)  # times the general rule
MAX_FACTORS = 8  # per size
NEAR = (0.5, 1.0, 2.0)  # times the best rate of the shorter probes
LONGER, MIN_LONGER = 4.0, 2.0  # ratio of C, and of D at one size, of the longer probes to the shorter ones
LONG_SHARE = 0.05  # of a grid's FLOPs that the longer probes may take
SIZES = 4  # of a grid's budget, about
STEEPEST = -1.0  # slope along D = r·N below which, or above 0, none is believed
OPTIMUM_SD = 0.2  # standard deviation of ln lr at one optimum: what a noise of 0.01 nats does to its parabola
FIRST_OPTIMUM_SD = 0.35  # the same in sweeps of earlier versions
FLAT = 1e-3  # share of the loss by which losses over a factor of 8 in lr differ wherever a model learns
CAUTION = 2**-0.25  # factor where the next rate diverged: half the best rate costs less than twice the best


Optimum: TypeAlias = tuple[int, int, float]  # N, D and the best rate there


def probe_budgets(budgets: Sequence[float]) -> tuple[float, ...]:
    """Choose the budgets of the probes: the smallest, and one about `LONGER` times as large where that is cheap."""
    smallest, total = min(budgets), sum(budgets)
    larger = [
        c for c in budgets if c >= MIN_LONGER * smallest and len(NEAR) * (c - smallest) <= LONG_SHARE * SIZES * total
    ]
    nearest = min(larger, key=lambda c: abs(math.log(c / smallest / LONGER)), default=None)
    return (smallest,) if nearest is None else (smallest, nearest)


def probed_sizes(first: Sequence[ModelSize]) -> list[ModelSize]:
    """Choose two sizes of the first valley that are far apart, but not its ends if it has four or more."""
    return [first[1], first[-2]] if len(first) >= 4 else [first[0], first[-1]]


def factors_near(best: float) -> tuple[float, ...]:
    """Choose the factors of the longer probes, among those of the shorter ones so that they share trunks."""
    middle = 2.0 ** round(math.log2(best))
    return tuple(f * middle for f in NEAR)


def missing_factors(losses: Mapping[float, float], first: Sequence[float] = FACTORS) -> list[float]:
    """Factors to probe next, from losses by factor (infinite if diverged); none once the best is bracketed.

    Args:
        first: the factors to begin with.
    """
    wanted = [f for f in first if f not in losses]
    if wanted:
        return wanted
    if len(losses) >= MAX_FACTORS:
        return []
    best, ends = best_factor(losses), (min(losses), max(losses))
    if best == ends[0]:
        return [ends[0] / 2]
    return [ends[1] * 2] if best == ends[1] else []


def best_factor(losses: Mapping[float, float]) -> float:
    """The probed factor with the lowest loss; the smaller one if two are equal."""
    return min(sorted(losses), key=lambda f: losses[f])


def is_flat(losses: Mapping[float, float]) -> bool:
    """Return True if the losses of all rates that did not fail are the same but for noise."""
    finite = [loss for loss in losses.values() if math.isfinite(loss)]
    return len(finite) > 2 and max(finite) - min(finite) < FLAT * abs(min(finite))


def optimum_factor(losses: Mapping[float, float]) -> float:
    """Interpolate the best factor: the vertex -b / 2a of the parabola in ln lr through the lowest and its neighbours.

    At an end of the probed factors it is the best one itself; beside a diverged one it is lower by `CAUTION`.
    """
    best = best_factor(losses)
    factors = sorted(losses)
    i = factors.index(best)
    if i in (0, len(factors) - 1):
        return best
    near = factors[i - 1 : i + 2]
    values = [losses[f] for f in near]
    if not all(map(math.isfinite, values)):
        return best * CAUTION
    a, b, _ = np.polyfit(np.log(near), values, 2)
    vertex = math.exp(-b / (2 * a)) if a > 0 else best
    return float(min(max(vertex, near[0]), near[2]))


def lr_law(optima: Sequence[Optimum], tokens_per_param: float) -> MeasuredLr:
    """Fit ln lr = m + p·(ln N - mean(ln N)) + q·(ln D - mean(ln D)) to the best rates (N, D, lr) of the probes.

    1) (p, q) is the posterior mean with the priors of `analysis.learning_rates` and noise `OPTIMUM_SD`:
       (X'X/sd² + P)^-1 (X'y/sd² + P·[p0, q0]), P = diag of the priors' precisions
    2) along D = r·N, r = `tokens_per_param`, lr falls as N^s, s = p + q, not believed outside `STEEPEST` to 0

    """
    points = np.log([(n, d) for n, d, _ in optima])  # (probes, 2)
    y = np.log([lr for _, _, lr in optima])
    middle = points.mean(axis=0)
    x = points - middle
    prior = np.diag([PARAMS_SLOPE_SD**-2, TOKENS_SLOPE_SD**-2])
    spread = np.linalg.inv(x.T @ x / OPTIMUM_SD**2 + prior)
    p, q = spread @ (x.T @ y / OPTIMUM_SD**2 + prior @ [PARAMS_SLOPE, TOKENS_SLOPE])
    level = y.mean() + q * (math.log(tokens_per_param) + middle[0] - middle[1])
    return MeasuredLr(
        coefficient=float(np.exp(level)),
        at=float(np.exp(middle[0])),
        exponent=float(min(max(p + q, STEEPEST), 0.0)),
        found_exponent=float(p + q),
        optima=tuple((n, lr) for n, _, lr in optima),
        optima_tokens=tuple(d for _, d, _ in optima),
        tokens_exponent=float(q),
        exponent_sd=float(math.sqrt(spread.sum())),
    )


def lr_law_at_one_budget(optima: Sequence[tuple[int, float]]) -> MeasuredLr:
    """Fit the rule of sweeps of earlier versions, in N alone, to the best rates (N, lr) of sizes at one budget.

    ln lr = mean(ln lr) + s·(ln N - mean(ln N))

    s = (sum x·y + p·s0) / (sum x² + p), p = (sd / sd0)²: the posterior mean of the slope with the prior
    s0 = PARAMS_SLOPE ± PARAMS_SLOPE_SD and noise sd = FIRST_OPTIMUM_SD, x = ln N centred, y = ln lr.
    """
    x, y = np.log([n for n, _ in optima]), np.log([lr for _, lr in optima])
    centred = x - x.mean()
    prior_weight = (FIRST_OPTIMUM_SD / PARAMS_SLOPE_SD) ** 2
    slope = float((centred @ y + prior_weight * PARAMS_SLOPE) / (centred @ centred + prior_weight))
    return MeasuredLr(
        coefficient=float(np.exp(y.mean())),
        at=float(np.exp(x.mean())),
        exponent=slope,
        optima=tuple((int(n), float(lr)) for n, lr in optima),
    )


def notes(law: MeasuredLr, optima: Sequence[Optimum]) -> Iterator[str]:
    """Yield what was found and what the grid takes."""
    if not law.optima_tokens:
        shown = ", ".join(f"{lr:.2e} at N = {fmt.count(n)}" for n, _, lr in optima)
    else:
        shown = ", ".join(f"{lr:.2e} at N = {fmt.count(n)}, D = {fmt.count(d)}" for n, d, lr in optima)
    yield (
        f"learning rate: best {shown}; the grid takes {law.coefficient:.2e} · (N / {fmt.count(law.at)})"
        f"^{law.exponent:.2f}"
    )
    if law.exponent_sd is not None and law.tokens_exponent is not None:
        yield (
            f"learning rate: that is along the expected minima, its exponent ± {law.exponent_sd:.2f}; at one N it goes "
            f"as D^{law.tokens_exponent:.2f}"
        )
    if law.held:
        yield (
            f"learning rate: the probes ask for N^{law.found_exponent:+.2f} along the expected minima, which no "
            f"published rate does: held at {law.exponent:g}; set train.lr if your model does"
        )
