"""What changes, as it changes: made from readings, so that a new service says the same as the one before it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from flops_fit_ray.service.http.refusal import Refusal
from flops_fit_ray.service.state.cache import Reading, Row

if TYPE_CHECKING:
    from flops_fit_ray.service.app_state import AppState

Event = tuple[str, str | None, Any]  # its kind ("" for a sign of life), its id, its content
Told = tuple[str, float]  # an experiment, and when it ended: one that failed may be tried again

POLL_SECONDS = 1.0
ALIVE_SECONDS = 15.0
APART_SECONDS = 60.0  # by which the clocks of two machines may differ
OUTCOME = ("key", "budget", "size", "status", "loss", "loss_stderr", "seconds", "error", "finished_at")


async def sweep_events(parts: AppState, name: str, since: str | None) -> AsyncIterator[Event]:
    """`status` first and at every change, and `outcome` for each experiment that ends.

    Args:
        since: the id of the last event that was heard: outcomes since then are told, with those that another machine's
            clock may have put before it. Without it only what is new.
    """
    told: set[Told] | None = None
    before: Any = None
    alive = time.monotonic()
    while True:
        reading = await asyncio.to_thread(parts.mirrors.now, name)
        try:
            view = await asyncio.to_thread(parts.view, name)
        except Refusal:
            return
        if told is None:
            told = _told_by(reading, since)
        for event in _outcomes(reading, told):
            alive = time.monotonic()
            yield event
        if view != before:
            before, alive = view, time.monotonic()
            yield "status", repr(0.0 if reading is None else reading.newest), view
        elif time.monotonic() - alive > ALIVE_SECONDS:
            alive = time.monotonic()
            yield "", None, None
        await asyncio.sleep(POLL_SECONDS)


def _told_by(reading: Reading | None, since: str | None) -> set[Told]:
    """The outcomes that whoever listens knows already."""
    if reading is None:
        return set()
    heard = float("inf")
    if since is not None:
        heard = 0.0
        with contextlib.suppress(ValueError):
            heard = float(since) - APART_SECONDS
    return {_told(row) for row in reading.rows if row["finished_at"] is not None and row["finished_at"] < heard}


def _told(row: Row) -> Told:
    return row["key"], row["finished_at"]


def _outcomes(reading: Reading | None, told: set[Told]) -> list[Event]:
    if reading is None:
        return []
    fresh = [row for row in reading.rows if row["finished_at"] is not None and _told(row) not in told]
    told |= {_told(row) for row in fresh}
    fresh.sort(key=lambda row: row["finished_at"])
    return [("outcome", repr(row["finished_at"]), {name: row[name] for name in OUTCOME}) for row in fresh]


async def sweeps_events(parts: AppState) -> AsyncIterator[Event]:
    """`sweeps` with name, state and share of each, first and at every change."""
    before: Any = None
    alive = time.monotonic()
    while True:
        views = await asyncio.to_thread(parts.sweeps)
        shown = [
            {"name": v["name"], "state": v["state"], "share": round(v["share"], 4), "version": v["version"]}
            for v in views
        ]
        if shown != before:
            before, alive = shown, time.monotonic()
            yield "sweeps", None, shown
        elif time.monotonic() - alive > ALIVE_SECONDS:
            alive = time.monotonic()
            yield "", None, None
        await asyncio.sleep(2 * POLL_SECONDS)
