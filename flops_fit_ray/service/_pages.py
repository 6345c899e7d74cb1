"""Pages of the service, rendered on the server. They are complete without the script, which only refreshes them."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from flops_fit_ray.errors import FitError, SpecError
from flops_fit_ray.service.app_state import AppState, app_state_of, faulty
from flops_fit_ray.service.http.guard import Credentials
from flops_fit_ray.service.http.html import page
from flops_fit_ray.service.http.redact import redacted, redacted_values
from flops_fit_ray.service.http.request_error import RequestError
from flops_fit_ray.service.runs.queue import Additions
from flops_fit_ray.service.state import views
from flops_fit_ray.service.state.cache import Snapshot
from flops_fit_ray.spec import BudgetsFor, dump_spec
from flops_fit_ray.sweep.run_limits import RunLimits

ROWS = 50  # experiments of a page
MAX_FAILURES = 20
MAX_FIELDS = 50  # of a form
PREDICT_SECONDS = 60.0
TABLE_COLUMNS = (
    ("budget", "C"), ("size", "size"), ("params", "N"), ("tokens", "D"), ("role", "role"), ("status", "status"),
    ("share", "done"), ("loss", "loss"), ("seconds", "time"), ("attempts", "attempts"),
)  # fmt: skip

pages = APIRouter(include_in_schema=False)


@pages.get("/", response_class=HTMLResponse)
def index(request: Request) -> str:
    """Show all sweeps."""
    state = app_state_of(request)
    sweeps = state.sweeps()
    return page("index.html.j2", sweeps=sweeps, server=state.server(sweeps), specs=state.specs.all()[:20])


@pages.get("/login", response_class=HTMLResponse)
def login_form() -> str:
    """Show the form for the token."""
    return page("login.html.j2", wrong=False)


@pages.post("/login")
async def login(request: Request) -> Response:
    """Check the token and set the session cookie, which does not contain it."""
    key: Credentials = request.app.state.key
    if not key.is_token((await _form(request)).get("token", "").strip()):
        return HTMLResponse(page("login.html.j2", wrong=True), status_code=HTTPStatus.FORBIDDEN)
    response = RedirectResponse("/", HTTPStatus.SEE_OTHER)
    secure = request.url.scheme == "https"
    response.set_cookie(key.cookie, key.session, httponly=True, samesite="strict", secure=secure, path="/")
    return response


@pages.post("/logout")
def logout(request: Request) -> Response:
    """Delete the session cookie."""
    response = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    response.delete_cookie(request.app.state.key.cookie, path="/")
    return response


@pages.get("/sweeps/{name}", response_class=HTMLResponse)
async def sweep(
    request: Request,
    name: str,
    status: Annotated[str | None, Query(max_length=30)] = None,
    sort: Annotated[str | None, Query(max_length=30)] = None,
    down: bool = False,
    offset: Annotated[int, Query(ge=0)] = 0,
    budget: Annotated[str, Query(max_length=40)] = "",
) -> str:
    """Show one sweep: its state, valleys, devices, experiments and failures."""
    state = app_state_of(request)
    snapshot = await asyncio.to_thread(state.caches.now, name)
    query = {
        "status": status or None,
        "sort": sort if sort in views.SORTS else None,
        "down": down or None,
        "budget": budget or None,
    }
    prediction = await _prediction(state, snapshot, budget)
    return await asyncio.to_thread(_sweep, state, name, snapshot, query, offset, prediction)


def _sweep(
    state: AppState,
    name: str,
    snapshot: Snapshot | None,
    query: dict[str, Any],
    offset: int,
    prediction: dict[str, Any],
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
        sorts=views.SORTS,
        link=link,
        failures=[] if snapshot is None else _failures(snapshot),
        devices=[] if snapshot is None else views.devices_of(snapshot),
        prediction=prediction,
        spec_text="" if snapshot is None else redacted(dump_spec(snapshot.sweep.spec)),
        log=views.log_text(state.runs.log(name), views.LOG_LINES),
    )


@pages.get("/sweeps/{name}/experiments/{key}", response_class=HTMLResponse)
def experiment(request: Request, name: str, key: str) -> str:
    """Show one experiment."""
    state = app_state_of(request)
    snapshot = state.snapshot(name)
    found = views.experiment_view(snapshot, key)
    stamp = views.changed(snapshot.sweep.paths.curve(key))
    return page("experiment.html.j2", name=name, e=found, drawn=stamp is not None, stamp=stamp)


@pages.post("/sweeps/{name}/stop")
def stop(request: Request, name: str) -> Response:
    """Stop a sweep."""
    app_state_of(request).runs.stop(name)
    return _to(name)


@pages.post("/sweeps/{name}/resume")
def resume(request: Request, name: str) -> Response:
    """Resume a sweep."""
    return _resume(app_state_of(request), name, Additions())


@pages.post("/sweeps/{name}/extend")
async def extend(request: Request, name: str) -> Response:
    """Extend a sweep by the fields of the form."""
    return await asyncio.to_thread(_resume, app_state_of(request), name, _additions(await _form(request)))


def _resume(state: AppState, name: str, more: Additions) -> Response:
    state.runs.resume(name, more, RunLimits())
    state.runs.start_waiting()
    return _to(name)


def _to(name: str) -> Response:
    return RedirectResponse(f"/sweeps/{quote(name)}", HTTPStatus.SEE_OTHER)


@pages.get("/new", response_class=HTMLResponse)
def new(request: Request, spec: Annotated[str | None, Query(max_length=40)] = None) -> str:
    """Show the form for a new sweep."""
    state = app_state_of(request)
    known = None if spec is None else state.specs.named(spec)
    form = {} if known is None else {"text": known.text, "code": known.code}
    return _new(state, form, None)


@pages.post("/new")
async def validated(request: Request) -> Response:
    """Show plan and price of the spec in the form, or start it if the second button was pressed."""
    state, form = app_state_of(request), await _form(request)
    text, code = form.get("text", "").replace("\r\n", "\n"), form.get("code") or None
    try:
        limit = _limit(form)
        if form.get("do") == "start":
            stored, _ = await asyncio.to_thread(state.specs.create, text, code)
            name, key = form.get("name") or None, form.get("key") or None
            run, _ = await asyncio.to_thread(state.runs.start, stored, name, RunLimits(), key, limit)
            await asyncio.to_thread(state.runs.start_waiting)
            return RedirectResponse(f"/sweeps/{quote(run.sweep)}", HTTPStatus.SEE_OTHER)
        price = await asyncio.to_thread(state.price, text, code, limit)
    except SpecError as e:
        price = faulty(e.faults)
    except RequestError as e:
        price = faulty([e.message])
    status = HTTPStatus.OK if price["valid"] else HTTPStatus.UNPROCESSABLE_ENTITY
    return HTMLResponse(_new(state, form, price), status_code=status)


def _new(state: AppState, form: dict[str, str], price: dict[str, Any] | None) -> str:
    return page(
        "new.html.j2", form=form, price=price, roots=list(map(str, state.specs.roots)), key=secrets.token_hex(16)
    )


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form.

    Raises:
        RequestError: there are too many.
    """
    raw = (await request.body()).decode(errors="replace")
    try:
        fields = parse_qs(raw, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as e:
        message = f"the form has more than the {MAX_FIELDS} fields allowed"
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, message) from e
    return {name: values[-1] for name, values in fields.items()}


def _limit(form: dict[str, str]) -> BudgetsFor | None:
    """Return what a sweep whose budgets are `auto` may cost; None where the form does not say.

    Raises:
        RequestError: it is no positive number, or its unit is unknown.
    """
    text, unit = form.get("limit", "").strip(), form.get("unit", "minutes")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if unit not in ("minutes", "hours", "flops") or not 0 < value < math.inf:
        message = f"limit: {text!r} {unit} is no cost; give a positive number of minutes, hours or flops"
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, message)
    return BudgetsFor.model_validate({unit: value})


def _additions(form: dict[str, str]) -> Additions:
    """Return the additions in the form.

    Raises:
        RequestError: a field is no number.
    """
    try:
        return Additions(
            budgets=tuple(float(word) for word in form.get("budgets", "").replace(",", " ").split()),
            sizes=tuple(int(word) for word in form.get("sizes", "").replace(",", " ").split()),
            seeds=int(form["seeds"]) if form.get("seeds") else None,
        )
    except ValueError as e:
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, f"{e}; give numbers separated by spaces") from e


def _short(state: AppState, snapshot: Snapshot) -> dict[str, Any] | None:
    """Return the newest fit in the cache; a newer one may be in progress."""
    if not snapshot.sweep.results or snapshot.sweep.spec.is_one_run:
        return None
    found = state.fit_worker.newest("short", snapshot.sweep.paths.root, snapshot.version)
    return None if found is None else {**redacted_values(json.loads(found[1])), "version": found[0]}


def _is_stale(snapshot: Snapshot | None, short: dict[str, Any] | None) -> bool:
    """Return True if a newer fit is in progress."""
    if snapshot is None or not snapshot.sweep.results or snapshot.sweep.spec.is_one_run:
        return False
    return short is None or short["results"] != len(snapshot.sweep.results)


def _listed(snapshot: Snapshot, query: dict[str, Any], offset: int) -> dict[str, Any]:
    rows = views.chosen(
        snapshot, status=query["status"], budget=None, role=None, sort=query["sort"], down=bool(query["down"])
    )
    return views.page_of(rows, offset, ROWS)


def _failures(snapshot: Snapshot) -> list[dict[str, Any]]:
    return [views.experiment_view(snapshot, failure.key) for failure in snapshot.sweep.failures[:MAX_FAILURES]]


async def _prediction(state: AppState, snapshot: Snapshot | None, budget: str) -> dict[str, Any]:
    """Return the prediction for the form, or the reason why there is none."""
    if not budget or snapshot is None:
        return {}
    try:
        c = float(budget)
    except ValueError:
        c = math.nan
    if not 1 <= c <= views.MAX_BUDGET:
        return {"error": f"{budget!r} is not a number of FLOPs from 1 to {views.MAX_BUDGET:g}; give e.g. 1e21"}
    try:
        root = snapshot.sweep.paths.root
        found = await state.fit_worker.answer(PREDICT_SECONDS, "predict", root, snapshot.version, repr(c))
        return dict(json.loads(found))
    except FitError as e:
        return {"error": str(e)}
    except TimeoutError:
        return {"error": "the fit is still running; try again in a moment"}
