"""Server-sent events of sweeps. They follow from snapshots alone, so a restarted service sends the same ones.

FastAPI encodes them, sends a comment every 15 s to keep the connection alive, and cancels the generator when the client
is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi.sse import ServerSentEvent

from flops_fit_ray.analysis import json_value
from flops_fit_ray.service.http.request_error import RequestError
from flops_fit_ray.service.state.cache import Row, Snapshot

if TYPE_CHECKING:
    from flops_fit_ray.service.app_state import AppState

OutcomeKey = tuple[str, float]  # an experiment and its time of finish: one that failed may be tried again

POLL_SECONDS = 1.0
RETRY_MILLISECONDS = 2000  # until a browser reconnects
CLOCK_SKEW_SECONDS = 60.0  # between two machines, at most
OUTCOME = ("key", "budget", "size", "status", "loss", "loss_stderr", "seconds", "error", "finished_at")


async def sweep_events(state: AppState, name: str, since: str | None) -> AsyncIterator[ServerSentEvent]:
    """Yield `status` first and at every change, and `outcome` for each experiment that ends.

    Args:
        since: id of the last event received: later outcomes are sent, and those up to `CLOCK_SKEW_SECONDS` before it,
            which may have been recorded after it. None: only new outcomes.
    """
    seen: set[OutcomeKey] | None = None
    before: Any = None
    yield ServerSentEvent(retry=RETRY_MILLISECONDS)
    while True:
        snapshot = await asyncio.to_thread(state.caches.now, name)
        try:
            view = await asyncio.to_thread(state.view, name)
        except RequestError:  # its directory was deleted
            return
        if seen is None:
            seen = _seen_before(snapshot, since)
        for event in _new_outcomes(snapshot, seen):
            yield event
        if view != before:
            before = view
            yield _event("status", view, repr(0.0 if snapshot is None else snapshot.newest))
        await asyncio.sleep(POLL_SECONDS)


async def sweeps_events(state: AppState) -> AsyncIterator[ServerSentEvent]:
    """Yield `sweeps`, with name, state, share and version of each, first and at every change."""
    before: Any = None
    yield ServerSentEvent(retry=RETRY_MILLISECONDS)
    while True:
        views = await asyncio.to_thread(state.sweeps)
        shown = [
            {"name": v["name"], "state": v["state"], "share": round(v["share"], 4), "version": v["version"]}
            for v in views
        ]
        if shown != before:
            before = shown
            yield _event("sweeps", shown)
        await asyncio.sleep(2 * POLL_SECONDS)


def _event(kind: str, content: Any, event_id: str | None = None) -> ServerSentEvent:
    return ServerSentEvent(event=kind, id=event_id, data=json_value(content))


def _seen_before(snapshot: Snapshot | None, since: str | None) -> set[OutcomeKey]:
    """Return the outcomes that the client has received already."""
    if snapshot is None:
        return set()
    last = float("inf")
    if since is not None:
        last = 0.0
        with contextlib.suppress(ValueError):
            last = float(since) - CLOCK_SKEW_SECONDS
    return {_key_of(row) for row in snapshot.rows if row["finished_at"] is not None and row["finished_at"] < last}


def _key_of(row: Row) -> OutcomeKey:
    return row["key"], row["finished_at"]


def _new_outcomes(snapshot: Snapshot | None, seen: set[OutcomeKey]) -> list[ServerSentEvent]:
    """Return an event per outcome that is not in `seen`, by time of finish, and add them to `seen`."""
    if snapshot is None:
        return []
    fresh = [row for row in snapshot.rows if row["finished_at"] is not None and _key_of(row) not in seen]
    seen |= {_key_of(row) for row in fresh}
    fresh.sort(key=lambda row: row["finished_at"])
    return [_event("outcome", {name: row[name] for name in OUTCOME}, repr(row["finished_at"])) for row in fresh]
