"""Form of a new sweep: its spec, its price, its start."""

from __future__ import annotations

import asyncio
import secrets
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from flops_fit_ray.errors import SpecError
from flops_fit_ray.service.app_state import AppState, app_state_of, faulty
from flops_fit_ray.service.http.html import page
from flops_fit_ray.service.http.request_error import RequestError
from flops_fit_ray.service.pages._forms import cost_limit, fields_of, to_sweep
from flops_fit_ray.sweep.run_limits import RunLimits

routes = APIRouter()


@routes.get("/new", response_class=HTMLResponse)
def new(request: Request, spec: Annotated[str | None, Query(max_length=40)] = None) -> str:
    """Show the form for a new sweep."""
    state = app_state_of(request)
    known = None if spec is None else state.specs.named(spec)
    form = {} if known is None else {"text": known.text, "code": known.code}
    return _new(state, form, None)


@routes.post("/new")
async def validated(request: Request) -> Response:
    """Show plan and price of the spec in the form, or start it if the second button was pressed."""
    state, form = app_state_of(request), await fields_of(request)
    text, code = form.get("text", "").replace("\r\n", "\n"), form.get("code") or None
    try:
        limit = cost_limit(form)
        if form.get("do") == "start":
            stored, _ = await asyncio.to_thread(state.specs.create, text, code)
            name, key = form.get("name") or None, form.get("key") or None
            run, _ = await asyncio.to_thread(state.runs.start, stored, name, RunLimits(), key, limit)
            await asyncio.to_thread(state.runs.start_waiting)
            return to_sweep(run.sweep)
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
