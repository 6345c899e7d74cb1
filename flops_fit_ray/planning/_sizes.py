"""The sizes that a spec requests, before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flops_fit_ray.planning.experiment import AS_THEY_RUN, COUNTING, ModelSize
from flops_fit_ray.spec import GridSection, Ladder, SizeValue, SweepSpec

TOKENS_PER_PARAM = (
    20  # D/N at the optimum of language models (Hoffmann et al. 2022, table 3); only the centre of `auto`
)
# Counted FLOPs over 6·N·D. Layers of raw inputs cost 4·N, because inputs need no gradient; below that the counter
# misses a layer, and far above weights are shared.
TRUSTED_RATIO = (0.5, 3.0)
EVEN_SIZES, EVEN_WINDOW = 5, 4.0  # of every budget but the first, where the grid does not taper
AUTO_WINDOW = 8  # `auto` takes N from 1/8 to 8 times the expected optimum of each budget
OWN_WINDOW = 32  # sizes that the spec leaves to us lie within this factor of the expected optimum


def shared_sizes(spec: SweepSpec) -> list[SizeValue] | None:
    """Sizes of every budget without sizes of its own; None where they are `auto`."""
    if isinstance(spec.model.sizes, Ladder):
        return list(spec.model.sizes.sizes())
    return None if spec.model.sizes == "auto" else list(spec.model.sizes)


def requested_sizes(spec: SweepSpec) -> list[SizeValue] | None:
    """All sizes in the spec, each once; None where the sizes of some budget are `auto`."""
    shared = shared_sizes(spec)
    if shared is None and any(b.sizes is None for b in spec.budgets):
        return None
    named = (shared or []) + [s for b in spec.budgets for s in b.sizes or []]
    return [s for i, s in enumerate(named) if s not in named[:i]]


def size_label(size: SizeValue) -> int | str:
    """Label of a size in tables: the number itself, or `d_model=64,n_layer=2`."""
    return size if isinstance(size, int) else ",".join(f"{k}={v}" for k, v in size.items())


def size_kwargs(spec: SweepSpec, size: SizeValue) -> Mapping[str, Any]:
    """Constructor arguments of a size."""
    if isinstance(size, int):
        assert spec.model.size_param is not None  # the spec rejects numbers without model.size_param
        return {spec.model.size_param: size}
    return dict(size)


def auto_candidates() -> Iterator[int]:
    """Yield 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: a factor of about sqrt(2) apart, and divisible by numbers of heads."""
    yield 1
    for exponent in range(1, 40):
        yield 2**exponent
        yield 3 * 2 ** (exponent - 1)


def expected_optimum(budget: float, tokens_per_param: float = TOKENS_PER_PARAM) -> float:
    """Estimate N_opt where no model is measured: D = r·N and C = 6·N·D give N = sqrt(C / (6·r))."""
    return math.sqrt(budget / (6 * tokens_per_param))


def expected_centre(
    tokens_per_param: float, sizes: Sequence[ModelSize], budget: float, counting: int = COUNTING
) -> float:
    """First estimate of N_opt for measured models: where D = r·N costs C by their counted FLOPs per token, F.

    1) C = r·N·F(N); between sizes ln(N·F) is linear in ln N, beyond them F grows with N.
    2) Sweeps that began by an earlier rule keep its estimate, that of 6·N·D near it (rule 2) or always (rule 1).
    """
    expected = expected_optimum(budget, tokens_per_param)
    if counting < AS_THEY_RUN:
        return expected
    sizes = sorted(sizes, key=lambda s: s.params)
    x = np.log([s.params for s in sizes])
    y = np.log([s.flops_per_token for s in sizes])
    if counting < COUNTING:
        ratio = math.exp(np.interp(math.log(expected), x, y - x)) / 6
        if TRUSTED_RATIO[0] <= ratio <= TRUSTED_RATIO[1]:
            return expected
    cost = np.maximum.accumulate(x + y)
    wanted = math.log(budget / tokens_per_param)
    beyond = min(wanted - cost[0], 0) / 2 + max(wanted - cost[-1], 0) / 2
    return math.exp(float(np.interp(wanted, cost, x)) + beyond)


def own_range(spec: SweepSpec, sizes: Sequence[ModelSize], counting: int) -> tuple[float, float]:
    """Range of N from which sizes are taken that the spec does not name, as far as `sizes` are measured."""
    smallest, ratio = spec.budgets[0].flops, spec.grid.tokens_per_param
    if counting < COUNTING or not sizes:
        centre = expected_optimum(smallest, ratio)
    else:
        centre = expected_centre(ratio, sizes, smallest)
    low, high = auto_range(centre, OWN_WINDOW)
    return low, high * math.sqrt(spec.budgets[-1].flops / smallest)


def even_sizes(grid: GridSection) -> int:
    """Number of sizes of every budget in a grid that does not taper."""
    return EVEN_SIZES if grid.sizes == "auto" else grid.sizes


def even_window(grid: GridSection) -> float:
    """Window of every budget in a grid that does not taper."""
    return EVEN_WINDOW if grid.window == "auto" else grid.window


def spacing(grid: GridSection) -> float:
    """Ratio s of neighbouring sizes: `sizes` of them span the window, s^(sizes - 1) = window².

    With `auto` it is that of 5 sizes and a window of 4: a grid that tapers takes some of the same sizes, or more.
    """
    return float(even_window(grid) ** (2 / (even_sizes(grid) - 1)))


def auto_range(expected: float, window: float = AUTO_WINDOW) -> tuple[float, float]:
    """Range of N for one budget with `auto` sizes: the expected optimum divided and multiplied by `window`.

    A minimum outside is reported as an edge.
    """
    return expected / window, expected * window


def rung_targets(spec: SweepSpec, low: float, high: float, anchor: float) -> list[float]:
    """Ideal N of an adaptive grid between `low` and `high`: even steps in log N, one at the first expected optimum."""
    step = spacing(spec.grid)
    first, last = math.ceil(math.log(low / anchor, step)), math.floor(math.log(high / anchor, step))
    return [anchor * step**k for k in range(first, last + 1)]


def between(known: Mapping[int, int], targets: Sequence[float]) -> list[int]:
    """Sizes to measure besides the `known` ones (N by size), so that every target N has one near it.

    They are multiples of the common divisor of the known sizes, and of 8 from 128 or 64 from 1024 on, for matrix units.
    """
    sizes = sorted(known)
    step = math.gcd(*sizes[1:]) if len(sizes) > 2 else 1  # without the smallest, which may be odd by chance
    x, y = np.log([known[s] for s in sizes]), np.log(sizes)
    wanted = []
    for target in targets:
        if not known[sizes[0]] <= target <= known[sizes[-1]]:
            continue
        size = float(np.exp(np.interp(math.log(target), x, y)))
        unit = math.lcm(step, 64) if size >= 1024 else math.lcm(step, 8) if size >= 128 else step
        wanted.append(max(unit, round(size / unit) * unit))
    return sorted(set(wanted) - known.keys())
