"""Routes of the service itself and of specs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from flops_fit_ray.service.app_state import app_state_of, as_json, as_page, check_match
from flops_fit_ray.service.http.later import LateAnswer
from flops_fit_ray.service.http.redact import redacted
from flops_fit_ray.service.http.request_error import RequestError
from flops_fit_ray.service.rest import _documents as documents
from flops_fit_ray.service.rest import _shapes as shapes
from flops_fit_ray.service.rest._shapes import Limit, Offset
from flops_fit_ray.service.rest._yaml import BODY, YamlRoute
from flops_fit_ray.service.runs.specs import StoredSpec

routes = APIRouter()
yaml_routes = APIRouter(route_class=YamlRoute)


@routes.get("/health", tags=["server"], response_model=documents.HealthOut)
async def get_health() -> dict[str, str]:
    """Return `ok`; the one route without a token."""
    return {"status": "ok"}


@routes.get("/server", tags=["server"], response_model=shapes.ServerOut)
def get_server(request: Request) -> Response:
    """Return the service's version, machine and queue, and the number of sweeps by state."""
    state = app_state_of(request)
    return as_json(state.server(state.sweeps()))


@routes.get("/events", tags=["server"], response_class=EventSourceResponse)
async def watch_sweeps(request: Request) -> AsyncIterator[ServerSentEvent]:
    """Stream server-sent events: `sweeps`, with name, state and share of each, whenever one of them changes."""
    async for event in request.app.state.feeds.of_all():
        yield event


@routes.get(
    "/answers/{answer_id}",
    tags=["server"],
    response_class=Response,
    responses={200: {"content": {"*/*": {}}}, **shapes.LATER},
)
async def get_answer(request: Request, answer_id: str) -> Response:
    """Return what a request with `Prefer: respond-async` is answered with, refusals too; 202 while it is awaited.

    It can be fetched for ten minutes; a service that was started again has none.
    """
    found: LateAnswer | None = request.app.state.answers.of(answer_id)
    if found is None:
        raise RequestError(HTTPStatus.NOT_FOUND, "no such answer, or it is not kept any longer; send the request again")
    if not found.is_there:
        return as_json(found.to_json(), HTTPStatus.ACCEPTED)
    if found.error is not None:
        raise found.error
    response = Response(found.body, found.status)
    response.raw_headers += found.headers
    return response


@routes.get("/specs", tags=["specs"], response_model=shapes.SpecPage)
def list_specs(request: Request, offset: Offset = 0, limit: Limit = 100) -> Response:
    """List the stored specs, newest first."""
    found = [_spec(spec) for spec in app_state_of(request).specs.all()]
    return as_page(request, found, offset, limit)


@yaml_routes.post(
    "/specs",
    tags=["specs"],
    response_model=shapes.SpecOut,
    status_code=201,
    responses={200: {"model": shapes.SpecOut}},
    openapi_extra=BODY,
)
def create_spec(request: Request, body: shapes.SpecIn) -> Response:
    """Store a spec. The same text with the same code is the same spec, answered with 200."""
    spec, new = app_state_of(request).specs.create(body.text, body.code)
    return as_json(_spec(spec), HTTPStatus.CREATED if new else HTTPStatus.OK)


@yaml_routes.post(
    "/specs/validate", tags=["specs"], response_model=shapes.PriceOut, responses=shapes.LATER, openapi_extra=BODY
)
def validate_spec(request: Request, body: shapes.PriceIn) -> Response:
    """Return the plan and price of a spec, or its faults. Loads the model and the data; nothing is stored.

    Of `budgets: auto` and a limit in time it is the least plan, and says so: the speed is measured when a sweep starts.
    """
    return as_json(app_state_of(request).price(body.text, body.code, body.limit))


@routes.get("/specs/{spec_id}", tags=["specs"], response_model=shapes.SpecOut)
def get_spec(request: Request, spec_id: str) -> Response:
    """Return a spec, with secrets redacted."""
    return as_json(_spec(app_state_of(request).specs.named(spec_id)))


@routes.delete("/specs/{spec_id}", tags=["specs"], status_code=204)
def delete_spec(request: Request, spec_id: str) -> Response:
    """Delete a spec; sweeps that were started with it are not affected."""
    specs = app_state_of(request).specs
    check_match(request, lambda: _spec(specs.named(spec_id)))
    specs.delete(spec_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _spec(spec: StoredSpec) -> dict[str, Any]:
    return {**asdict(spec), "text": redacted(spec.text)}
