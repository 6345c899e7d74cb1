"""Routes of what the pages draw and keep: numbers of charts, curves beside each other, comparisons, notes."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from flops_fit_ray.service.app_state import (
    app_state_of,
    as_is,
    as_json,
    as_list,
    as_svg,
    ask_fit_worker,
    fresh_snapshot,
    of_kind,
)
from flops_fit_ray.service.http import names
from flops_fit_ray.service.http.request_error import conflict
from flops_fit_ray.service.rest._shapes import LATER, Asked, Limit, Offset
from flops_fit_ray.service.state import notes, overlay, views

Budget = Annotated[
    float | None, Query(ge=1, le=views.MAX_BUDGET, description="C in FLOPs; by default the largest of both")
]

Which = Annotated[overlay.Which | None, Query(description="by default those that run, if any do")]

routes = APIRouter()


class NoteIn(Asked):
    """A note to add."""

    author: str = Field(min_length=1, max_length=notes.MAX_AUTHOR)
    text: str = Field(min_length=1, max_length=notes.MAX_NOTE)


class NoteOut(BaseModel):
    """A note on a sweep."""

    at: float = Field(description="seconds since the epoch")
    author: str = Field(description="as they call themselves: everybody has the same token")
    text: str


class Chart(BaseModel):
    """Numbers of a chart; those that are not known are null."""

    model_config = ConfigDict(extra="allow")


class DeviceSeries(BaseModel):
    """Readings of one machine and its GPUs, as columns beside `at`; null where nothing was read."""

    model_config = ConfigDict(extra="allow")
    host: str
    at: list[float] = Field(description="seconds since the epoch")
    gpus: list[dict[str, Any]]


@routes.get("/sweeps/{name}/charts/{chart}", tags=["charts"], response_model=Chart, responses=LATER)
async def get_chart(request: Request, name: str, chart: Literal["valleys", "laws"]) -> Response:
    """Return the numbers of a chart: valleys (runs, curves, minima), or laws (minima, lines, bands)."""
    question = {"valleys": "valley_chart", "laws": "law_chart"}[chart]
    return as_is(await ask_fit_worker(request, await fresh_snapshot(request, name), question))


@routes.get("/sweeps/{name}/curves", tags=["charts"], response_model=Chart)
def get_curves(request: Request, name: str, which: Which = None) -> Response:
    """Return the training curves of all that runs, or of all that is completed, thinned, as columns.

    Of more than 24 experiments every so many are shown; `total` says of how many.
    """
    snapshot = app_state_of(request).snapshot(name)
    return as_json(overlay.overlay(snapshot, which or overlay.which_of(snapshot)))


@routes.get("/sweeps/{name}/experiments/{key}/curves", tags=["charts"], response_model=Chart)
def get_experiment_curves(request: Request, name: str, key: str) -> Response:
    """Return the training curves of one experiment, in the same shape."""
    snapshot = app_state_of(request).snapshot(name)
    return as_json(overlay.overlaid_curves(snapshot, [views.experiment_of(snapshot, key)]))


@routes.get(
    "/sweeps/{name}/curves/figure",
    tags=["charts"],
    response_class=Response,
    responses={**of_kind("image/svg+xml"), **LATER},
)
async def get_curves_figure(request: Request, name: str, which: Which = None) -> Response:
    """Return the same as SVG: loss, learning rate, gradient norm, tokens per second."""
    snapshot = await fresh_snapshot(request, name)
    which = which or overlay.which_of(snapshot)
    shown, _ = overlay.shown_in(snapshot, which)
    if not shown:
        raise conflict(f"no experiment is {which}")
    stamp = await asyncio.to_thread(overlay.stamp_of, snapshot, which)
    return as_svg(await ask_fit_worker(request, snapshot, "overlay", ",".join(e.key for e in shown), stamp))


@routes.get("/sweeps/{name}/devices/history", tags=["charts"], response_model=list[DeviceSeries])
def list_device_history(request: Request, name: str, offset: Offset = 0, limit: Limit = 1000) -> Response:
    """Return the readings of the machines and GPUs since a service has watched the sweep, oldest first."""
    state = app_state_of(request)
    state.snapshot(name)
    return as_list(request, state.device_history.of(name), offset, limit)


@routes.get("/sweeps/{name}/compare/{other}", tags=["results"], response_model=Chart, responses=LATER)
async def compare_sweeps(request: Request, name: str, other: str, budget: Budget = None) -> Response:
    """Return the differences of exponents, N, D and loss of two sweeps at one C, as `compare --json` prints them."""
    return as_is(await _compared(request, "compare", name, other, budget))


@routes.get(
    "/sweeps/{name}/compare/{other}/figure",
    tags=["results"],
    response_class=Response,
    responses={**of_kind("image/svg+xml"), **LATER},
)
async def get_comparison_figure(request: Request, name: str, other: str, budget: Budget = None) -> Response:
    """Return the laws of both sweeps as SVG."""
    return as_svg(await _compared(request, "differences", name, other, budget))


async def _compared(request: Request, question: str, name: str, other: str, budget: float | None) -> bytes:
    first, second = await fresh_snapshot(request, name), await fresh_snapshot(request, other)
    if not second.sweep.results:
        raise conflict(f"no experiment of {other} is completed yet; try again when one is")
    return await ask_fit_worker(request, first, question, "" if budget is None else repr(budget), beside=second)


@routes.get("/sweeps/{name}/notes", tags=["notes"], response_model=list[NoteOut])
def list_notes(request: Request, name: str, offset: Offset = 0, limit: Limit = 1000) -> Response:
    """List the notes on a sweep, oldest first."""
    state = app_state_of(request)
    state.view(name)
    found = list(notes.notes_of(names.sweep_directory(state.runs.paths, name)))
    return as_list(request, found, offset, limit)


@routes.post("/sweeps/{name}/notes", tags=["notes"], response_model=list[NoteOut], status_code=201)
def add_note(request: Request, name: str, body: NoteIn) -> Response:
    """Add a note. It is kept in the sweep directory, and returned with the others."""
    state = app_state_of(request)
    state.view(name)
    directory = names.sweep_directory(state.runs.paths, name)
    notes.keep_note(directory, body.author, body.text)
    return as_json(list(notes.notes_of(directory)), HTTPStatus.CREATED)
