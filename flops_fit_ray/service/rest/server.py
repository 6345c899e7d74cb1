"""Routes of the service itself, and of specs."""

from __future__ import annotations

from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from flops_fit_ray.service.app_state import app_state_of, as_events, as_json, of_kind
from flops_fit_ray.service.http.redact import redacted
from flops_fit_ray.service.rest import shapes
from flops_fit_ray.service.rest.events import sweeps_events
from flops_fit_ray.service.rest.shapes import Limit, Offset
from flops_fit_ray.service.runs.specs import StoredSpec
from flops_fit_ray.service.state import views

routes = APIRouter()


@routes.get("/health", tags=["server"])
async def health() -> dict[str, str]:
    """Whether it answers; the one route that asks for no token."""
    return {"status": "ok"}


@routes.get("/server", tags=["server"], response_model=shapes.ServerOut)
def server(request: Request) -> Response:
    """The service, its machine, where sweeps run, its queue, and sweeps by state."""
    parts = app_state_of(request)
    return as_json(parts.server(parts.sweeps()))


@routes.get("/events", tags=["server"], response_class=Response, responses=of_kind("text/event-stream"))
async def events(request: Request) -> StreamingResponse:
    """Server-sent events: `sweeps` with name, state and share of each, whenever one of them changes."""
    return as_events(request, sweeps_events(app_state_of(request)))


@routes.get("/specs", tags=["specs"], response_model=shapes.SpecPage)
def list_specs(request: Request, offset: Offset = 0, limit: Limit = 100) -> Response:
    """The newest first."""
    found = [_spec(spec) for spec in app_state_of(request).specs.all()]
    return as_json(views.page_of(found, offset, limit))


@routes.post(
    "/specs", tags=["specs"], response_model=shapes.SpecOut, status_code=201, responses={200: {"model": shapes.SpecOut}}
)
def create_spec(request: Request, body: shapes.SpecIn) -> Response:
    """Keep a spec. The same text with the same code is the same spec: then the answer is 200."""
    spec, new = app_state_of(request).specs.create(body.text, body.code)
    return as_json(_spec(spec), HTTPStatus.CREATED if new else HTTPStatus.OK)


@routes.post("/specs/validate", tags=["specs"], response_model=shapes.PriceOut)
def validate(request: Request, body: shapes.SpecIn) -> Response:
    """What a spec would run and cost, or what is wrong with it. Nothing is kept; it loads the model and the data."""
    return as_json(app_state_of(request).price(body.text, body.code))


@routes.get("/specs/{spec_id}", tags=["specs"], response_model=shapes.SpecOut)
def get_spec(request: Request, spec_id: str) -> Response:
    """One of them; what looks like a secret is left out."""
    return as_json(_spec(app_state_of(request).specs.named(spec_id)))


@routes.delete("/specs/{spec_id}", tags=["specs"], status_code=204)
def delete_spec(request: Request, spec_id: str) -> Response:
    """Forget it; what was started with it goes on."""
    app_state_of(request).specs.delete(spec_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _spec(spec: StoredSpec) -> dict[str, Any]:
    return {**asdict(spec), "text": redacted(spec.text)}
