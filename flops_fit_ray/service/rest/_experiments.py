"""Routes of experiments and their checkpoints."""

from __future__ import annotations

import asyncio
import os
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from flops_fit_ray.service.app_state import (
    app_state_of,
    as_json,
    as_list,
    as_page,
    as_svg,
    ask_fit_worker,
    fresh_snapshot,
    of_kind,
)
from flops_fit_ray.service.http import names
from flops_fit_ray.service.http.files import OpenFileResponse
from flops_fit_ray.service.http.request_error import RequestError, conflict
from flops_fit_ray.service.rest import _documents as documents
from flops_fit_ray.service.rest import _shapes as shapes
from flops_fit_ray.service.rest._shapes import Limit, Offset
from flops_fit_ray.service.state import views
from flops_fit_ray.service.state.row_choice import chosen

routes = APIRouter()


@routes.get("/sweeps/{name}/experiments", tags=["experiments"], response_model=shapes.ExperimentPage)
async def list_experiments(
    request: Request,
    name: str,
    status: Annotated[str | None, Query(max_length=30)] = None,
    budget: Annotated[float | None, Query(gt=0, allow_inf_nan=False)] = None,
    role: Annotated[str | None, Query(max_length=30)] = None,
    sort: views.Sort | None = None,
    order: Literal["asc", "desc"] = "asc",
    find: Annotated[str | None, Query(max_length=100, description="words that all stand in a row")] = None,
    offset: Offset = 0,
    limit: Limit = 100,
) -> Response:
    """List the planned experiments with their status and results, in the plan's order or sorted."""
    snapshot = await fresh_snapshot(request, name)
    rows = chosen(snapshot, status=status, budget=budget, role=role, sort=sort, down=order == "desc", find=find)
    return as_page(request, rows, offset, limit)


@routes.get("/sweeps/{name}/experiments/{key}", tags=["experiments"], response_model=shapes.WholeExperimentOut)
def get_experiment(request: Request, name: str, key: str) -> Response:
    """Return everything known of one experiment: plan, outcome with traceback, events, checkpoints."""
    return as_json(views.experiment_view(app_state_of(request).snapshot(name), key))


@routes.get("/sweeps/{name}/experiments/{key}/metrics", tags=["experiments"], response_model=documents.MetricsOut)
def get_metrics(request: Request, name: str, key: str) -> Response:
    """Return the newest measurements of an experiment; of a finished one, the final ones."""
    return as_json(views.metrics_of(app_state_of(request).snapshot(name), key))


@routes.get("/sweeps/{name}/experiments/{key}/history", tags=["experiments"], response_model=shapes.HistoryPage)
def list_history(request: Request, name: str, key: str, offset: Offset = 0, limit: Limit = 1000) -> Response:
    """Return every point of its training curve: step, tokens, losses, learning rate, gradient norm, seconds."""
    return as_page(request, views.history_of(app_state_of(request).snapshot(name), key), offset, limit)


@routes.get("/sweeps/{name}/experiments/{key}/throughput", tags=["experiments"], response_model=documents.ThroughputOut)
def get_throughput(
    request: Request, name: str, key: str, points: Annotated[int, Query(ge=2, le=5000)] = views.CURVE_POINTS
) -> Response:
    """Return tokens, steps and samples per second and MFU now, and tokens per second over the training."""
    snapshot = app_state_of(request).snapshot(name)
    rows = views.history_of(snapshot, key)
    now = views.metrics_of(snapshot, key)
    along = views.thinned(views.with_speed(rows), points, ("step", "tokens", "seconds", "tokens_per_second"))
    rates = ("tokens_per_second", "steps_per_second", "samples_per_second", "mfu")
    return as_json({"key": key, **{name: now.get(name) for name in rates}, "along": along})


@routes.get("/sweeps/{name}/experiments/{key}/curve", tags=["experiments"], response_model=documents.CurveOut)
def get_curve(
    request: Request, name: str, key: str, points: Annotated[int, Query(ge=2, le=5000)] = views.CURVE_POINTS
) -> Response:
    """Return the training curve as columns, thinned to at most `points` points."""
    rows = views.history_of(app_state_of(request).snapshot(name), key)
    return as_json(views.thinned(rows, points, ("step", "tokens", "train_loss", "eval_loss", "lr")))


@routes.get(
    "/sweeps/{name}/experiments/{key}/figure",
    tags=["experiments"],
    response_class=Response,
    responses={**of_kind("image/svg+xml"), **shapes.LATER},
)
async def get_experiment_figure(request: Request, name: str, key: str) -> Response:
    """Return the figure of its training loss, as SVG."""
    snapshot = await fresh_snapshot(request, name)
    views.experiment_of(snapshot, key)
    changed = await asyncio.to_thread(views.changed, snapshot.sweep.paths.curve(key))
    return as_svg(await ask_fit_worker(request, snapshot, "curve", key, str(changed)))


@routes.get("/sweeps/{name}/experiments/{key}/log", tags=["experiments"], response_model=list[documents.EventOut])
def list_experiment_events(request: Request, name: str, key: str, offset: Offset = 0, limit: Limit = 100) -> Response:
    """Return the events of an experiment, newest last.

    `offset` counts from the newest, and Link leads to older ones.
    """
    return as_list(request, views.events_of(app_state_of(request).snapshot(name), key), offset, limit, newest=True)


@routes.get(
    "/sweeps/{name}/experiments/{key}/checkpoints", tags=["checkpoints"], response_model=list[shapes.CheckpointOut]
)
def list_experiment_checkpoints(
    request: Request, name: str, key: str, offset: Offset = 0, limit: Limit = 1000
) -> Response:
    """List its checkpoints: those it resumes from, its trunk, its final weights."""
    snapshot = app_state_of(request).snapshot(name)
    views.experiment_of(snapshot, key)
    return as_list(request, views.checkpoints_of(snapshot, key), offset, limit)


@routes.get(
    "/sweeps/{name}/experiments/{key}/checkpoints/latest", tags=["checkpoints"], response_model=shapes.CheckpointOut
)
def get_latest_checkpoint(request: Request, name: str, key: str) -> Response:
    """Return its newest checkpoint."""
    snapshot = app_state_of(request).snapshot(name)
    views.experiment_of(snapshot, key)
    found = views.checkpoints_of(snapshot, key)
    if not found:
        raise RequestError(HTTPStatus.NOT_FOUND, f"{key} has no checkpoint; a completed experiment keeps none")
    return as_json(found[-1])


@routes.get("/sweeps/{name}/checkpoints", tags=["checkpoints"], response_model=shapes.CheckpointPage)
def list_checkpoints(request: Request, name: str, offset: Offset = 0, limit: Limit = 100) -> Response:
    """List the checkpoints of all experiments, in the plan's order."""
    return as_page(request, views.all_checkpoints(app_state_of(request).snapshot(name)), offset, limit)


@routes.get("/sweeps/{name}/checkpoints/{checkpoint_id}", tags=["checkpoints"], response_model=shapes.CheckpointOut)
def get_checkpoint(request: Request, name: str, checkpoint_id: str) -> Response:
    """Return a checkpoint's kind, step, size and sha256."""
    return as_json(views.checkpoint_of(app_state_of(request).snapshot(name), checkpoint_id))


@routes.get(
    "/sweeps/{name}/checkpoints/{checkpoint_id}/file",
    tags=["checkpoints"],
    response_class=Response,
    responses=of_kind("application/octet-stream"),
)
def download_checkpoint(request: Request, name: str, checkpoint_id: str) -> Response:
    """Download the file of a checkpoint; the ETag is its sha256."""
    snapshot = app_state_of(request).snapshot(name)
    one = views.checkpoint_of(snapshot, checkpoint_id)
    path = views.file_of(snapshot, one)
    file = names.opened(path, snapshot.sweep.paths.root, "checkpoint")
    if os.fstat(file.fileno()).st_size != one["bytes"]:
        file.close()
        raise conflict(f"{checkpoint_id} is damaged: its file does not have {one['bytes']} bytes; take another one")
    headers = {"content-disposition": f'attachment; filename="{checkpoint_id}{path.suffix}"'}
    return OpenFileResponse(file, one["bytes"], f'"{one["sha256"]}"', headers)
