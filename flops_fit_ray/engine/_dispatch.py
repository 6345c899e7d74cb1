"""Hand out what runs next, and count how it ends. Knows no Ray."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flops_fit_ray.engine._crash import describe_death, is_hang
from flops_fit_ray.engine._live_plan import LivePlan
from flops_fit_ray.engine.interrupt import StopRequest
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.errors import DataDiffersError, StorageError
from flops_fit_ray.ledger import Failure, Ledger
from flops_fit_ray.planning import (
    Experiment,
    Plan,
    Queue,
    choose_starts,
    needed_trunks,
    trunk_numbers,
)
from flops_fit_ray.planning.slots import own_flops
from flops_fit_ray.storage.lock import hostname
from flops_fit_ray.storage.storage_path import REMOTE_POLL_SECONDS, is_remote, remove_tree

ASK_SECONDS = 0.25  # between looks for the trunk of one running experiment
MAX_RETURNS = 3  # of one experiment without an outcome, though its trial ended in peace


@dataclass(frozen=True, kw_only=True)
class Deaths:
    """Number of deaths in a row of an experiment's worker without a new checkpoint, and the newest checkpoint then."""

    count: int = 0
    step: int = -1


@dataclass(frozen=True)
class _Derived:
    """Facts that follow from a plan alone, computed once per plan."""

    plan: Plan
    queue: Queue
    trunks: Mapping[str, int]  # the number of each experiment's trunk
    sharing: Mapping[int, Sequence[Experiment]]  # the experiments of each trunk

    @classmethod
    def of(cls, plan: Plan) -> _Derived:
        numbers = trunk_numbers(plan.experiments)
        sharing: dict[int, list[Experiment]] = {}
        for e, number in zip(plan.experiments, numbers, strict=True):
            sharing.setdefault(number, []).append(e)
        trunks = {e.key: number for e, number in zip(plan.experiments, numbers, strict=True)}
        return cls(plan, Queue(plan), trunks, sharing)


class Dispatcher:
    """Hands out the experiments of a live plan, and counts how their trials end.

    Args:
        slots: what each trial gets, and how many run at a time.
        stop: once it is set nothing is handed out any more.
    """

    def __init__(
        self, live: LivePlan, slots: Slots, stop: StopRequest, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.slots, self._live, self._stop, self._clock = slots, live, stop, clock
        self.left_out: dict[str, str] = {}  # nodes that get no experiments, by Ray's id, and why
        self._ledger, self.paths = live.ledger, live.ledger.paths
        self._running: set[str] = set()
        self._adopted: set[str] = set()
        self._returned: Counter[str] = Counter()  # trials that ended without an error, and without an outcome
        self._deaths: dict[str, Deaths] = {}
        self._has_one: dict[str, tuple[bool, float]] = {}  # trunks of running experiments, and when that was seen
        self._of_plan: _Derived | None = None
        self._pruned = False
        self._chosen_for: int | None = None  # version of the plan
        self._looked = 0.0

    @property
    def plan(self) -> Plan:
        """Return the plan as far as it is decided."""
        return self._live.plan

    @property
    def has_room(self) -> bool:
        """Return True if fewer experiments run than may."""
        return len(self._running) < self.slots.count

    def look(self, keys: Iterable[str] | None = None) -> None:
        """Take in the outcomes of `keys`, of all open experiments by default."""
        running = {e.key: e for e in self.plan.experiments if e.key in self._running}
        new = self._live.look(keys, running)
        if new:
            self._prune(new)

    def choose_starts(self) -> None:
        """Decide which experiments begin from scratch rather than wait for a trunk."""
        if self._chosen_for == self._live.version:
            return
        wish = self._live.planner.spec.grid.start
        left = [e for e in self._live.open() if e.key not in self._running]
        self._live.begin_at(choose_starts(left, self.slots.count, own_flops, wish)[0])
        self._chosen_for = self._live.version

    def next(self) -> Experiment | None:
        """Return an experiment to start now, noted as running; None if all wait, or none is left (see `finished`)."""
        if self._stop.is_set or not self._due():
            return None
        self.choose_starts()  # what has ended was looked at when it did
        ready = self._derived().queue.ready(self._live.observed.keys(), self._running, self._has_trunk)
        chosen = next(ready, None)
        if chosen is None:
            return None
        try:
            if self._ledger.is_damaged(chosen.key):
                message = "it had ended, and its result or failure is gone or damaged: trained again"
                self._ledger.record_event(chosen.key, message, level="warning")
            self._ledger.record_planned(chosen)
        except StorageError as e:
            self._stop.set(e)
            return None
        self._running.add(chosen.key)
        return chosen

    def _derived(self) -> _Derived:
        if self._of_plan is None or self._of_plan.plan is not self.plan:
            self._of_plan = _Derived.of(self.plan)
        return self._of_plan

    def _due(self) -> bool:
        """Return True if it is time to look again: Tune asks many times a second, and a look may be a request."""
        if not is_remote(self.paths.root):
            return True
        now = self._clock()
        if now - self._looked < REMOTE_POLL_SECONDS / max(1, self.slots.count):
            return False
        self._looked = now
        return True

    def _has_trunk(self, key: str) -> bool:
        """Return True if a running experiment has passed the end of its trunk; a no is asked again later."""
        if key not in self._running:
            return False
        now = self._clock()
        known, asked = self._has_one.get(key, (False, -math.inf))
        if not known and now - asked >= ASK_SECONDS:
            known = bool(self.paths.trunk(key).finished())
            self._has_one[key] = known, now
        return known

    def finished(self) -> bool:
        """Return True if nothing will be handed out any more."""
        return self._stop.is_set or self._live.done()

    def stop_for(self, error: StorageError | DataDiffersError) -> None:
        """Hand out nothing more: no trial could end well."""
        self._stop.set(error)

    def leave_out(self, node: str, fault: str) -> None:
        """Begin nothing more on a node."""
        self.left_out = {**self.left_out, node: fault}

    def take_back(self, nodes: Iterable[str]) -> None:
        """Begin experiments on nodes again that were left out."""
        gone = set(nodes)
        self.left_out = {node: fault for node, fault in self.left_out.items() if node not in gone}

    def can_go_on(self, key: str) -> bool:
        """Return True if a trial of this experiment may continue: it is open, or has an outcome and returns at once."""
        return any(e.key == key for e in self.plan.experiments)

    def adopt(self, keys: Iterable[str]) -> None:
        """Take over trials that another driver started: their open experiments are running, and not handed out.

        Raises:
            StorageError: the directory cannot be written.
        """
        wanted = set(keys)
        for e in self._live.open():
            if e.key in wanted:
                self._ledger.record_planned(e)
                self._running.add(e.key)
                self._adopted.add(e.key)

    def forget_adopted(self) -> None:
        """Hand out again what was adopted and is not running."""
        self._running -= self._adopted
        self._adopted.clear()

    def ended(self, key: str, *, died: bool, said: str = "", refused: bool = False) -> None:
        """Note that the trial of an experiment is over.

        The death of a worker or node is no error of the experiment: it is handed out again, from its newest
        checkpoint. It fails after `max_retries` deaths in a row without a new checkpoint in between.

        Args:
            died: its process died, of which Ray `said` this.
            refused: its node cannot run it, and it was not begun.
        """
        self._running.discard(key)
        self._adopted.discard(key)
        self.look([key])
        if key in self._live.observed or self.finished() or refused:
            return
        if died:
            given_up = self._died(key, said)
        else:
            self._returned[key] += 1
            given_up = self._returned[key] >= MAX_RETURNS
        if given_up:
            with contextlib.suppress(StorageError):
                self._ledger.record_failure(vanished(key, self._ledger, said))
            self.look([key])

    def _died(self, key: str, said: str) -> bool:
        """Count a death, and return True if it was one too many."""
        limit = self._live.planner.spec.max_retries
        before = self._deaths.get(key, Deaths())
        step = max(self.paths.checkpoints(key).finished(), default=-1)
        deaths = Deaths(count=1 if step > before.step else before.count + 1, step=step)
        self._deaths[key] = deaths
        with contextlib.suppress(StorageError):
            self._ledger.record_death(key)
        why, trace = describe_death(self.paths, key, said)
        # A suspended machine looks like a process that hangs, but not twice
        if deaths.count > limit or (is_hang(trace) and deaths.count > 1):
            return True
        since = "the start" if step < 0 else f"the checkpoint at step {step}"
        self._ledger.record_event(
            key,
            f"its worker or node died ({deaths.count} of {limit} retries since {since}): started again; {why}",
            level="warning",
        )
        return False

    def _prune(self, ended: Collection[str]) -> None:
        """Remove the trunks that no open experiment will start from, now that these have ended."""
        derived = self._derived()
        # At first all of them: a driver that was killed may have left some
        trunks = {derived.trunks[key] for key in (ended if self._pruned else derived.trunks) if key in derived.trunks}
        self._pruned = True
        group = [e for trunk in trunks for e in derived.sharing[trunk]]
        keys = {e.key for e in group}
        needed = needed_trunks(group, self._live.observed.keys())
        for key in (self.paths.trunk_keys() & keys & self._live.observed.keys()) - needed:
            remove_tree(self.paths.trunk(key).directory)


def vanished(key: str, ledger: Ledger, error: str) -> Failure:
    """Return the failure of an experiment whose process died without an outcome."""
    attempts, early = ledger.num_attempts(key), ledger.num_early_deaths(key)
    why, trace = describe_death(ledger.paths, key, error)
    before = f", {early} of them before it began" if early else ""
    return Failure(
        key=key,
        status="stalled" if is_hang(trace) else "infrastructure",
        error=f"its worker ended {attempts + early} times without an outcome{before}: {why}",
        traceback=trace,
        tokens_seen=0,
        seconds=0.0,
        attempts=attempts,
        deaths=ledger.num_deaths(key),
        host=hostname(),
        finished_at=time.time(),
    )
