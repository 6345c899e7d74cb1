"""Routes of the bin: delete a sweep, list what is in it, restore."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from flops_fit_ray.service.app_state import app_state_of, as_json, as_page, check_match
from flops_fit_ray.service.rest import _shapes as shapes
from flops_fit_ray.service.rest._shapes import Limit, Offset
from flops_fit_ray.service.runs.bin import Deleted

routes = APIRouter()


@routes.delete("/sweeps/{name}", tags=["sweeps"], response_model=shapes.DeletedOut)
def delete_sweep(request: Request, name: str) -> Response:
    """Move a sweep that does not run into the bin: nothing of it is removed, and it can be restored."""
    state = app_state_of(request)
    state.caches.check_answers(name)
    with state.runs.lock:
        check_match(request, lambda: state.view(name))
        deleted = state.bin.put(name)
    return as_json(_shown(request, deleted))


@routes.get("/bin", tags=["bin"], response_model=shapes.DeletedPage)
def list_deleted(request: Request, offset: Offset = 0, limit: Limit = 100) -> Response:
    """List the sweeps in the bin, the newest first."""
    found = [_shown(request, deleted) for deleted in app_state_of(request).bin.all()]
    return as_page(request, found, offset, limit)


@routes.get("/bin/{bin_id}", tags=["bin"], response_model=shapes.DeletedOut)
def get_deleted(request: Request, bin_id: str) -> Response:
    """Return a sweep in the bin."""
    return as_json(_shown(request, app_state_of(request).bin.named(bin_id)))


@routes.post("/bin/{bin_id}/restore", tags=["bin"], response_model=shapes.SweepOut)
def restore_sweep(request: Request, bin_id: str) -> Response:
    """Move a sweep back to where it was."""
    state = app_state_of(request)
    return as_json(state.view(state.bin.restore(bin_id)))


def _shown(request: Request, deleted: Deleted) -> dict[str, Any]:
    place = app_state_of(request).bin.directory(deleted)
    shown = {name: value for name, value in asdict(deleted).items() if name != "moving"}
    return {**shown, "directory": str(place) if place.exists() else None}
