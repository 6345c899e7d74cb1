"""Search for the set of runs that is worth most: greedy by moves, then exchanged run by run.

The worth of a set is what the same certainty would cost: with w the half width that it leaves under a law and F all
FLOPs, spent before and added, repeating everything keeps F·w² as it is, so a set is good where it lowers

    score = sum over laws of weight·ln w² + ln F
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flops_fit_ray.analysis._design import LinearLaw
from flops_fit_ray.analysis.arrays import Floats, Ints

EXCHANGES = 2  # rounds at most
BETTER = 1e-6  # of a score, from which a run is exchanged
PRICE = 0.5  # weight of ln FLOPs in a score
STARTS = 2  # moves of several runs that a search begins with, the best of them

Set = tuple[int, ...]  # of candidates, a repeated one twice


@dataclass(frozen=True, kw_only=True, eq=False)
class WeighedLaw:
    """A law that the runs are to narrow. `now` is half the interval of ln N_opt that it gives today.

    `floor` is the part of it that no run narrows, in quadrature.
    """

    law: LinearLaw
    weight: float
    now: float
    floor: float = 0.0

    def after(self, sets: Ints) -> Floats:
        """Half width of ln N_opt (sets,) expected after each set: today's, narrowed as the linear model's."""
        if not self.floor:
            return np.asarray(self.now * self.law.half_width(sets) / self._before)
        own = np.sqrt(max(self.now**2 - self.floor**2, 0.0))
        return np.asarray(np.hypot(own * self.law.half_width(sets) / self._before, self.floor))

    @cached_property
    def _before(self) -> float:
        """Half width of the linear model without further runs."""
        return float(self.law.half_width(np.empty((1, 0), dtype=np.int64))[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class SetSearch:
    """Candidates and rules of one choice."""

    laws: Sequence[WeighedLaw]
    moves: Sequence[Set]  # runs that are only chosen together, or one
    allowed: Callable[[Set], bool]  # of a whole set
    price: Callable[[Set], float]  # FLOPs that a set executes
    spent: float  # FLOPs, before
    at_most: float  # FLOPs of a set
    free: Callable[[Set], Set] = lambda chosen: ()  # runs that are there, and that a set makes useful

    def scores(self, sets: Sequence[Set]) -> Floats:
        """Score of sets of equal size."""
        found = np.empty(len(sets))
        whole = [(*chosen, *self.free(chosen)) for chosen in sets]
        sizes = np.array([len(chosen) for chosen in whole])
        for size in np.unique(sizes):
            mine = np.flatnonzero(sizes == size)
            index = np.array([whole[i] for i in mine], dtype=np.int64).reshape(len(mine), size)
            found[mine] = sum(2 * one.weight * np.log(np.maximum(one.after(index), 1e-12)) for one in self.laws)
        return found + PRICE * np.log(self.spent + np.array([self.price(chosen) for chosen in sets]))

    def best(self, count: int) -> Set:
        """Return the best set of `count` runs that is found; fewer where there are no more moves."""
        several = [move for move in self.moves if 1 < len(move) <= count and self._can_be(move)]
        order = np.argsort(self._of_moves((), several))
        starts: list[Set] = [(), *(several[int(i)] for i in order[:STARTS])]
        found = [self._exchanged(self._filled(start, count)) for start in starts]
        longest = max(map(len, found))
        found = [chosen for chosen in found if len(chosen) == longest]
        return found[int(np.argmin(self.scores(found)))]

    def _can_be(self, chosen: Set) -> bool:
        return self.price(chosen) <= self.at_most and self.allowed(chosen)

    def _of_moves(self, chosen: Set, moves: Sequence[Set]) -> Floats:
        found = np.empty(len(moves))
        sizes = np.array([len(move) for move in moves])
        for size in np.unique(sizes):
            mine = np.flatnonzero(sizes == size)
            found[mine] = self.scores([(*chosen, *moves[int(i)]) for i in mine])
        return found

    def _filled(self, chosen: Set, count: int) -> Set:
        """Add the move that lowers the score most for each of its runs, until there are `count`."""
        while len(chosen) < count:
            fitting = [m for m in self.moves if len(chosen) + len(m) <= count and self._can_be((*chosen, *m))]
            if not fitting:
                break
            now = self.scores([chosen])[0]
            each = (self._of_moves(chosen, fitting) - now) / np.array([len(move) for move in fitting])
            chosen = (*chosen, *fitting[int(np.argmin(each))])
        return chosen

    def _exchanged(self, chosen: Set) -> Set:
        """Exchange one run at a time for another while that lowers the score."""
        every = sorted({i for move in self.moves for i in move})
        for _ in range(EXCHANGES):
            before = chosen
            for place in range(len(chosen)):
                sets = [(*chosen[:place], i, *chosen[place + 1 :]) for i in every]
                sets = [one for one in sets if self._can_be(one)]
                if not sets:
                    continue
                scores = self.scores(sets)
                if scores.min() < self.scores([chosen])[0] - BETTER:
                    chosen = sets[int(np.argmin(scores))]
            if chosen == before:
                break
        return chosen

    def in_order(self, chosen: Set) -> list[Set]:
        """Order a set into steps that are allowed one after the other, those that lower the width most per FLOP first.

        A step is one run, or the least number of them that is allowed.
        """
        left = list(chosen)
        done: Set = ()
        steps: list[Set] = []
        while left:
            groups = self._steps(done, left)
            before = self._width(done)
            gains = [
                (before - self._width((*done, *g))) / max(self.price((*done, *g)) - self.price(done), 1e-300)
                for g in groups
            ]
            step = groups[int(np.argmax(gains))]
            for i in step:
                left.remove(i)
            done = (*done, *step)
            steps.append(step)
        return steps

    def _steps(self, done: Set, left: Sequence[int]) -> list[Set]:
        single = [(i,) for i in dict.fromkeys(left) if self.allowed((*done, i))]
        moves = [m for m in self._joined(done, left) if self.allowed((*done, *m))]
        return [*single, *moves] or [tuple(left)]

    def _joined(self, done: Set, left: Sequence[int]) -> list[Set]:
        """Smallest sets of the candidates left that are allowed together, and not alone."""
        alone = [i for i in left if not self.allowed((*done, i))]
        for size in (2, 3, 4):
            found = [m for m in dict.fromkeys(itertools.combinations(alone, size)) if self.allowed((*done, *m))]
            if found:
                return found
        return []

    def _width(self, chosen: Set) -> float:
        return float(self.scores([chosen])[0] - PRICE * np.log(self.spent + self.price(chosen)))
