"""Telling whoever watches what happens, by reading the ledger. No Tune callback: one that raises aborts a sweep."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.ledger import Event, Failure, Ledger, Progress, Result
from flops_fit_ray.planning import Plan

POLL_SECONDS = 0.5
PROGRESS_SECONDS = 60.0


class View(Protocol):
    """What a console must be able to show."""

    def slots(self, count: int, note: str) -> None:
        """Where experiments run."""

    def outcome(self, record: Result | Failure, done: int, total: int) -> None:
        """One experiment ended."""

    def event(self, event: Event) -> None:
        """Something that the owner should hear of now."""

    def progress(self, running: list[Progress], done: int, total: int) -> None:
        """Once a minute: what runs now."""


class Watcher:
    """Follows the ledger in a thread of its own and hands what is new to a view."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._stop = threading.Event()
        self._heard: dict[str, int] = {}  # bytes of each log that were passed on

    def on_slots(self, slots: Slots) -> None:
        """The cluster is known."""
        self._view.slots(slots.count, slots.note)

    @contextlib.contextmanager
    def following(self, ledger: Ledger, plan: Plan) -> Iterator[None]:
        """Follow until the block ends, then show what came last."""
        keys = [e.key for e in plan.experiments]
        told = ledger.settled(keys)
        self._heard = {key: ledger.events_since(key, 0)[1] for key in keys if key not in told}
        self._stop.clear()
        thread = threading.Thread(target=self._follow, args=(ledger, keys, told), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self._tell(ledger, keys, told)

    def _follow(self, ledger: Ledger, keys: list[str], told: set[str]) -> None:
        last = time.monotonic()
        pause = POLL_SECONDS * max(1.0, len(keys) / 1000)  # looking at many files must stay cheap
        while not self._stop.wait(pause):
            self._tell(ledger, keys, told)
            if time.monotonic() - last >= PROGRESS_SECONDS:
                running = [p for k in keys if k not in told and (p := ledger.progress(k)) is not None]
                self._view.progress(running, len(told), len(keys))
                last = time.monotonic()

    def _tell(self, ledger: Ledger, keys: list[str], told: set[str]) -> None:
        for key in keys:
            if key not in told:
                events, self._heard[key] = ledger.events_since(key, self._heard[key])
                for event in events:
                    if event.aloud:
                        self._view.event(event)
            record = None if key in told else ledger.outcome(key)
            if record is not None:
                told.add(key)
                self._view.outcome(record, len(told), len(keys))
