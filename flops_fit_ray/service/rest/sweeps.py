"""Routes of sweeps: how they stand, and what is asked of them."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from flops_fit_ray.analysis import json_value
from flops_fit_ray.service.app_state import app_state_of, as_events, as_json, of_kind
from flops_fit_ray.service.rest import shapes
from flops_fit_ray.service.rest.events import sweep_events
from flops_fit_ray.service.rest.shapes import Limit, Offset
from flops_fit_ray.service.runs.queue import More
from flops_fit_ray.service.state import views
from flops_fit_ray.sweep.run_limits import RunLimits

routes = APIRouter()


@routes.get("/sweeps", tags=["sweeps"], response_model=shapes.SweepPage)
def list_sweeps(request: Request, state: views.State | None = None, offset: Offset = 0, limit: Limit = 100) -> Response:
    """Those that run or wait first, then by name."""
    found = [view for view in app_state_of(request).sweeps() if state in (None, view["state"])]
    return as_json(views.page_of(found, offset, limit))


@routes.post(
    "/sweeps",
    tags=["sweeps"],
    response_model=shapes.SweepOut,
    status_code=201,
    responses={200: {"model": shapes.SweepOut}},
)
def start_sweep(
    request: Request,
    body: shapes.StartIn,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> Response:
    """Start a sweep of a spec, or let it wait. With a key that was used before: what that one came to, and 200."""
    parts = app_state_of(request)
    spec = parts.specs.named(body.spec)
    limits = RunLimits(until=body.until, at_most=body.at_most, slots=body.slots)
    start, new = parts.runs.start(spec, body.name, limits, idempotency_key)
    parts.runs.pump()
    return as_json(parts.view(start.sweep), HTTPStatus.CREATED if new else HTTPStatus.OK)


@routes.get("/sweeps/{name}", tags=["sweeps"], response_model=shapes.SweepOut)
def get_sweep(request: Request, name: str) -> Response:
    """How it stands."""
    return as_json(app_state_of(request).view(name))


@routes.post("/sweeps/{name}/stop", tags=["sweeps"], response_model=shapes.SweepOut)
def stop(request: Request, name: str) -> Response:
    """Save what runs, and end; what is recorded stays. A second time: at once."""
    parts = app_state_of(request)
    parts.runs.stop(name)
    return as_json(parts.view(name))


@routes.post("/sweeps/{name}/resume", tags=["sweeps"], response_model=shapes.SweepOut)
def resume(request: Request, name: str, body: shapes.RunLimitsIn | None = None) -> Response:
    """Go on where it was stopped."""
    return _go_on(request, name, More(), body or shapes.RunLimitsIn())


@routes.post("/sweeps/{name}/extend", tags=["sweeps"], response_model=shapes.SweepOut)
def extend(request: Request, name: str, body: shapes.ExtendIn) -> Response:
    """Add budgets, sizes or seeds: only what is new is run."""
    return _go_on(request, name, More(budgets=tuple(body.budgets), sizes=tuple(body.sizes), seeds=body.seeds), body)


def _go_on(request: Request, name: str, more: More, limits: shapes.RunLimitsIn) -> Response:
    parts = app_state_of(request)
    parts.runs.go_on(name, more, RunLimits(until=limits.until, at_most=limits.at_most, slots=limits.slots))
    parts.runs.pump()
    return as_json(parts.view(name))


@routes.get("/sweeps/{name}/log", tags=["sweeps"], response_class=Response, responses=of_kind("text/plain"))
def sweep_log(request: Request, name: str, lines: Annotated[int, Query(ge=1, le=10_000)] = 200) -> Response:
    """The end of what its runs have said; secrets left out."""
    parts = app_state_of(request)
    parts.view(name)
    return PlainTextResponse(views.log_text(parts.runs.log(name), lines))


@routes.get("/sweeps/{name}/events", tags=["sweeps"], response_class=Response, responses=of_kind("text/event-stream"))
async def one_sweeps_events(
    request: Request, name: str, last_event_id: Annotated[str | None, Header(max_length=100)] = None
) -> StreamingResponse:
    """Server-sent events: `status` whenever something changes, and `outcome` for each experiment that ends.

    Each has an id. With Last-Event-ID, as browsers send it, outcomes since then come first; some of them perhaps twice.
    """
    parts = app_state_of(request)
    await asyncio.to_thread(parts.view, name)
    return as_events(request, sweep_events(parts, name, last_event_id))


@routes.get("/sweeps/{name}/devices", tags=["sweeps"])
def devices(request: Request, name: str) -> list[dict[str, Any]]:
    """Machines and GPUs as they were read last, and what they train; what is not known is null."""
    found: list[dict[str, Any]] = json_value(views.devices_of(app_state_of(request).reading(name)))
    return found
