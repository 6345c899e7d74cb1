"""The pages, made on the server: complete without any script, which only keeps them up to date."""

from __future__ import annotations

import asyncio
import json
import secrets
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from flops_fit_ray.errors import FitError, SpecError
from flops_fit_ray.service.app_state import AppState, app_state_of, faulty
from flops_fit_ray.service.http.guard import Key
from flops_fit_ray.service.http.html import page
from flops_fit_ray.service.http.redact import redacted, redacted_values
from flops_fit_ray.service.http.refusal import Refusal
from flops_fit_ray.service.runs.queue import More
from flops_fit_ray.service.state import views
from flops_fit_ray.service.state.cache import Reading
from flops_fit_ray.spec import dump_spec
from flops_fit_ray.sweep.run_limits import RunLimits

ROWS = 50
MAX_FAILURES = 20
PREDICT_SECONDS = 60.0
HEADS = (
    ("budget", "C"), ("size", "size"), ("params", "N"), ("tokens", "D"), ("role", "role"), ("status", "status"),
    ("share", "done"), ("loss", "loss"), ("seconds", "time"), ("attempts", "starts"),
)  # fmt: skip

pages = APIRouter(include_in_schema=False)


@pages.get("/", response_class=HTMLResponse)
def index(request: Request) -> str:
    """All sweeps."""
    parts = app_state_of(request)
    sweeps = parts.sweeps()
    return page("index.html.j2", sweeps=sweeps, server=parts.server(sweeps), specs=parts.specs.all()[:20])


@pages.get("/login", response_class=HTMLResponse)
def login_form() -> str:
    """Asks for the token."""
    return page("login.html.j2", wrong=False)


@pages.post("/login")
async def login(request: Request) -> Response:
    """Takes the token, and leaves a cookie that only stands for it."""
    key: Key = request.app.state.key
    if not key.is_token((await _form(request)).get("token", "").strip()):
        return HTMLResponse(page("login.html.j2", wrong=True), status_code=HTTPStatus.FORBIDDEN)
    answer = RedirectResponse("/", HTTPStatus.SEE_OTHER)
    secure = request.url.scheme == "https"
    answer.set_cookie(key.cookie, key.session, httponly=True, samesite="strict", secure=secure, path="/")
    return answer


@pages.post("/logout")
def logout(request: Request) -> Response:
    """Forgets it."""
    answer = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    answer.delete_cookie(request.app.state.key.cookie, path="/")
    return answer


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
    """One sweep: how it stands, its valleys, its experiments, its failures."""
    parts = app_state_of(request)
    reading = await asyncio.to_thread(parts.mirrors.now, name)
    query = {
        "status": status or None,
        "sort": sort if sort in views.SORTS else None,
        "down": down or None,
        "budget": budget or None,
    }
    prediction = await _prediction(parts, reading, budget)
    return await asyncio.to_thread(_sweep, parts, name, reading, query, offset, prediction)


def _sweep(
    parts: AppState, name: str, reading: Reading | None, query: dict[str, Any], offset: int, prediction: dict[str, Any]
) -> str:
    short = None if reading is None else _short(parts, reading)

    def link(**changed: Any) -> str:
        merged = {k: v for k, v in {**query, **changed}.items() if v is not None}
        return f"/sweeps/{quote(name)}?{urlencode({k: int(v) if v is True else v for k, v in merged.items()})}"

    return page(
        "sweep.html.j2",
        view=parts.view(name),
        reading=reading,
        short=short,
        stale=_is_stale(reading, short),
        listed=None if reading is None else _listed(reading, query, offset),
        query=query,
        heads=HEADS,
        sorts=views.SORTS,
        link=link,
        failures=[] if reading is None else _failures(reading),
        devices=[] if reading is None else views.devices_of(reading),
        prediction=prediction,
        spec_text="" if reading is None else redacted(dump_spec(reading.sweep.spec)),
        log=views.log_text(parts.runs.log(name), views.LOG_LINES),
    )


@pages.get("/sweeps/{name}/experiments/{key}", response_class=HTMLResponse)
def experiment(request: Request, name: str, key: str) -> str:
    """One experiment."""
    parts = app_state_of(request)
    reading = parts.reading(name)
    found = views.experiment_view(reading, key)
    stamp = views.changed(reading.sweep.paths.curve(key))
    return page("experiment.html.j2", name=name, e=found, drawn=stamp is not None, stamp=stamp)


@pages.post("/sweeps/{name}/stop")
def stop(request: Request, name: str) -> Response:
    """The button."""
    app_state_of(request).runs.stop(name)
    return _to(name)


@pages.post("/sweeps/{name}/resume")
def resume(request: Request, name: str) -> Response:
    """The button."""
    return _go_on(app_state_of(request), name, More())


@pages.post("/sweeps/{name}/extend")
async def extend(request: Request, name: str) -> Response:
    """The button beside what is to be added."""
    return await asyncio.to_thread(_go_on, app_state_of(request), name, _more(await _form(request)))


def _go_on(parts: AppState, name: str, more: More) -> Response:
    parts.runs.go_on(name, more, RunLimits())
    parts.runs.pump()
    return _to(name)


def _to(name: str) -> Response:
    return RedirectResponse(f"/sweeps/{quote(name)}", HTTPStatus.SEE_OTHER)


@pages.get("/new", response_class=HTMLResponse)
def new(request: Request, spec: Annotated[str | None, Query(max_length=40)] = None) -> str:
    """A form for a spec."""
    parts = app_state_of(request)
    known = None if spec is None else parts.specs.named(spec)
    form = {} if known is None else {"text": known.text, "code": known.code}
    return _new(parts, form, None)


@pages.post("/new")
async def validated(request: Request) -> Response:
    """Says what a spec would run and cost; the second button starts it."""
    parts, form = app_state_of(request), await _form(request)
    text, code = form.get("text", "").replace("\r\n", "\n"), form.get("code") or None
    try:
        if form.get("do") == "start":
            stored, _ = await asyncio.to_thread(parts.specs.create, text, code)
            name, key = form.get("name") or None, form.get("key") or None
            start, _ = await asyncio.to_thread(parts.runs.start, stored, name, RunLimits(), key)
            await asyncio.to_thread(parts.runs.pump)
            return RedirectResponse(f"/sweeps/{quote(start.sweep)}", HTTPStatus.SEE_OTHER)
        price = await asyncio.to_thread(parts.price, text, code)
    except SpecError as e:
        price = faulty(e.faults)
    except Refusal as e:
        price = faulty([e.words])
    status = HTTPStatus.OK if price["valid"] else HTTPStatus.UNPROCESSABLE_ENTITY
    return HTMLResponse(_new(parts, form, price), status_code=status)


def _new(parts: AppState, form: dict[str, str], price: dict[str, Any] | None) -> str:
    return page(
        "new.html.j2", form=form, price=price, roots=list(map(str, parts.specs.roots)), key=secrets.token_hex(16)
    )


async def _form(request: Request) -> dict[str, str]:
    raw = (await request.body()).decode(errors="replace")
    return {name: values[-1] for name, values in parse_qs(raw, keep_blank_values=True, max_num_fields=50).items()}


def _more(form: dict[str, str]) -> More:
    """What the form adds.

    Raises:
        Refusal: a field holds no number.
    """
    try:
        return More(
            budgets=tuple(float(word) for word in form.get("budgets", "").replace(",", " ").split()),
            sizes=tuple(int(word) for word in form.get("sizes", "").replace(",", " ").split()),
            seeds=int(form["seeds"]) if form.get("seeds") else None,
        )
    except ValueError as e:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"{e}; give numbers, with spaces between them") from e


def _short(parts: AppState, reading: Reading) -> dict[str, Any] | None:
    """The newest answer that is there; a newer one is being made."""
    if not reading.sweep.results or reading.sweep.spec.is_one_run:
        return None
    found = parts.work.newest("short", reading.sweep.paths.root, reading.version)
    return None if found is None else {**redacted_values(json.loads(found[1])), "version": found[0]}


def _is_stale(reading: Reading | None, short: dict[str, Any] | None) -> bool:
    """Whether a newer fit is on its way."""
    if reading is None or not reading.sweep.results or reading.sweep.spec.is_one_run:
        return False
    return short is None or short["results"] != len(reading.sweep.results)


def _listed(reading: Reading, query: dict[str, Any], offset: int) -> dict[str, Any]:
    rows = views.chosen(
        reading, status=query["status"], budget=None, role=None, sort=query["sort"], down=bool(query["down"])
    )
    return views.page_of(rows, offset, ROWS)


def _failures(reading: Reading) -> list[dict[str, Any]]:
    return [views.experiment_view(reading, failure.key) for failure in reading.sweep.failures[:MAX_FAILURES]]


async def _prediction(parts: AppState, reading: Reading | None, budget: str) -> dict[str, Any]:
    """What the form of `predict` shows: the answer, or why there is none."""
    if not budget or reading is None:
        return {}
    try:
        c = float(budget)
    except ValueError:
        return {"error": f"{budget!r} is no number of FLOPs"}
    try:
        root = reading.sweep.paths.root
        found = await parts.work.answer(PREDICT_SECONDS, "predict", root, reading.version, repr(c))
        return dict(json.loads(found))
    except FitError as e:
        return {"error": str(e)}
    except TimeoutError:
        return {"error": "the fit is still being made; ask again in a moment"}
