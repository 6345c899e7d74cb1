"""A sweep in simulated time on a known loss surface: the planner and the scheduler are real, training is not.

Losses are the surface's, plus the penalty of a wrong learning rate, plus noise, a part of which is shared by
experiments of one trunk. Tokens that are seen again count for less (`analysis.repetition`). Times follow from the FLOPs
executed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_ray.analysis.repetition import REPEATED, worth
from flops_fit_ray.planning._plan import Plan
from flops_fit_ray.planning._planner import Planner, next_experiments
from flops_fit_ray.planning.cells import resolve_lr
from flops_fit_ray.planning.experiment import IN_FIT, Experiment, Observation
from flops_fit_ray.planning.loss_surfaces import LossSurface
from flops_fit_ray.planning.slots import Seconds, SimulatedSlots, choose_starts
from flops_fit_ray.spec import SweepSpec


@dataclass(frozen=True, kw_only=True)
class World:
    """The known answer of a simulated sweep."""

    surface: LossSurface
    noise: float  # standard deviation of a loss, in nats
    # Share of the variance that experiments of one trunk have in common; of the demo's about 0.8 (docs/defaults.md)
    trunk_share: float = 0.5
    lr_factor: float = 1.7  # the best rate over the spec's own (`resolve_lr`: the general rule for `auto`), everywhere
    seed: int = 0
    # The best rate at N and D, where the spec's own rule has another form; None: as `lr_factor` says
    best_lr: Callable[[float, float], float] | None = None

    def loss(self, e: Experiment, own_lr: float) -> float:
        """Return the loss of an experiment, a pure function of its key and the seed; `own_lr` is the spec's rate."""
        own = np.random.default_rng([self.seed, int(e.key, 16)]).standard_normal()
        trunk = np.random.default_rng([self.seed, e.params, e.recipe.seed, int(1e12 * e.recipe.lr)]).standard_normal()
        scatter = math.sqrt(1 - self.trunk_share) * own + math.sqrt(self.trunk_share) * trunk
        best = own_lr * self.lr_factor if self.best_lr is None else self.best_lr(e.params, e.tokens)
        tokens = e.tokens if e.epochs is None or e.epochs <= REPEATED else float(worth(e.tokens, e.epochs))
        clean = self.surface.loss(e.params, tokens) + lr_penalty(e.recipe.lr / best)
        return float(clean + self.noise * scatter)


def lr_factor_of(spec: SweepSpec) -> float:
    """Return the best rate over the spec's own: 1 for a rate that it gives, as nothing else is known of it."""
    return World.lr_factor if spec.train.lr == "auto" else 1.0


def lr_penalty(ratio: float) -> float:
    """Penalty in nats of a rate that is `ratio` times the best, fitted to medians of the 1,911 runs of Step Law.

    Twice the best rate costs 0.019, four times 0.097, half of it 0.007 (Li et al. 2025).
    """
    z = math.log2(ratio)
    return 0.013 * z**2 + 0.006 * z**3 if z > -1 else 0.007 * z**2


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """The result of a simulated sweep."""

    plan: Plan
    observed: Mapping[str, Observation]
    makespan: float  # in the unit of `seconds`
    work: float  # busy time of all slots
    bound: float  # lower bound of the makespan of the experiments that were run

    def rows(self) -> list[tuple[Experiment, float]]:
        """Return the experiments that make the valleys, with their losses."""
        rows = []
        replaced = {e.of for e in self.plan.experiments if e.role == "rerun"}
        for e in self.plan.experiments:
            loss = self.observed[e.key].loss
            if e.role in IN_FIT and e.key not in replaced and loss is not None:
                rows.append((e, loss))
        return rows


def simulate_sweep(planner: Planner, world: World, slots: int, seconds: Seconds) -> Simulated:
    """Simulate a whole sweep: plan, start experiments, take results as they arrive, plan again."""
    return _Sweep(planner, world, slots, seconds).run()


class _Sweep:
    def __init__(self, planner: Planner, world: World, slots: int, seconds: Seconds) -> None:
        self._planner, self._world, self._seconds = planner, world, seconds
        self._sizes = {s.size: s for s in planner.measurements.every_size}
        self._count, self._slots = slots, SimulatedSlots(slots, seconds)
        self._observed: dict[str, Observation] = {}
        self._started: dict[str, Experiment] = {}
        self._trunks: set[str] = set()
        self._plan = planner.plan(forecast=False)

    def run(self) -> Simulated:
        if self._plan.final:
            return self._all_at_once()
        while True:
            self._hand_out()
            event = self._slots.advance()
            if event is None:
                break
            key, ended = event
            self._trunks.add(key)
            if ended:
                self._observed[key] = self._finding(self._started[key])
                if not self._plan.final:
                    self._plan = self._planner.plan(self._observed, forecast=False)
        return self._simulated([self._started[e.key] for e in self._plan.experiments], self._slots.now)

    def _finding(self, e: Experiment) -> Observation:
        own_lr = resolve_lr(self._planner.spec, self._sizes[e.size], e.budget)
        return Observation(loss=self._world.loss(e, own_lr))

    def _all_at_once(self) -> Simulated:
        """Simulate a plan without decisions on the way: one schedule is the whole sweep."""
        ran, starts, taken = choose_starts(
            self._plan.experiments, self._count, self._seconds, self._planner.spec.grid.start
        )
        self._observed = {e.key: self._finding(e) for e in ran}
        return self._simulated(ran, next(s.makespan for s in starts if s.name == taken))

    def _simulated(self, ran: Sequence[Experiment], makespan: float) -> Simulated:
        work = sum(map(self._seconds, ran))
        longest = max(map(self._seconds, ran))
        return Simulated(
            plan=self._plan,
            observed=self._observed,
            makespan=makespan,
            work=work,
            bound=max(work / self._count, longest),
        )

    def _hand_out(self) -> None:
        if not self._slots.free:
            return
        left = [e for e in self._plan.experiments if e.key not in self._started]
        chosen = {e.key: e for e in choose_starts(left, self._count, self._seconds, self._planner.spec.grid.start)[0]}
        plan = self._plan.with_experiments(chosen)
        running = self._started.keys() - self._observed.keys()
        ready = next_experiments(plan, self._observed.keys(), running, lambda key: key in self._trunks)
        for e in ready[: self._slots.free]:
            self._started[e.key] = e
            self._slots.begin(e)
