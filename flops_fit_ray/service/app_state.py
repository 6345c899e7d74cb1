"""What handlers work with, and how they answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from flops_fit_ray.analysis import json_value
from flops_fit_ray.errors import SpecError
from flops_fit_ray.ledger.hardware import Readings
from flops_fit_ray.service.http.guard import STANDALONE
from flops_fit_ray.service.http.html import VERSION
from flops_fit_ray.service.http.redact import redacted, redacted_values
from flops_fit_ray.service.http.refusal import Refusal, conflict
from flops_fit_ray.service.runs.queue import Runs
from flops_fit_ray.service.runs.specs import Specs
from flops_fit_ray.service.state import views
from flops_fit_ray.service.state.cache import Reading, SweepCaches
from flops_fit_ray.service.state.fits import FitWorker
from flops_fit_ray.service.state.pricing import price_of

ANSWER_SECONDS = 120.0  # for a fit of 10,000 experiments, and what stands before it


@dataclass(frozen=True)
class AppState:
    """What handlers work with."""

    runs: Runs
    specs: Specs
    mirrors: SweepCaches
    work: FitWorker
    readings: Readings = field(default_factory=Readings)  # of the service's own machine

    def view(self, name: str) -> dict[str, Any]:
        """How one sweep stands."""
        return views.sweep_view(self.runs, self.mirrors, name)

    def reading(self, name: str) -> Reading:
        """What is in its directory."""
        return views.reading_of(self.mirrors, self.runs, name)

    def price(self, text: str, code: str | None) -> dict[str, Any]:
        """What a spec would run and cost, or its faults. It loads the model and the data, and takes seconds.

        Raises:
            Refusal: too many are being priced.
        """
        try:
            _, where = self.specs.check(text, code)
        except SpecError as e:
            return faulty(e.faults)
        return dict(redacted_values(price_of(text, where)))

    def sweeps(self) -> list[dict[str, Any]]:
        """All of them: what runs or waits first, then by name."""
        known = sorted({*self.mirrors.names(), *self.runs.known()})
        order = {state: i for i, state in enumerate(("running", "stopping", "queued"))}
        found = []
        for name in known:
            try:
                found.append(self.view(name))
            except Refusal:  # its directory went away
                continue
        return sorted(found, key=lambda view: (order.get(view["state"], 9), view["name"]))

    def server(self, sweeps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The service itself; `sweeps` are all that there are."""
        return {
            "version": VERSION,
            "root": str(self.runs.paths.root),
            "code": [str(root) for root in self.specs.roots],
            "runs_on": self.runs.launcher.here,
            "machine": json_value(self.readings.read().to_json()),
            "at_once": self.runs.at_once,
            "most_waiting": self.runs.most_waiting,
            "states": {state: sum(s["state"] == state for s in sweeps) for state in views.STATES},
            "queue": [s.start.sweep for s in self.runs.open() if s.phase == "queued"],
            "trouble": self.runs.trouble,
        }


def faulty(faults: Sequence[str]) -> dict[str, Any]:
    """What stands in the place of a price."""
    return {"valid": False, "faults": [redacted(fault) for fault in faults]}


def app_state_of(request: Request) -> AppState:
    """Those of the application that serves a request."""
    parts: AppState = request.app.state.parts
    return parts


async def fresh(request: Request, name: str) -> Reading:
    """What is in a sweep's directory: at once where it is known, else by a thread."""
    parts = app_state_of(request)
    known = parts.mirrors.of(name).fresh
    return known if known is not None else await asyncio.to_thread(parts.reading, name)


async def answer(request: Request, reading: Reading, question: str, *more: str) -> bytes:
    """What the process that fits and draws says of a sweep.

    Raises:
        Refusal: there is nothing to fit yet, or it takes too long.
    """
    if not reading.sweep.results and question not in ("csv", "parquet", "curve"):
        raise conflict("no experiment is completed yet")
    root = reading.sweep.paths.root
    try:
        return await app_state_of(request).work.answer(ANSWER_SECONDS, question, root, reading.version, *more)
    except TimeoutError as e:
        words = f"that takes more than {ANSWER_SECONDS:g} s; it is being worked on, so ask again"
        raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, words) from e


def as_json(content: Mapping[str, Any] | list[Any], status: HTTPStatus = HTTPStatus.OK) -> Response:
    """As JSON; what is not finite is null."""
    return JSONResponse(json_value(content), status_code=status)


def as_is(content: bytes) -> Response:
    """JSON that is made already."""
    return Response(content, media_type="application/json")


def as_svg(content: bytes) -> Response:
    """A figure, which stands on its own."""
    return Response(content, media_type="image/svg+xml", headers={"content-security-policy": STANDALONE})


def as_events(request: Request, source: AsyncIterator[tuple[str, str | None, Any]]) -> StreamingResponse:
    """Server-sent events, as long as somebody listens."""

    async def lines() -> AsyncIterator[str]:
        yield "retry: 2000\n\n"
        async for kind, event_id, content in source:
            if await request.is_disconnected():
                return
            if not kind:
                yield ": still here\n\n"
                continue
            number = "" if event_id is None else f"id: {event_id}\n"
            yield f"{number}event: {kind}\ndata: {json.dumps(json_value(content))}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


def of_kind(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """What the published OpenAPI says of an answer that is not JSON."""
    return {200: {"content": {kind: {} for kind in kinds}}}
