"""Server-sent events: what is new of a sweep, or of all of them, looked at once a second for all who watch it.

Any number of watchers costs one look, one comparison and one text; a directory that does not answer holds one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fastapi.sse import ServerSentEvent

from flops_fit_ray.analysis import json_value
from flops_fit_ray.service.http.request_error import RequestError
from flops_fit_ray.service.state.snapshot import Row, Snapshot

if TYPE_CHECKING:
    from flops_fit_ray.service.app_state import AppState

OutcomeKey = tuple[str, float]  # an experiment and its time of finish: one that failed may be tried again

POLL_SECONDS = 1.0
RETRY_MILLISECONDS = 2000  # until a browser reconnects
CLOCK_SKEW_SECONDS = 60.0  # between two machines, at most
OUTCOME = ("key", "budget", "size", "status", "loss", "loss_stderr", "seconds", "error", "finished_at")


class Feeds:
    """Feeds that somebody watches, by name; "" stands for all sweeps."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._open: dict[str, _Feed] = {}

    async def of_sweep(self, name: str, since: str | None) -> AsyncIterator[ServerSentEvent]:
        """Yield `status` first and at every change, and `outcome` for each experiment that ends.

        Args:
            since: id of the last event received: later outcomes are sent, and those up to `CLOCK_SKEW_SECONDS` before
                it, which may have been recorded after it. None: only new outcomes.
        """
        yield ServerSentEvent(retry=RETRY_MILLISECONDS)
        with self._watching(name, lambda: _SweepFeed(self._state, name)) as feed, contextlib.suppress(RequestError):
            await feed.look()  # it raises if the directory was deleted
            position, shown = len(feed.outcomes), None
            for event in feed.outcomes_since(since):
                yield event
            while True:
                for event in feed.outcomes[position:]:
                    yield event
                position = len(feed.outcomes)
                if feed.status is not shown:
                    shown = feed.status
                    yield feed.status
                await asyncio.sleep(POLL_SECONDS)
                await feed.look()

    async def of_all(self) -> AsyncIterator[ServerSentEvent]:
        """Yield `sweeps`, with name, state, share and version of each, first and at every change."""
        yield ServerSentEvent(retry=RETRY_MILLISECONDS)
        with self._watching("", lambda: _ListFeed(self._state)) as feed:
            shown = None
            while True:
                await feed.look()
                if feed.status is not shown:
                    shown = feed.status
                    yield feed.status
                await asyncio.sleep(2 * POLL_SECONDS)

    @contextlib.contextmanager
    def _watching(self, name: str, make: Callable[[], _Feed]) -> Iterator[_Feed]:
        """Watch what others may watch already, until the block ends."""
        feed = self._open.setdefault(name, make())
        feed.watchers += 1
        try:
            yield feed
        finally:
            feed.watchers -= 1
            if not feed.watchers:
                self._open.pop(name, None)


class _Feed:
    """Newest status of something, and the outcomes since it is watched."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self.watchers = 0
        self.outcomes: list[ServerSentEvent] = []
        self.status = ServerSentEvent()
        self._view: Any = None
        self._looking: asyncio.Task[None] | None = None
        self._next_at = 0.0

    async def look(self) -> None:
        """Look again, unless somebody did a moment ago or does so now.

        Raises:
            RequestError: it is there no more.
        """
        if self._looking is None or (self._looking.done() and time.monotonic() >= self._next_at):
            self._next_at = time.monotonic() + POLL_SECONDS / 2
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(lambda done: done.cancelled() or done.exception())  # watchers may be gone
        await asyncio.shield(self._looking)

    def outcomes_since(self, since: str | None) -> Iterable[ServerSentEvent]:
        """Return the outcomes after an event, as far as they were there at the last look."""
        return ()

    async def _look(self) -> None:
        raise NotImplementedError

    def _show(self, kind: str, view: Any, event_id: str | None = None) -> None:
        if view != self._view:
            self._view, self.status = view, _event(kind, view, event_id)


class _ListFeed(_Feed):
    async def _look(self) -> None:
        found = await asyncio.to_thread(self._state.sweeps)
        shown = ("name", "state", "share", "version")
        self._show("sweeps", [{name: v[name] for name in shown} | {"share": round(v["share"], 4)} for v in found])


class _SweepFeed(_Feed):
    def __init__(self, state: AppState, name: str) -> None:
        super().__init__(state)
        self._name = name
        self._snapshot: Snapshot | None = None
        self._seen: set[OutcomeKey] | None = None  # None: before the first look

    async def _look(self) -> None:
        snapshot = await asyncio.to_thread(self._state.caches.now, self._name)
        view = await asyncio.to_thread(self._state.view, self._name)
        if snapshot is not None and snapshot is not self._snapshot:
            ended = [row for row in snapshot.rows if row["finished_at"] is not None]
            if self._seen is not None:
                self.outcomes += _events(row for row in ended if _key_of(row) not in self._seen)
            self._snapshot, self._seen = snapshot, (self._seen or set()) | set(map(_key_of, ended))
        self._seen = self._seen or set()
        self._show("status", view, repr(0.0 if snapshot is None else snapshot.newest))

    def outcomes_since(self, since: str | None) -> Iterable[ServerSentEvent]:
        if since is None or self._snapshot is None:
            return ()
        after = 0.0
        with contextlib.suppress(ValueError):
            after = float(since) - CLOCK_SKEW_SECONDS
        rows = self._snapshot.rows
        return _events(row for row in rows if row["finished_at"] is not None and not row["finished_at"] < after)


def _event(kind: str, content: Any, event_id: str | None = None) -> ServerSentEvent:
    text = json.dumps(json_value(content), ensure_ascii=False, separators=(",", ":"))
    return ServerSentEvent(event=kind, id=event_id, raw_data=text)


def _key_of(row: Row) -> OutcomeKey:
    return row["key"], row["finished_at"]


def _events(rows: Iterable[Row]) -> list[ServerSentEvent]:
    """Return an event per outcome, by time of finish."""
    by_time = sorted(rows, key=lambda row: row["finished_at"])
    return [_event("outcome", {name: row[name] for name in OUTCOME}, repr(row["finished_at"])) for row in by_time]
