"""Routes of sweeps: list, start, stop, resume, extend, log, events, devices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import PlainTextResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from flops_fit_ray.analysis import json_value
from flops_fit_ray.service.app_state import app_state_of, as_json, as_list, as_page, check_match, of_kind
from flops_fit_ray.service.http.request_error import RequestError
from flops_fit_ray.service.rest import _shapes as shapes
from flops_fit_ray.service.rest._documents import DeviceOut
from flops_fit_ray.service.rest._shapes import Limit, Offset
from flops_fit_ray.service.rest._yaml import BODY, YamlRoute
from flops_fit_ray.service.runs.asked import Additions, asked_to_start
from flops_fit_ray.service.state import views
from flops_fit_ray.service.state.devices import devices_of
from flops_fit_ray.sweep.run_limits import RunLimits

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=200)]

routes = APIRouter()
yaml_routes = APIRouter(route_class=YamlRoute)


@routes.get("/sweeps", tags=["sweeps"], response_model=shapes.SweepPage)
def list_sweeps(request: Request, state: views.State | None = None, offset: Offset = 0, limit: Limit = 100) -> Response:
    """List the sweeps: those that run or wait first, then by name."""
    found = [view for view in app_state_of(request).sweeps() if state in (None, view["state"])]
    return as_page(request, found, offset, limit)


@yaml_routes.post(
    "/sweeps",
    tags=["sweeps"],
    response_model=shapes.SweepOut,
    status_code=201,
    responses={200: {"model": shapes.SweepOut}},
    openapi_extra=BODY,
)
def start_sweep(request: Request, body: shapes.StartIn, idempotency_key: IdempotencyKey = None) -> Response:
    """Start or queue a sweep of a spec. A repeated Idempotency-Key returns the sweep that it started, with 200.

    The spec is the id of a stored one, or comes along: as an object in `spec`, as YAML in `text`, or as the body itself
    (`application/yaml`, with the other fields in the query).
    """
    state = app_state_of(request)
    specs, limits = state.specs, _limits(body)
    text = body.text if body.spec is None else json.dumps(body.spec) if isinstance(body.spec, dict) else None
    if (body.spec is None) == (body.text is None) or (text is None and body.code is not None):
        message = "give one of: `spec` (an id or an object), `text` (YAML); `code` only beside the spec itself"
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, message)
    spec_id = str(body.spec) if text is None else specs.id_of(text, body.code)
    status = HTTPStatus.OK

    def start() -> dict[str, Any]:
        nonlocal status
        spec = specs.named(spec_id) if text is None else specs.create(text, body.code)[0]
        run, new = state.runs.start(spec, body.name, limits, idempotency_key, body.limit)
        state.runs.start_waiting()
        status = HTTPStatus.CREATED if new else HTTPStatus.OK
        return state.view(run.sweep)

    asked = asked_to_start(spec_id, body.name, limits, body.limit)
    answer, replayed = state.runs.keys.once(idempotency_key, asked, lambda: json_value(start()))
    return _once(answer, replayed, status)


@routes.get("/sweeps/{name}", tags=["sweeps"], response_model=shapes.SweepOut)
def get_sweep(request: Request, name: str) -> Response:
    """Return the state and progress of a sweep."""
    return as_json(app_state_of(request).view(name))


@routes.post("/sweeps/{name}/stop", tags=["sweeps"], response_model=shapes.SweepOut)
def stop_sweep(request: Request, name: str, idempotency_key: IdempotencyKey = None) -> Response:
    """Checkpoint running experiments and end the run; results are kept. The second time, end it at once.

    With the Idempotency-Key of the first time, it is no second time.
    """
    runs = app_state_of(request).runs
    return _acted(request, name, {"do": "stop"}, idempotency_key, lambda: runs.stop(name, idempotency_key))


@routes.post("/sweeps/{name}/resume", tags=["sweeps"], response_model=shapes.SweepOut)
def resume_sweep(
    request: Request, name: str, body: shapes.ResumeIn | None = None, idempotency_key: IdempotencyKey = None
) -> Response:
    """Resume a sweep that is not running, by default from the newest checkpoints.

    A repeated Idempotency-Key is answered as the first time, and resumes nothing again.
    """
    body = body or shapes.ResumeIn()
    return _resumed(request, name, Additions(), body, idempotency_key, body.checkpoint)


@routes.post("/sweeps/{name}/extend", tags=["sweeps"], response_model=shapes.SweepOut)
def extend_sweep(
    request: Request, name: str, body: shapes.ExtendIn, idempotency_key: IdempotencyKey = None
) -> Response:
    """Add budgets, sizes or seeds; only new experiments are trained.

    A repeated Idempotency-Key is answered as the first time, and extends nothing again.
    """
    more = Additions(budgets=tuple(body.budgets), sizes=tuple(body.sizes), seeds=body.seeds)
    return _resumed(request, name, more, body, idempotency_key)


def _limits(given: shapes.RunLimitsIn) -> RunLimits:
    return RunLimits(until=given.until, at_most=given.at_most, slots=given.slots)


def _resumed(
    request: Request,
    name: str,
    more: Additions,
    given: shapes.RunLimitsIn,
    key: str | None,
    checkpoint: str | None = None,
) -> Response:
    runs = app_state_of(request).runs

    def resume() -> None:
        runs.resume(name, more, _limits(given), checkpoint, key)
        runs.start_waiting()

    kind = "resume" if more == Additions() else "extend"
    return _acted(request, name, {"do": kind, **given.model_dump()}, key, resume)


def _acted(request: Request, name: str, asked: dict[str, Any], key: str | None, act: Callable[[], object]) -> Response:
    """Do something to a sweep, once for each key, unless it is another than If-Match names."""
    state = app_state_of(request)
    state.caches.check_answers(name)  # before the lock is held that all wait for

    def acting() -> dict[str, Any]:
        with state.runs.lock:
            check_match(request, lambda: state.view(name))
            act()
        found: dict[str, Any] = json_value(state.view(name))
        return found

    return _once(*state.runs.keys.once(key, {**asked, "sweep": name}, acting), HTTPStatus.OK)


def _once(answer: dict[str, Any], replayed: bool, status: HTTPStatus) -> Response:
    response = as_json(answer, status)
    if replayed:
        response.headers["idempotency-replayed"] = "true"
    return response


@routes.get("/sweeps/{name}/log", tags=["sweeps"], response_class=Response, responses=of_kind("text/plain"))
def get_sweep_log(request: Request, name: str, lines: Annotated[int, Query(ge=1, le=10_000)] = 200) -> Response:
    """Return the last lines of the log of its runs, with secrets redacted."""
    state = app_state_of(request)
    state.view(name)
    return PlainTextResponse(views.log_text(state.runs.log(name), lines))


async def _existing(request: Request, name: str) -> str:
    """Return the name of a sweep that exists: the status of a stream is sent before its generator runs."""
    await asyncio.to_thread(app_state_of(request).view, name)
    return name


@routes.get("/sweeps/{name}/events", tags=["sweeps"], response_class=EventSourceResponse)
async def watch_sweep(
    request: Request,
    name: Annotated[str, Depends(_existing)],
    last_event_id: Annotated[str | None, Header(max_length=100)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Stream server-sent events: `status` at every change, and `outcome` for each experiment that ends.

    Each has an id. With Last-Event-ID, as browsers send it, outcomes since then come first; some may come twice.
    """
    async for event in request.app.state.feeds.of_sweep(name, last_event_id):
        yield event


@routes.get("/sweeps/{name}/devices", tags=["sweeps"], response_model=list[DeviceOut])
def list_devices(request: Request, name: str, offset: Offset = 0, limit: Limit = 1000) -> Response:
    """List machines and GPUs with their newest readings and experiments; unknown values are null."""
    return as_list(request, devices_of(app_state_of(request).snapshot(name)), offset, limit)
