"""Routes of sweeps: list, start, stop, resume, extend, log, events, devices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import PlainTextResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from flops_fit_ray.analysis import json_value
from flops_fit_ray.service.app_state import app_state_of, as_json, of_kind
from flops_fit_ray.service.rest import _shapes as shapes
from flops_fit_ray.service.rest._events import sweep_events
from flops_fit_ray.service.rest._shapes import Limit, Offset
from flops_fit_ray.service.runs.queue import Additions
from flops_fit_ray.service.state import views
from flops_fit_ray.sweep.run_limits import RunLimits

routes = APIRouter()


@routes.get("/sweeps", tags=["sweeps"], response_model=shapes.SweepPage)
def list_sweeps(request: Request, state: views.State | None = None, offset: Offset = 0, limit: Limit = 100) -> Response:
    """List the sweeps: those that run or wait first, then by name."""
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
    """Start or queue a sweep of a spec. A repeated Idempotency-Key returns the sweep that it started, with 200."""
    state = app_state_of(request)
    spec = state.specs.named(body.spec)
    limits = RunLimits(until=body.until, at_most=body.at_most, slots=body.slots)
    run, new = state.runs.start(spec, body.name, limits, idempotency_key, body.limit)
    state.runs.start_waiting()
    return as_json(state.view(run.sweep), HTTPStatus.CREATED if new else HTTPStatus.OK)


@routes.get("/sweeps/{name}", tags=["sweeps"], response_model=shapes.SweepOut)
def get_sweep(request: Request, name: str) -> Response:
    """Return the state and progress of a sweep."""
    return as_json(app_state_of(request).view(name))


@routes.post("/sweeps/{name}/stop", tags=["sweeps"], response_model=shapes.SweepOut)
def stop(request: Request, name: str) -> Response:
    """Checkpoint running experiments and end the run; results are kept. The second time, end it at once."""
    state = app_state_of(request)
    state.runs.stop(name)
    return as_json(state.view(name))


@routes.post("/sweeps/{name}/resume", tags=["sweeps"], response_model=shapes.SweepOut)
def resume(request: Request, name: str, body: shapes.ResumeIn | None = None) -> Response:
    """Resume a sweep that is not running, by default from the newest checkpoints."""
    body = body or shapes.ResumeIn()
    return _resume(request, name, Additions(), body, body.checkpoint)


@routes.post("/sweeps/{name}/extend", tags=["sweeps"], response_model=shapes.SweepOut)
def extend(request: Request, name: str, body: shapes.ExtendIn) -> Response:
    """Add budgets, sizes or seeds; only new experiments are trained."""
    return _resume(
        request, name, Additions(budgets=tuple(body.budgets), sizes=tuple(body.sizes), seeds=body.seeds), body
    )


def _resume(
    request: Request, name: str, more: Additions, given: shapes.RunLimitsIn, checkpoint: str | None = None
) -> Response:
    state = app_state_of(request)
    limits = RunLimits(until=given.until, at_most=given.at_most, slots=given.slots)
    state.runs.resume(name, more, limits, checkpoint)
    state.runs.start_waiting()
    return as_json(state.view(name))


@routes.get("/sweeps/{name}/log", tags=["sweeps"], response_class=Response, responses=of_kind("text/plain"))
def sweep_log(request: Request, name: str, lines: Annotated[int, Query(ge=1, le=10_000)] = 200) -> Response:
    """Return the last lines of the log of its runs, with secrets redacted."""
    state = app_state_of(request)
    state.view(name)
    return PlainTextResponse(views.log_text(state.runs.log(name), lines))


async def _existing(request: Request, name: str) -> str:
    """Return the name of a sweep that exists: the status of a stream is sent before its generator runs."""
    await asyncio.to_thread(app_state_of(request).view, name)
    return name


@routes.get("/sweeps/{name}/events", tags=["sweeps"], response_class=EventSourceResponse)
async def one_sweeps_events(
    request: Request,
    name: Annotated[str, Depends(_existing)],
    last_event_id: Annotated[str | None, Header(max_length=100)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Stream server-sent events: `status` at every change, and `outcome` for each experiment that ends.

    Each has an id. With Last-Event-ID, as browsers send it, outcomes since then come first; some may come twice.
    """
    async for event in sweep_events(app_state_of(request), name, last_event_id):
        yield event


@routes.get("/sweeps/{name}/devices", tags=["sweeps"])
def devices(request: Request, name: str) -> list[dict[str, Any]]:
    """List machines and GPUs with their newest readings and experiments; unknown values are null."""
    found: list[dict[str, Any]] = json_value(views.devices_of(app_state_of(request).snapshot(name)))
    return found
