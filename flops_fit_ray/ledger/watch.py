"""Telling whoever watches what happens, by reading the ledger: in the driver, or in another terminal.

No Tune callback: one that raises aborts a sweep.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence, Set
from typing import Protocol

from flops_fit_ray.errors import first_line
from flops_fit_ray.ledger import Event, ExperimentResult, Failure, Ledger, Progress
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.planning import Plan
from flops_fit_ray.storage.storage_path import REMOTE_POLL_SECONDS, is_remote

POLL_SECONDS = 0.5
HURRIED_SECONDS = 2.0  # for the last words to somebody else, when the sweep is being stopped
AT_MOST_LOOKED_AT = 200  # running experiments a second


class View(Protocol):
    """Interface of a console or tracker."""

    every: float  # seconds between two words on what runs

    def begin(self) -> None:
        """The sweep is on its way, and will be followed."""

    def end(self) -> None:
        """Not any more, for now."""

    def plan(self, plan: Plan, done: int) -> None:
        """Show the plan; called again when it has grown."""

    def cluster(self, cluster: Cluster) -> None:
        """Show the machines that experiments run on, and the slots."""

    def outcome(self, record: ExperimentResult | Failure, done: int, total: int) -> None:
        """One experiment ended."""

    def reopened(self, keys: Set[str]) -> None:
        """Count these, which had ended, as open again."""

    def event(self, event: Event) -> None:
        """Something happened to one; a warning should be shown at once."""

    def progress(self, running: list[Progress], done: int, total: int) -> None:
        """Show the running experiments."""


class Watcher:
    """Follows the ledger in a thread of its own and hands what is new to a view.

    A view that raises is told about in one line, and is asked again: neither the sweep nor the view ends with it.

    Args:
        poll_seconds: between two looks.
        patience: seconds that the view has for its last words; None waits for it.
        name: of the view, for those who need not wait for it.
        say: told if it raised or was left behind.
    """

    def __init__(
        self,
        view: View,
        *,
        poll_seconds: float = POLL_SECONDS,
        time_limit: float | None = None,
        name: str = "view",
        say: Callable[[str], None] = print,
    ) -> None:
        self._view = view
        self._poll, self._patience, self._name, self._say = poll_seconds, time_limit, name, say
        self._stop = threading.Event()
        self._ledger: Ledger | None = None
        self._keys: list[str] = []
        self._told: dict[str, bool] = {}  # of `_keys`, those whose end was shown: True for a failure
        self._heard: dict[str, int] = {}  # bytes of each log that were passed on
        self._cluster: Cluster | None = None
        self._plans: deque[Plan] = deque()  # for the thread that follows: a view is called by one thread at a time
        self._following = False
        self._faults: set[str] = set()

    def take(self, ledger: Ledger) -> None:
        """Follow the outcomes of this ledger."""
        self._ledger = ledger

    def on_plan(self, plan: Plan) -> None:
        """Take the plan, or one that has grown or changed. What was settled before it was known is not news."""
        self._plans.append(plan)
        if not self._following:
            self._take_plans()

    def on_cluster(self) -> None:
        """Show the recorded cluster, before anything is followed; from then on another one is noticed."""
        self._try(self._take_cluster)

    @property
    def all_told(self) -> bool:
        """Return True if the end of every experiment of the plan was shown."""
        return not self._plans and len(self._told) == len(self._keys)

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Follow until the block ends, then show what came last."""
        self._stop.clear()
        self._try(self._view.begin)
        self._following = True
        thread = threading.Thread(target=self._follow, name=self._name, daemon=True)
        thread.start()
        time_limit = self._patience
        try:
            yield
        except BaseException:
            time_limit = None if time_limit is None else min(time_limit, HURRIED_SECONDS)
            raise
        finally:
            self._stop.set()
            thread.join(time_limit)
            self._following = False
            if thread.is_alive():
                self._say(f"{self._name} did not come to its end within {time_limit:g} s, and is left behind")

    def _take_plans(self) -> None:
        while self._plans:
            self._try(functools.partial(self._take_plan, self._plans[0]))
            self._plans.popleft()  # only now may all be told

    def _take_plan(self, plan: Plan) -> None:
        assert self._ledger is not None
        fresh = [e.key for e in plan.experiments if e.key not in self._heard]
        ended = {o.key: isinstance(o, Failure) for o in self._ledger.outcomes(fresh)}
        for key in fresh:
            self._heard[key] = self._ledger.events_since(key, 0)[1]
        self._keys = [e.key for e in plan.experiments]
        known = self._told | ended
        self._told = {key: known[key] for key in self._keys if key in known}
        self._view.plan(plan, len(self._told))

    def _take_cluster(self) -> None:
        assert self._ledger is not None
        cluster = self._ledger.cluster()
        if cluster is not None and cluster != self._cluster:
            self._cluster = cluster
            self._view.cluster(cluster)

    def _follow(self) -> None:
        self._look()
        self._catch_up()
        self._try(self._view.end)

    def _catch_up(self) -> None:
        """Show the ends first and then the plan that they led to."""
        self._try(self._tell)
        if self._plans:
            self._take_plans()
            self._try(self._tell)

    def _try(self, act: Callable[[], None]) -> None:
        """Call what may raise. No fault of a view, nor of the files that it shows, may end what it looks at."""
        try:
            act()
        except Exception as e:  # noqa: BLE001 - as above
            self._report(e)

    def _report(self, error: Exception) -> None:
        """Say what went wrong, each thing once."""
        words = f"{type(error).__name__}: {first_line(error)}"
        if words not in self._faults:
            self._faults.add(words)
            self._say(f"the {self._name} met an error ({words}); it goes on, and so does training")

    def _look(self) -> None:
        last, every = time.monotonic(), self._view.every
        # Looking at many files must stay cheap
        while not self._stop.wait(self._poll_seconds()):
            self._catch_up()
            if time.monotonic() - last >= every:
                running: list[Progress] = []
                self._try(functools.partial(self._show_running, running))
                last = time.monotonic()
                every = self._view.every * max(1.0, len(running) / AT_MOST_LOOKED_AT)

    def _show_running(self, running: list[Progress]) -> None:
        assert self._ledger is not None
        self._take_cluster()
        begun = self._ledger.paths.begun_keys()
        self._forget_reopened(begun)
        open_ones = [k for k in self._keys if k in begun and k not in self._told]
        running += [p for k in open_ones if (p := self._ledger.progress(k)) is not None]
        self._view.progress(running, len(self._told), len(self._keys))

    def _forget_reopened(self, begun: Container[str]) -> None:
        """Take back ends that are on record no more: failures that are tried again, a directory that was made anew."""
        assert self._ledger is not None
        gone = {k for k, failed in self._told.items() if k not in begun or (failed and not self._ledger.outcome(k))}
        if gone:
            self._told = {key: failed for key, failed in self._told.items() if key not in gone}
            self._view.reopened(gone)

    def _poll_seconds(self) -> float:
        assert self._ledger is not None
        remote = is_remote(self._ledger.paths.root)
        return (2 * REMOTE_POLL_SECONDS if remote else self._poll) * max(1.0, len(self._keys) / 1000)

    def _tell(self) -> None:
        assert self._ledger is not None
        begun = self._ledger.paths.begun_keys()
        for key in [k for k in self._keys if k not in self._told and k in begun]:
            self._try(functools.partial(self._tell_of, key))

    def _tell_of(self, key: str) -> None:
        assert self._ledger is not None
        events, self._heard[key] = self._ledger.events_since(key, self._heard.get(key, 0))
        for event in events:
            self._view.event(event)
        record = self._ledger.outcome(key)
        if record is not None:
            self._told[key] = isinstance(record, Failure)
            self._view.outcome(record, len(self._told), len(self._keys))


class Watchers:
    """Several of them as one. What holds one up holds up no other."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers

    def take(self, ledger: Ledger) -> None:
        """Follow the outcomes of this ledger."""
        for watcher in self._watchers:
            watcher.take(ledger)

    def on_plan(self, plan: Plan) -> None:
        """The plan is known, or has grown."""
        for watcher in self._watchers:
            watcher.on_plan(plan)

    def on_cluster(self) -> None:
        """The cluster is known, and recorded."""
        for watcher in self._watchers:
            watcher.on_cluster()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Follow until the block ends; the first one has the last word."""
        with contextlib.ExitStack() as stack:
            for watcher in self._watchers:
                stack.enter_context(watcher.following())
            yield
