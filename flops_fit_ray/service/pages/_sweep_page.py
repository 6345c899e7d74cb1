"""One sweep: its answer, valleys, training, devices, experiments, notes; and what can be done with it."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from flops_fit_ray.errors import FitError
from flops_fit_ray.service.app_state import AppState, app_state_of
from flops_fit_ray.service.http import names
from flops_fit_ray.service.http.html import page
from flops_fit_ray.service.http.redact import redacted, redacted_values
from flops_fit_ray.service.http.visits import waiting_elsewhere
from flops_fit_ray.service.pages._forms import additions_of, fields_of, flops_of, served_of, to_sweep
from flops_fit_ray.service.pages._sparks import device_rows
from flops_fit_ray.service.runs.asked import Additions
from flops_fit_ray.service.state import overlay, views
from flops_fit_ray.service.state.devices import devices_of
from flops_fit_ray.service.state.notes import MAX_AUTHOR, keep_note, notes_of
from flops_fit_ray.service.state.row_choice import chosen
from flops_fit_ray.service.state.snapshot import Snapshot
from flops_fit_ray.spec import dump_spec
from flops_fit_ray.sweep.run_limits import RunLimits

ROWS = 25  # experiments of a page
MAX_FAILURES = 20
PREDICT_SECONDS = 60.0
AUTHOR = "flops_fit_ray_author"  # cookie with the name under which this browser wrote its last note
AUTHOR_SECONDS = 365 * 86400
TABLE_COLUMNS = (
    ("budget", "C"), ("size", "size"), ("params", "N"), ("tokens", "D"), ("role", "role"), ("status", "status"),
    ("share", "done"), ("loss", "loss"), ("loss_stderr", "± s.e."), ("seconds", "time"), ("attempts", "starts"),
)  # fmt: skip

WIDE = ("size", "role", "share", "loss_stderr", "seconds", "attempts")  # columns that a phone has no room for

routes = APIRouter()


@routes.get("/sweeps/{name}", response_class=HTMLResponse)
async def sweep(
    request: Request,
    name: str,
    status: Annotated[str | None, Query(max_length=30)] = None,
    sort: Annotated[str | None, Query(max_length=30)] = None,
    down: bool = False,
    offset: Annotated[int, Query(ge=0)] = 0,
    budget: Annotated[str, Query(max_length=40)] = "",
    served: Annotated[str, Query(max_length=40)] = "",
    find: Annotated[str, Query(max_length=100)] = "",
    curves: overlay.Which | None = None,
) -> str:
    """Show one sweep: its state, valleys, devices, experiments and failures."""
    state = app_state_of(request)
    snapshot = await asyncio.to_thread(state.caches.now, name)
    query = {
        "status": status or None,
        "sort": sort if sort in views.SORTS else None,
        "down": down or None,
        "find": find.strip() or None,
        "curves": curves,
        "budget": budget or None,
        "served": served.strip() or None,
    }
    with waiting_elsewhere(request):
        prediction = await _prediction(state, snapshot, budget, served.strip())
    author = unquote(request.cookies.get(AUTHOR, ""))[:MAX_AUTHOR]
    return await asyncio.to_thread(_sweep, state, name, snapshot, query, offset, prediction, author)


def _sweep(
    state: AppState,
    name: str,
    snapshot: Snapshot | None,
    query: dict[str, Any],
    offset: int,
    prediction: dict[str, Any],
    author: str,
) -> str:
    short = None if snapshot is None else _short(state, snapshot)

    def link(**changed: Any) -> str:
        merged = {k: v for k, v in {**query, **changed}.items() if v is not None}
        return f"/sweeps/{quote(name)}?{urlencode({k: int(v) if v is True else v for k, v in merged.items()})}"

    return page(
        "sweep.html.j2",
        view=state.view(name),
        snapshot=snapshot,
        short=short,
        stale=_is_stale(snapshot, short),
        listed=None if snapshot is None else _listed(snapshot, query, offset),
        query=query,
        heads=TABLE_COLUMNS,
        wide=WIDE,
        sorts=views.SORTS,
        link=link,
        failures=[] if snapshot is None else _failures(snapshot),
        devices=[] if snapshot is None else device_rows(devices_of(snapshot), state.device_history.of(name)),
        training=None if snapshot is None else _training(snapshot, query["curves"]),
        notes=notes_of(names.sweep_directory(state.runs.paths, name)),
        author=author,
        others=[other for other in state.caches.names() if other != name],
        rows=ROWS,
        prediction=prediction,
        spec_text="" if snapshot is None else redacted(dump_spec(snapshot.sweep.spec)),
        log=views.log_text(state.runs.log(name), views.LOG_LINES),
    )


@routes.post("/sweeps/{name}/stop")
def stop(request: Request, name: str) -> Response:
    """Stop a sweep."""
    state = app_state_of(request)
    state.caches.check_answers(name)
    state.runs.stop(name)
    return to_sweep(name)


@routes.post("/sweeps/{name}/resume")
def resume(request: Request, name: str) -> Response:
    """Resume a sweep."""
    return _resume(app_state_of(request), name, Additions())


@routes.post("/sweeps/{name}/extend")
async def extend(request: Request, name: str) -> Response:
    """Extend a sweep by the fields of the form."""
    return await asyncio.to_thread(_resume, app_state_of(request), name, additions_of(await fields_of(request)))


@routes.post("/sweeps/{name}/notes")
async def note(request: Request, name: str) -> Response:
    """Add the note of the form."""
    state, form = app_state_of(request), await fields_of(request)
    author = form.get("author", "").strip()
    await asyncio.to_thread(state.view, name)
    directory = names.sweep_directory(state.runs.paths, name)
    await asyncio.to_thread(keep_note, directory, author, form.get("text", ""))
    response = to_sweep(name, "#notes-title")
    secure = request.url.scheme == "https"
    response.set_cookie(
        AUTHOR, quote(author), max_age=AUTHOR_SECONDS, httponly=True, samesite="strict", secure=secure, path="/"
    )
    return response


def _resume(state: AppState, name: str, more: Additions) -> Response:
    state.caches.check_answers(name)
    state.runs.resume(name, more, RunLimits())
    state.runs.start_waiting()
    return to_sweep(name)


def _short(state: AppState, snapshot: Snapshot) -> dict[str, Any] | None:
    """Return the newest fit in the cache; a newer one may be in progress."""
    if not snapshot.sweep.results or snapshot.sweep.spec.is_one_run:
        return None
    found = state.fit_worker.newest("short", snapshot)
    return None if found is None else {**redacted_values(json.loads(found[1])), "version": found[0]}


def _is_stale(snapshot: Snapshot | None, short: dict[str, Any] | None) -> bool:
    """Return True if a newer fit is in progress."""
    if snapshot is None or not snapshot.sweep.results or snapshot.sweep.spec.is_one_run:
        return False
    return short is None or short["results"] != len(snapshot.sweep.results)


def _listed(snapshot: Snapshot, query: dict[str, Any], offset: int) -> dict[str, Any]:
    sort, down = query["sort"], bool(query["down"])
    rows = chosen(snapshot, status=query["status"], budget=None, role=None, sort=sort, down=down, find=query["find"])
    return views.page_of(rows, offset, ROWS)


def _training(snapshot: Snapshot, asked: overlay.Which | None) -> dict[str, Any]:
    """Return what the charts of the training curves are of."""
    which = asked or overlay.which_of(snapshot)
    shown, total = overlay.shown_in(snapshot, which)
    return {"which": which, "shown": len(shown), "total": total, "stamp": overlay.stamp_of(snapshot, which)}


def _failures(snapshot: Snapshot) -> list[dict[str, Any]]:
    found = [views.experiment_view(snapshot, failure.key) for failure in snapshot.sweep.failures[:MAX_FAILURES]]
    return [one for one in found if one["error"] is not None]  # without those that are tried again by now


async def _prediction(state: AppState, snapshot: Snapshot | None, budget: str, served: str) -> dict[str, Any]:
    """Return the prediction for the form, or the reason why there is none."""
    if not budget or snapshot is None:
        return {}
    c, tokens = flops_of(budget), served_of(served) if served else None
    for number in (c, tokens):
        if isinstance(number, dict):
            return number
    question = [f"budget={c!r}", *([] if tokens is None else [f"served={tokens!r}"])]
    try:
        found = await state.fit_worker.answer(PREDICT_SECONDS, "predict", snapshot, *question)
        return dict(json.loads(found))
    except FitError as e:
        return {"error": str(e)}
    except TimeoutError:
        return {"error": "the fit is still running; try again in a moment"}
