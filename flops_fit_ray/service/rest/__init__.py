"""REST API under /api/v1. Handlers call the service's state and answer in JSON; nothing is decided here."""

from __future__ import annotations

from fastapi import APIRouter

from flops_fit_ray.service.rest import _bin as deleted
from flops_fit_ray.service.rest import _charts as charts
from flops_fit_ray.service.rest import _experiments as experiments
from flops_fit_ray.service.rest import _results as results
from flops_fit_ray.service.rest import _server as server
from flops_fit_ray.service.rest import _sweeps as sweeps
from flops_fit_ray.service.rest._published import published

api = APIRouter(prefix="/api/v1")
for room in (server, sweeps, deleted, experiments, results, charts):
    api.include_router(room.routes)
for room in (server, sweeps):
    api.include_router(room.yaml_routes)

__all__ = ["api", "published"]
