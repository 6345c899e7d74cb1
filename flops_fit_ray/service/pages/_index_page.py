"""All sweeps, and the door."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from flops_fit_ray.service.app_state import AppState, app_state_of
from flops_fit_ray.service.http.guard import Credentials
from flops_fit_ray.service.http.html import page
from flops_fit_ray.service.pages._forms import fields_of
from flops_fit_ray.service.state import views

ROWS = 50  # sweeps of a page

routes = APIRouter()


@routes.get("/", response_class=HTMLResponse)
def index(request: Request, offset: Annotated[int, Query(ge=0)] = 0) -> str:
    """Show all sweeps."""
    state = app_state_of(request)
    sweeps = state.sweeps()
    listed = views.page_of(sweeps, offset, ROWS)
    answers = {view["name"]: _answer(state, view["name"]) for view in listed["items"]}
    return page(
        "index.html.j2",
        listed=listed,
        rows=ROWS,
        answers=answers,
        stale=any(answer == {} for answer in answers.values()),
        comparable=[name for name, answer in answers.items() if answer],
        server=state.server(sweeps),
        specs=state.specs.all()[:20],
    )


def _answer(state: AppState, name: str) -> dict[str, Any] | None:
    """Return the answer of a sweep: empty while it is not known yet, None where there is none."""
    snapshot = state.caches.now(name)
    if snapshot is None or not snapshot.sweep.results or snapshot.sweep.spec.is_one_run:
        return None
    found = state.fit_worker.newest_if_idle("short", snapshot)
    return {} if found is None else json.loads(found[1])["at"]


@routes.get("/login", response_class=HTMLResponse)
def login_form() -> str:
    """Show the form for the token."""
    return page("login.html.j2", wrong=False)


@routes.post("/login")
async def login(request: Request) -> Response:
    """Check the token and set the session cookie, which does not contain it."""
    key: Credentials = request.app.state.key
    if not key.is_token((await fields_of(request)).get("token", "").strip()):
        return HTMLResponse(page("login.html.j2", wrong=True), status_code=HTTPStatus.FORBIDDEN)
    response = RedirectResponse("/", HTTPStatus.SEE_OTHER)
    secure = request.url.scheme == "https"
    response.set_cookie(key.cookie, key.session, httponly=True, samesite="strict", secure=secure, path="/")
    return response


@routes.post("/logout")
def logout(request: Request) -> Response:
    """Delete the session cookie."""
    response = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    response.delete_cookie(request.app.state.key.cookie, path="/")
    return response
