"""A spec on a surface with a known answer: what its sweep would cost, when it would end, and how right it would be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from flops_fit_ray.analysis import Points, SweepFit, fit_sweep
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import Measurements, Plan, Planner, trunk_numbers
from flops_fit_ray.planning.experiment import Experiment
from flops_fit_ray.planning.simulation import Simulated, World, simulate_sweep, stated_surface
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.sweep.directory import fit_options

SLOTS = (2, 8, 64, 1024)
DRAWS = 400  # of the bootstrap of each sweep
BEYOND = 10.0  # times the largest budget: where the answer is asked for
MAX_MEASURED = 300  # experiments of a sweep, above which one is enough


@dataclass(frozen=True, kw_only=True)
class Makespan:
    """One number of slots. Seconds are FLOPs over FLOP/s where a rate is known, else FLOPs."""

    slots: int
    makespan: float
    over_bound: float  # makespan / the least that these experiments could take


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What simulated sweeps came to; means over sweeps unless said."""

    surface: tuple[float, ...]
    noise: float
    sweeps: int
    answered: int  # sweeps with a law
    experiments: float
    flops: float  # executed
    flops_full_grid: float
    target: float
    params_true: float
    bias: float  # mean of ln(N_opt / true)
    spread: float  # standard deviation of the same
    factor: float  # median of the interval's factor: N/factor to N·factor
    coverage: float  # of 95 % intervals
    regret: float  # median, nats: L at the N that was found less L at the true one
    exponent_bias: float
    makespans: tuple[Makespan, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def simulate_spec(
    spec: SweepSpec,
    plan: Plan,
    *,
    surface: str,
    noise: float,
    sweeps: int,
    slots: Sequence[int] = SLOTS,
) -> Simulation:
    """Simulate the sweep of a spec again and again.

    Args:
        surface: a name or `E,A,B,alpha,beta`.
        noise: of a loss, in nats.
        slots: for which the makespan is worked out, on the first sweep.

    Raises:
        SpecError: the surface is none, or the spec's budgets are too few.
    """
    try:
        constants = stated_surface(surface)
    except ValueError as e:
        raise SpecError("--surface", [str(e)]) from e
    if spec.is_one_run:
        raise SpecError("spec", ["budgets: has one run; there is nothing to simulate"])
    planner = Planner(spec, plan.measurements, plan.constants)
    worlds = [World(surface=constants, noise=noise, seed=seed) for seed in range(sweeps)]
    first = [simulate_sweep(planner, worlds[0], n, lambda e: e.flops) for n in slots]
    if len(first[0].plan.experiments) > MAX_MEASURED:
        worlds = worlds[:1]
    ran = [first[0], *(simulate_sweep(planner, w, slots[0], lambda e: e.flops) for w in worlds[1:])]
    target = BEYOND * spec.budgets[-1].flops
    truth = _Truth(worlds[0], plan.measurements)
    marks = [mark for s in ran if (mark := _mark(spec, truth, s, target)) is not None]
    table = np.array(marks) if marks else np.full((1, 5), np.nan)
    return Simulation(
        surface=tuple(constants),
        noise=noise,
        sweeps=len(worlds),
        answered=len(marks),
        experiments=float(np.mean([len(s.plan.experiments) for s in ran])),
        flops=float(np.mean([sum(e.flops_executed for e in s.plan.experiments) for s in ran])),
        flops_full_grid=7 * sum(b.flops for b in spec.budgets),
        target=target,
        params_true=truth.optimum(target),
        bias=float(table[:, 0].mean()),
        spread=float(table[:, 0].std()),
        factor=float(np.nanmedian(table[:, 1])),
        coverage=float(table[:, 2].mean()),
        regret=float(np.median(table[:, 3])),
        exponent_bias=float(table[:, 4].mean()),
        makespans=tuple(
            Makespan(slots=n, makespan=s.makespan, over_bound=s.makespan / s.bound)
            for n, s in zip(slots, first, strict=True)
        ),
    )


def fit_simulated(spec: SweepSpec, simulated: Simulated, draws: int = DRAWS) -> SweepFit:
    """The fit of a simulated sweep, as that of a real one is made."""
    points = simulated_points(simulated.rows(), shared=spec.grid.trunk)
    return fit_sweep(points, replace(fit_options(spec), draws=draws))


def simulated_points(rows: Sequence[tuple[Experiment, float]], *, shared: bool) -> Points:
    """Losses as arrays; `shared`: experiments of one trunk are one run."""

    def column(name: str) -> Floats:
        return np.array([getattr(e, name) for e, _ in rows], dtype=np.float64)

    return Points(
        budget=column("budget"),
        flops=column("flops"),
        params=column("params"),
        tokens=column("tokens"),
        loss=np.array([loss for _, loss in rows]),
        run=np.array(trunk_numbers(e for e, _ in rows), dtype=np.int64) if shared else None,
    )


class _Truth:
    """The optimum of a surface where a token costs what the measured models really cost, and not 6·N FLOPs."""

    def __init__(self, world: World, measurements: Measurements) -> None:
        sizes = sorted(measurements.sizes, key=lambda s: s.params)
        self._surface = world.surface
        self._x, self._y = np.log([s.params for s in sizes]), np.log([s.flops_per_token for s in sizes])

    def loss(self, params: Floats, budget: float) -> Floats:
        """L of these sizes at C = `budget`, without noise."""
        e, a, b, alpha, beta = self._surface
        x = np.log(params)
        beyond = np.maximum(x - self._x[-1], 0) + np.minimum(x - self._x[0], 0)  # a token costs ~N outside
        tokens = budget / np.exp(np.interp(x, self._x, self._y) + beyond)
        return np.asarray(e + a / params**alpha + b / tokens**beta)

    def optimum(self, budget: float) -> float:
        """N_opt at C = `budget`."""
        grid = np.exp(np.linspace(self._x[0] - 5, self._x[-1] + 10, 6001))
        return float(grid[int(np.argmin(self.loss(grid, budget)))])

    def exponent(self, low: float, high: float) -> float:
        """Of N_opt between two budgets."""
        return math.log(self.optimum(high) / self.optimum(low)) / math.log(high / low)


def _mark(spec: SweepSpec, truth: _Truth, simulated: Simulated, target: float) -> tuple[float, ...] | None:
    """ln(N/true), the interval's factor, whether it holds the truth, regret, error of the exponent."""
    law = fit_simulated(spec, simulated).methods["valley"].params_opt
    if law is None:
        return None
    n, true = law.at(target), truth.optimum(target)
    within = law.interval(target, 0.95)
    losses = truth.loss(np.array([n, true]), target)
    return (
        math.log(n / true),
        math.nan if within is None else max(within.high / n, n / within.low),
        float(within is not None and within.holds(true)),
        float(losses[0] - losses[1]),
        law.exponent - truth.exponent(spec.budgets[0].flops, spec.budgets[-1].flops),
    )
