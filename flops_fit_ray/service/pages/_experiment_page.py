"""One experiment."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from flops_fit_ray.service.app_state import app_state_of
from flops_fit_ray.service.http.html import page
from flops_fit_ray.service.state import views

routes = APIRouter()


@routes.get("/sweeps/{name}/experiments/{key}", response_class=HTMLResponse)
def experiment(request: Request, name: str, key: str) -> str:
    """Show one experiment."""
    snapshot = app_state_of(request).snapshot(name)
    found = views.experiment_view(snapshot, key)
    stamp = views.changed(snapshot.sweep.paths.curve(key))
    return page("experiment.html.j2", name=name, e=found, drawn=stamp is not None, stamp=stamp)
