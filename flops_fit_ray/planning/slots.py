"""List scheduling of experiments on slots: the makespan of a sweep, and the delay by waiting for trunks.

An experiment that starts at a trunk waits until its parent has reached it. Among those that can start, the one with the
longest remaining path (itself and all that waits for it) goes first.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flops_fit_ray.planning.experiment import Experiment

WORTH_IT = 0.95  # of the makespan with trunks, below which starting from scratch is worth the extra FLOPs

Seconds = Callable[[Experiment], float]  # of the work that an experiment does itself, without that of its parent


@dataclass(frozen=True, kw_only=True)
class StartOption:
    """One way to start the experiments of a plan: from trunks, from scratch, or mixed."""

    name: str
    flops: float  # executed
    makespan: float  # in seconds, or in FLOPs where no rate is known


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Makespan of a schedule, and the keys of experiments that started from scratch instead of waiting."""

    makespan: float
    scratch: frozenset[str]


def own_flops(e: Experiment) -> float:
    """FLOPs of the steps that the experiment takes itself: its seconds where no rate is known."""
    return e.flops_executed


def simulate(experiments: Sequence[Experiment], slots: int, seconds: Seconds, *, impatient: bool = False) -> Schedule:
    """Schedule experiments on `slots`; if `impatient`, an idle slot starts from scratch what would wait longer."""
    return _Cluster(experiments, slots, seconds).run(impatient=impatient)


class SimulatedSlots:
    """Slots and a clock: experiments start, and events are the ends of their trunks and their own."""

    def __init__(self, slots: int, seconds: Seconds) -> None:
        self.free, self.now = slots, 0.0
        self.trunk_at: dict[str, float] = {}  # the time at which the trunk of each experiment that has begun ends
        self._seconds = seconds
        self._events: list[tuple[float, int, bool, str]] = []  # time, number, ended, key

    def begin(self, e: Experiment) -> None:
        """Occupy a slot from now on."""
        self.free -= 1
        lasts = self._seconds(e)
        self.trunk_at[e.key] = self.now + lasts * trunk_share(e)
        number = 2 * len(self.trunk_at)
        heapq.heappush(self._events, (self.trunk_at[e.key], number, False, e.key))
        heapq.heappush(self._events, (self.now + lasts, number + 1, True, e.key))

    def advance(self) -> tuple[str, bool] | None:
        """Move the clock to the next event: the experiment's key, and True where it has ended; None after the last."""
        if not self._events:
            return None
        self.now, _, ended, key = heapq.heappop(self._events)
        self.free += ended
        return key, ended


class _Cluster:
    """Experiments that are all known at first, on simulated slots."""

    def __init__(self, experiments: Sequence[Experiment], slots: int, seconds: Seconds) -> None:
        self._seconds = seconds
        self._slots = SimulatedSlots(slots, seconds)
        self._own = {e.key: seconds(e) for e in experiments}
        self._scratch: dict[str, float] = {}
        self._tail = tails(experiments, seconds)
        self._order = {e.key: i for i, e in enumerate(experiments)}
        self._waiting: dict[str, list[Experiment]] = {}
        self._ready: list[tuple[float, int, Experiment]] = []
        for e in experiments:
            if e.parent in self._own:
                self._waiting.setdefault(str(e.parent), []).append(e)
            else:
                self._queue(e)

    def _queue(self, e: Experiment) -> None:
        heapq.heappush(self._ready, (-self._tail[e.key], self._order[e.key], e))

    def run(self, *, impatient: bool) -> Schedule:
        """Run everything to its end."""
        slots = self._slots
        scratch: set[str] = set()
        while True:
            while slots.free and self._ready:
                slots.begin(heapq.heappop(self._ready)[2])
            for e in self._impatient()[: slots.free] if impatient and slots.free else ():
                self._waiting[str(e.parent)].remove(e)
                scratch.add(e.key)
                slots.begin(e.from_scratch())
            event = slots.advance()
            if event is None:
                return Schedule(makespan=slots.now, scratch=frozenset(scratch))
            for child in self._waiting.pop(event[0], ()):
                self._queue(child)

    def _impatient(self) -> list[Experiment]:
        """Experiments that would end earlier from scratch than by waiting for the trunk, the longest first."""
        found = [
            e
            for key, children in self._waiting.items()
            for e in children
            if self._slots.now + self._alone(e) < self._slots.trunk_at.get(key, math.inf) + self._own[e.key]
        ]
        return sorted(found, key=lambda e: -self._alone(e))

    def _alone(self, e: Experiment) -> float:
        """Seconds of an experiment from scratch."""
        if e.key not in self._scratch:
            self._scratch[e.key] = self._seconds(e.from_scratch())
        return self._scratch[e.key]


def trunk_share(e: Experiment) -> float:
    """Share of the experiment's own steps after which its trunk ends."""
    return max(e.trunk_step - e.start_step, 0) / max(e.steps - e.start_step, 1)


def tails(experiments: Sequence[Experiment], seconds: Seconds) -> dict[str, float]:
    """Time from the start of each experiment to the end of the last one that waits for it, by key.

    tail = max(own, own·trunk_share + longest tail of its children): the critical path of list scheduling.
    """
    tail: dict[str, float] = {}
    after: dict[str, float] = {}  # the longest tail of those that wait, by parent
    for e in sorted(experiments, key=lambda e: -e.trunk_step):  # a child's trunk is longer than its parent's
        own = seconds(e)
        tail[e.key] = max(own, own * trunk_share(e) + after.get(e.key, 0.0))
        if e.parent is not None:
            after[e.parent] = max(after.get(e.parent, 0.0), tail[e.key])
    return tail


def lower_bound(experiments: Sequence[Experiment], slots: int, seconds: Seconds) -> float:
    """Lower bound of the makespan: max(work / slots, critical path through the trunks)."""
    work = sum(map(seconds, experiments))
    return max(work / slots, max(tails(experiments, seconds).values(), default=0.0))


def choose_starts(
    experiments: Sequence[Experiment], slots: int, seconds: Seconds, start_mode: str
) -> tuple[tuple[Experiment, ...], tuple[StartOption, ...], str]:
    """Choose which experiments start from trunks; return them, the cost of every way, and the name of the chosen one.

    `start_mode` is `grid.start`. Starting from scratch costs FLOPs: `auto` does it if the sweep ends clearly earlier.
    """
    bare = tuple(e.from_scratch() for e in experiments)
    ways = {"trunk": tuple(experiments), "scratch": bare}
    spans = {name: simulate(way, slots, seconds).makespan for name, way in ways.items()}
    mixed = simulate(experiments, slots, seconds, impatient=True)
    ways["mixed"] = tuple(e.from_scratch() if e.key in mixed.scratch else e for e in experiments)
    spans["mixed"] = mixed.makespan
    chosen = start_mode
    if start_mode == "auto":
        fastest = min(("mixed", "scratch"), key=lambda name: spans[name])
        chosen = fastest if spans[fastest] < WORTH_IT * spans["trunk"] else "trunk"
    starts = tuple(
        StartOption(name=name, flops=sum(e.flops_executed for e in way), makespan=spans[name])
        for name, way in ways.items()
    )
    return ways[chosen], starts, chosen
