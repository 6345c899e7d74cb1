"""Experiments on slots in simulated time: when a sweep ends, and whether waiting for trunks delays it.

An experiment that begins at a trunk waits until its parent has got there. Among those that can begin, the one with the
longest way to the end (itself and what waits for it) goes first.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flops_fit_ray.planning.experiment import Experiment

WORTH_IT = 0.95  # of the makespan with trunks, below which starting from scratch is worth its FLOPs

Seconds = Callable[[Experiment], float]  # of the whole experiment from scratch


@dataclass(frozen=True, kw_only=True)
class Start:
    """One way to run what is planned: with all trunks, from scratch, or mixed."""

    name: str
    flops: float  # executed
    makespan: float  # in seconds, or in FLOPs where no rate is known


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When everything is done, and who began from scratch so as not to wait."""

    makespan: float
    scratch: frozenset[str]


def own_seconds(e: Experiment, seconds: Seconds) -> float:
    """What the experiment itself takes: without its parent's part."""
    return seconds(e) * (e.steps - e.start_step) / e.steps


def simulate(experiments: Sequence[Experiment], slots: int, seconds: Seconds, *, impatient: bool = False) -> Schedule:
    """Run everything on `slots`; `impatient`: an idle slot begins from scratch what would wait for longer than that."""
    return _Cluster(experiments, slots, seconds).run(impatient=impatient)


class SimulatedSlots:
    """Slots and a clock: experiments begin, and the next event is their trunk's end or their own."""

    def __init__(self, slots: int, seconds: Seconds) -> None:
        self.free, self.now = slots, 0.0
        self.trunk_at: dict[str, float] = {}  # the time at which the trunk of each experiment that has begun ends
        self._seconds = seconds
        self._events: list[tuple[float, int, bool, str]] = []  # time, number, ended, key

    def begin(self, e: Experiment) -> None:
        """Occupy a slot from now on."""
        self.free -= 1
        lasts = own_seconds(e, self._seconds)
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
        self._own = {e.key: own_seconds(e, seconds) for e in experiments}
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
        """Those that would end earlier from scratch than by waiting for their parent's trunk, the longest first."""
        found = [
            e
            for key, children in self._waiting.items()
            for e in children
            if self._slots.now + self._seconds(e) < self._slots.trunk_at.get(key, math.inf) + self._own[e.key]
        ]
        return sorted(found, key=lambda e: -self._seconds(e))


def trunk_share(e: Experiment) -> float:
    """The part of an experiment's own steps after which its trunk ends."""
    return max(e.trunk_step - e.start_step, 0) / max(e.steps - e.start_step, 1)


def tails(experiments: Sequence[Experiment], seconds: Seconds) -> dict[str, float]:
    """The time from the start of each experiment to the end of the last one that waits for it, by key."""
    tail: dict[str, float] = {}
    after: dict[str, float] = {}  # the longest tail of those that wait, by parent
    for e in sorted(experiments, key=lambda e: -e.trunk_step):  # a child's trunk is longer than its parent's
        own = own_seconds(e, seconds)
        tail[e.key] = max(own, own * trunk_share(e) + after.get(e.key, 0.0))
        if e.parent is not None:
            after[e.parent] = max(after.get(e.parent, 0.0), tail[e.key])
    return tail


def lower_bound(experiments: Sequence[Experiment], slots: int, seconds: Seconds) -> float:
    """No schedule ends earlier: the work over the slots, and the longest chain of trunks."""
    work = sum(own_seconds(e, seconds) for e in experiments)
    return max(work / slots, max(tails(experiments, seconds).values(), default=0.0))


def choose_starts(
    experiments: Sequence[Experiment], slots: int, seconds: Seconds, wish: str
) -> tuple[tuple[Experiment, ...], tuple[Start, ...], str]:
    """The experiments with the parents that they will really have, every way with its price, and the one taken.

    `wish` is `grid.start`: from scratch costs FLOPs, so `auto` takes it only where that ends clearly earlier.
    """
    bare = tuple(e.from_scratch() for e in experiments)
    ways = {"trunk": tuple(experiments), "scratch": bare}
    spans = {name: simulate(way, slots, seconds).makespan for name, way in ways.items()}
    mixed = simulate(experiments, slots, seconds, impatient=True)
    ways["mixed"] = tuple(e.from_scratch() if e.key in mixed.scratch else e for e in experiments)
    spans["mixed"] = mixed.makespan
    chosen = wish
    if wish == "auto":
        fastest = min(("mixed", "scratch"), key=lambda name: spans[name])
        chosen = fastest if spans[fastest] < WORTH_IT * spans["trunk"] else "trunk"
    starts = tuple(
        Start(name=name, flops=sum(e.flops_executed for e in way), makespan=spans[name]) for name, way in ways.items()
    )
    return ways[chosen], starts, chosen
