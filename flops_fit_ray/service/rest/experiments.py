"""Routes of experiments and their checkpoints."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from http import HTTPStatus
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from flops_fit_ray.service.app_state import answer, app_state_of, as_json, as_svg, fresh, of_kind
from flops_fit_ray.service.http import names
from flops_fit_ray.service.http.refusal import Refusal, conflict
from flops_fit_ray.service.rest import shapes
from flops_fit_ray.service.rest.shapes import Limit, Offset
from flops_fit_ray.service.state import views

CHUNK = 1 << 20  # bytes of a download, at a time

routes = APIRouter()


@routes.get("/sweeps/{name}/experiments", tags=["experiments"], response_model=shapes.ExperimentPage)
async def experiments(
    request: Request,
    name: str,
    status: Annotated[str | None, Query(max_length=30)] = None,
    budget: Annotated[float | None, Query(gt=0, allow_inf_nan=False)] = None,
    role: Annotated[str | None, Query(max_length=30)] = None,
    sort: views.Sort | None = None,
    order: Literal["asc", "desc"] = "asc",
    offset: Offset = 0,
    limit: Limit = 100,
) -> Response:
    """The plan's experiments, in its order or in another, with what has become of them."""
    reading = await fresh(request, name)
    rows = views.chosen(reading, status=status, budget=budget, role=role, sort=sort, down=order == "desc")
    return as_json(views.page_of(rows, offset, limit))


@routes.get("/sweeps/{name}/experiments/{key}", tags=["experiments"], response_model=shapes.ExperimentOut)
def experiment(request: Request, name: str, key: str) -> Response:
    """All that is known of one: plan, outcome with traceback, events, checkpoints."""
    return as_json(views.experiment_view(app_state_of(request).reading(name), key))


@routes.get("/sweeps/{name}/experiments/{key}/metrics", tags=["experiments"])
def metrics(request: Request, name: str, key: str) -> dict[str, Any]:
    """What is measured now, or was in the end."""
    return views.metrics_of(app_state_of(request).reading(name), key)


@routes.get("/sweeps/{name}/experiments/{key}/history", tags=["experiments"], response_model=shapes.Page)
def history(request: Request, name: str, key: str, offset: Offset = 0, limit: Limit = 1000) -> Response:
    """Every point of its curve: step, tokens, losses, learning rate, gradient norm, seconds."""
    return as_json(views.page_of(views.history_of(app_state_of(request).reading(name), key), offset, limit))


@routes.get("/sweeps/{name}/experiments/{key}/throughput", tags=["experiments"])
def throughput(
    request: Request, name: str, key: str, points: Annotated[int, Query(ge=2, le=5000)] = views.CURVE_POINTS
) -> dict[str, Any]:
    """Tokens per second and MFU now, and tokens per second along the way."""
    reading = app_state_of(request).reading(name)
    rows = views.history_of(reading, key)
    now = views.metrics_of(reading, key)
    along = views.thinned(views.with_speed(rows), points, ("step", "tokens", "seconds", "tokens_per_second"))
    return {"key": key, "tokens_per_second": now.get("tokens_per_second"), "mfu": now.get("mfu"), "along": along}


@routes.get("/sweeps/{name}/experiments/{key}/curve", tags=["experiments"])
def curve(
    request: Request, name: str, key: str, points: Annotated[int, Query(ge=2, le=5000)] = views.CURVE_POINTS
) -> dict[str, Any]:
    """Losses along the way as columns, thinned to so many points."""
    rows = views.history_of(app_state_of(request).reading(name), key)
    return views.thinned(rows, points, ("step", "tokens", "train_loss", "eval_loss", "lr"))


@routes.get(
    "/sweeps/{name}/experiments/{key}/figure",
    tags=["experiments"],
    response_class=Response,
    responses=of_kind("image/svg+xml"),
)
async def experiment_figure(request: Request, name: str, key: str) -> Response:
    """Its training loss, as SVG."""
    reading = await fresh(request, name)
    views.experiment_of(reading, key)
    changed = await asyncio.to_thread(views.changed, reading.sweep.paths.curve(key))
    return as_svg(await answer(request, reading, "curve", key, str(changed)))


@routes.get("/sweeps/{name}/experiments/{key}/log", tags=["experiments"])
def experiment_log(request: Request, name: str, key: str, limit: Limit = 100) -> list[dict[str, Any]]:
    """What happened to it, the newest last."""
    return views.events_of(app_state_of(request).reading(name), key)[-limit:]


@routes.get(
    "/sweeps/{name}/experiments/{key}/checkpoints", tags=["checkpoints"], response_model=list[shapes.CheckpointOut]
)
def experiment_checkpoints(request: Request, name: str, key: str) -> Response:
    """What it can go on from, the trunk it left, its final weights."""
    reading = app_state_of(request).reading(name)
    views.experiment_of(reading, key)
    return as_json(views.checkpoints_of(reading, key))


@routes.get(
    "/sweeps/{name}/experiments/{key}/checkpoints/latest", tags=["checkpoints"], response_model=shapes.CheckpointOut
)
def latest(request: Request, name: str, key: str) -> Response:
    """The newest of them."""
    reading = app_state_of(request).reading(name)
    views.experiment_of(reading, key)
    found = views.checkpoints_of(reading, key)
    if not found:
        raise Refusal(HTTPStatus.NOT_FOUND, f"{key} has no checkpoint")
    return as_json(found[-1])


@routes.get("/sweeps/{name}/checkpoints", tags=["checkpoints"], response_model=shapes.CheckpointPage)
def checkpoints(request: Request, name: str, offset: Offset = 0, limit: Limit = 100) -> Response:
    """Those of all experiments, in the plan's order."""
    return as_json(views.page_of(views.all_checkpoints(app_state_of(request).reading(name)), offset, limit))


@routes.get("/sweeps/{name}/checkpoints/{checkpoint_id}", tags=["checkpoints"], response_model=shapes.CheckpointOut)
def checkpoint(request: Request, name: str, checkpoint_id: str) -> Response:
    """One of them: its size and its sha256."""
    return as_json(views.checkpoint_of(app_state_of(request).reading(name), checkpoint_id))


@routes.get(
    "/sweeps/{name}/checkpoints/{checkpoint_id}/file",
    tags=["checkpoints"],
    response_class=Response,
    responses=of_kind("application/octet-stream"),
)
def download(request: Request, name: str, checkpoint_id: str) -> Response:
    """The file itself; ETag is its sha256."""
    reading = app_state_of(request).reading(name)
    one = views.checkpoint_of(reading, checkpoint_id)
    path = views.file_of(reading, one)
    file = names.opened(path, reading.sweep.paths.root, "checkpoint")
    if os.fstat(file.fileno()).st_size != one["bytes"]:
        file.close()
        raise conflict(f"{checkpoint_id} is damaged: it has not the {one['bytes']} bytes that its note says")
    headers = {
        "content-length": str(one["bytes"]),
        "etag": f'"{one["sha256"]}"',
        "content-disposition": f'attachment; filename="{checkpoint_id}{path.suffix}"',
    }
    return StreamingResponse(_chunks(file, one["bytes"]), media_type="application/octet-stream", headers=headers)


def _chunks(file: BinaryIO, left: int) -> Iterator[bytes]:
    with file:
        while left and (chunk := file.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk
