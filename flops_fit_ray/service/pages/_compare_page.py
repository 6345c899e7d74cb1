"""Two sweeps beside each other."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from flops_fit_ray.errors import FlopsFitError
from flops_fit_ray.service.app_state import app_state_of, fresh_snapshot
from flops_fit_ray.service.http.html import page
from flops_fit_ray.service.http.request_error import RequestError
from flops_fit_ray.service.pages._forms import flops_of

WAIT_SECONDS = 2.0  # for the fits of both; then the page says that they are made, and asks again

routes = APIRouter()


@routes.get("/compare", response_class=HTMLResponse)
async def compare(
    request: Request,
    first: Annotated[str, Query(max_length=100)] = "",
    second: Annotated[str, Query(max_length=100)] = "",
    budget: Annotated[str, Query(max_length=40)] = "",
) -> str:
    """Show the differences of two sweeps, or the form that asks for them."""
    names = await asyncio.to_thread(app_state_of(request).caches.names)
    found = await _compared(request, first, second, budget) if first and second else {}
    return page("compare.html.j2", names=names, first=first, second=second, budget=budget, found=found)


async def _compared(request: Request, first: str, second: str, budget: str) -> dict[str, Any]:
    """Return the comparison, `pending` while it is fitted, or `error` with the reason why there is none."""
    c = flops_of(budget) if budget else ""
    if isinstance(c, dict):
        return c
    try:
        one, other = await fresh_snapshot(request, first), await fresh_snapshot(request, second)
        for name, snapshot in ((first, one), (second, other)):
            if not snapshot.sweep.results:
                return {"error": f"no experiment of {name} is completed yet"}
        worker, at = app_state_of(request).fit_worker, repr(c) if c else ""
        return dict(json.loads(await worker.answer(WAIT_SECONDS, "compare", one, at, beside=other)))
    except TimeoutError:
        return {"pending": True}
    except (RequestError, FlopsFitError) as e:
        return {"error": e.message if isinstance(e, RequestError) else str(e)}
