"""Simulated sweeps of a spec on a known loss surface: their cost, makespan, and the error of the fitted optimum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from flops_fit_ray.analysis import (
    FitOptions,
    Law,
    Method,
    MethodName,
    Points,
    ValleyFit,
    fit_minima,
    fit_sweep,
    json_value,
)
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.learning_rates import TriedRates, tried_rates
from flops_fit_ray.analysis.repetition import REPEATED
from flops_fit_ray.analysis.surface import fit_token_cost
from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import Measurements, Plan, Planner, trunk_numbers
from flops_fit_ray.planning.experiment import Experiment
from flops_fit_ray.planning.loss_surfaces import LossSurface
from flops_fit_ray.planning.simulation import Simulated, World, lr_factor_of, simulate_sweep
from flops_fit_ray.planning.slots import own_flops
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.sweep._result_arrays import token_cost
from flops_fit_ray.sweep.directory import fit_options

SLOTS = (2, 8, 64, 1024)
DRAWS = 400  # bootstrap draws of each simulated sweep
TARGET_RATIO = 10.0  # N_opt is predicted at this many times the largest budget
MAX_REPEATED = 300  # experiments; a larger sweep is simulated once


@dataclass(frozen=True, kw_only=True)
class Makespan:
    """Simulated time of a sweep on a number of slots, in units of FLOPs of one slot."""

    slots: int
    makespan: float
    over_bound: float  # makespan over its lower bound


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Errors and costs of simulated sweeps; means over the sweeps unless stated otherwise."""

    surface_name: str
    surface_formula: str
    surface: tuple[float, ...] | None  # E, A, B, alpha, beta; None where it is not of that form
    noise: float
    lr_factor: float  # the best learning rate over the spec's own
    sweeps: int
    answered: int  # sweeps whose fit gave a power law
    no_interval: int  # of these, such as gave no interval
    problem: str  # reason of the first that gave none; empty where all did
    experiments: float
    flops: float  # executed
    flops_full_grid: float
    target: float  # C at which N_opt is predicted
    params_true: float  # N_opt of the surface at the target
    bias: float  # mean of ln(N_opt / params_true)
    spread: float  # standard deviation of ln(N_opt / params_true)
    factor: float  # median; the interval of N_opt lies within N_opt/factor and N_opt·factor
    coverage: float  # share of the 95 % intervals that hold the true N_opt
    regret: float  # median, nats: L at the fitted N_opt less L at the true one
    exponent_bias: float
    makespans: tuple[Makespan, ...]
    max_epochs: float  # of an experiment of any sweep; 1 where no data are repeated
    methods: Mapping[MethodName, int]  # that answered, with the number of sweeps; empty where none did

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; null where no sweep gave a value."""
        plain: dict[str, Any] = json_value(asdict(self))
        return plain


def simulate_spec(
    spec: SweepSpec,
    plan: Plan,
    *,
    surface: LossSurface,
    noise: float,
    sweeps: int,
    slots: Sequence[int] = SLOTS,
    lr_factor: float | None = None,
) -> Simulation:
    """Simulate the sweep of a spec `sweeps` times, each with noise of its own.

    Args:
        noise: standard deviation of a loss, in nats.
        slots: numbers of slots whose makespan is computed, on the first sweep.
        lr_factor: the best learning rate over the spec's own; None: a rate that the spec gives is the best, and the
            general rule that `auto` begins with is 1.7 times too low.

    Raises:
        SpecError: the spec is a single run, or the surface has no minimum at the sweep's budgets, or is noisy.
    """
    if spec.is_one_run:
        raise SpecError("spec", ["budgets: has a single run, so nothing can be fitted; give more budgets or sizes"])
    planner = Planner(spec, plan.measurements, plan.constants)
    if lr_factor is None:
        lr_factor = lr_factor_of(spec)
    target = TARGET_RATIO * spec.budgets[-1].flops
    truth = _Truth(surface, spec, plan.measurements, target)
    worlds = [World(surface=surface, noise=noise, lr_factor=lr_factor, seed=seed) for seed in range(sweeps)]
    first = [simulate_sweep(planner, worlds[0], n, own_flops) for n in slots]
    if len(first[0].plan.experiments) > MAX_REPEATED:
        worlds = worlds[:1]
    ran = [first[0], *(simulate_sweep(planner, w, slots[0], own_flops) for w in worlds[1:])]
    methods = [answer_of(spec, s) for s in ran]
    errors = [_errors(truth, method.params_opt) for method in methods if method.params_opt is not None]
    table = np.array(errors) if errors else np.full((1, 5), np.nan)  # (sweeps, 5)
    known = ~np.isnan(table[:, 1])
    factors, held = table[known, 1], table[known, 2]
    return Simulation(
        surface_name=surface.name,
        surface_formula=surface.formula,
        surface=surface.constants,
        noise=noise,
        lr_factor=lr_factor,
        sweeps=len(worlds),
        answered=len(errors),
        no_interval=len(errors) - len(factors),
        problem=next((method.reason for method in methods if method.params_opt is None), ""),
        experiments=float(np.mean([len(s.plan.experiments) for s in ran])),
        flops=float(np.mean([sum(e.flops_executed for e in s.plan.experiments) for s in ran])),
        flops_full_grid=7 * sum(b.flops for b in spec.budgets),
        target=target,
        params_true=truth.params,
        bias=float(table[:, 0].mean()),
        spread=float(table[:, 0].std()),
        factor=float(np.median(factors)) if len(factors) else math.nan,
        coverage=float(held.mean()) if len(held) else math.nan,
        regret=float(np.median(table[:, 3])),
        exponent_bias=float(table[:, 4].mean()),
        makespans=tuple(
            Makespan(slots=n, makespan=s.makespan, over_bound=s.makespan / s.bound)
            for n, s in zip(slots, first, strict=True)
        ),
        max_epochs=max(max_epochs(s) for s in ran),
        methods=dict(Counter(method.name for method in methods if method.params_opt is not None)),
    )


def answer_of(spec: SweepSpec, simulated: Simulated) -> Method:
    """Return the method that answers for a simulated sweep: valleys, and of repeated data what `fit` takes."""
    if max_epochs(simulated) <= REPEATED:
        return fit_simulated(spec, simulated).method
    points, options = _input_of(spec, simulated, DRAWS)
    return fit_sweep(points, options).answer


def max_epochs(simulated: Simulated) -> float:
    """Return the largest number of epochs of an experiment, at least 1; streams of unknown length count as new."""
    return max([1.0, *(e.epochs for e, _ in simulated.rows() if e.epochs is not None)])


def fit_simulated(spec: SweepSpec, simulated: Simulated, draws: int = DRAWS) -> ValleyFit:
    """Fit the valleys of a simulated sweep by the spec's own options."""
    return fit_minima(*_input_of(spec, simulated, draws))


def _input_of(spec: SweepSpec, simulated: Simulated, draws: int) -> tuple[Points, FitOptions]:
    """Return the losses of a simulated sweep and the options by which its spec has them fitted."""
    every = ((e, loss) for e in simulated.plan.experiments if (loss := simulated.observed[e.key].loss) is not None)
    tried = None if simulated.plan.lr is None else tried_in(every)
    points = simulated_points(simulated.rows(), shared=spec.grid.trunk, tried=tried)
    points = replace(points, token_cost=token_cost(simulated.plan.measurements))
    return points, replace(fit_options(spec, simulated.plan.reach), draws=draws)


def tried_in(experiments: Iterable[tuple[Experiment, float]]) -> TriedRates | None:
    """Return the rates that experiments tried at one N and D, probes and checks too, from their losses."""
    tried = [(e.params, e.tokens, e.recipe.lr, loss) for e, loss in experiments]
    return tried_rates(*np.array(tried, dtype=np.float64).T)


def simulated_points(
    rows: Sequence[tuple[Experiment, float]], *, shared: bool, tried: TriedRates | None = None
) -> Points:
    """Return the losses as arrays; `shared`: experiments of one trunk count as one run; `tried` as of `Points`."""

    def column(name: str) -> Floats:
        return np.array([getattr(e, name) for e, _ in rows], dtype=np.float64)

    tokens, seen = column("tokens"), np.array([max(e.epochs or 1.0, 1.0) for e, _ in rows])
    return Points(
        budget=column("budget"),
        flops=column("flops"),
        params=column("params"),
        tokens=tokens,
        unique=tokens / seen if (seen > REPEATED).any() else None,
        loss=np.array([loss for _, loss in rows]),
        lr=None if tried is None else np.array([e.recipe.lr for e, _ in rows]),
        tried=tried,
        run=np.array(trunk_numbers(e for e, _ in rows), dtype=np.int64) if shared else None,
    )


class _Truth:
    """Optimum of a surface at the measured FLOPs per token, a smooth curve through all sizes, instead of 6·N."""

    def __init__(self, surface: LossSurface, spec: SweepSpec, measurements: Measurements, target: float) -> None:
        self._surface = surface
        params, per_token = token_cost(measurements)
        self._between = (float(params.min()), float(params.max()))
        self._cost = fit_token_cost(params, np.ones_like(params), per_token)
        self.target = target  # C
        self.params = self.optimum(target)  # N_opt there
        if self.optimum(target) != self.params:
            fault = (
                f"{surface.name!r} returns other losses for the same N and D when called again; leave noise to --noise"
            )
            raise SpecError("--surface", [fault])
        # Exponent of N_opt over C: of the power law through the optima of the first and the last budget
        low, high = spec.budgets[0].flops, spec.budgets[-1].flops
        self.exponent = math.log(self.optimum(high) / self.optimum(low)) / math.log(high / low)

    def flops_per_token(self, params: Floats) -> Floats:
        """Return f(N) of these sizes."""
        return np.asarray(np.exp(self._cost.per_token(np.log(params))[0]))

    def loss(self, params: Floats, budget: float) -> Floats:
        """Return L of these sizes at C = `budget`, without noise."""
        return np.asarray(self._surface.loss(params, budget / self.flops_per_token(params)))

    def optimum(self, budget: float) -> float:
        """Return N_opt at C = `budget`."""
        return self._surface.optimum(budget, self.flops_per_token, self._between)[0]


def _errors(truth: _Truth, law: Law) -> tuple[float, ...]:
    """Return ln(N_opt/true), the interval's factor, 1 if it holds the truth, regret, error of the exponent.

    Without an interval the factor is NaN.
    """
    n, within = law.at(truth.target), law.interval(truth.target, 0.95)
    losses = truth.loss(np.array([n, truth.params]), truth.target)
    return (
        math.log(n / truth.params),
        math.nan if within is None else within.factor_about(n),
        float(within is not None and within.holds(truth.params)),
        float(losses[0] - losses[1]),
        law.exponent - truth.exponent,
    )
