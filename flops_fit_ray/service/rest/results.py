"""Routes of what a sweep came to: table, fit, prediction, report, figures."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from flops_fit_ray.service.app_state import answer, as_is, as_json, as_svg, fresh, of_kind
from flops_fit_ray.service.http.guard import STANDALONE
from flops_fit_ray.service.http.redact import redacted, redacted_values
from flops_fit_ray.service.http.refusal import Refusal
from flops_fit_ray.service.rest import shapes
from flops_fit_ray.service.rest.shapes import Limit, Offset
from flops_fit_ray.service.state import views

FIGURES = ("valleys", "laws", "curves")
KINDS = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}

routes = APIRouter()


@routes.get(
    "/sweeps/{name}/results",
    tags=["results"],
    response_model=shapes.ExperimentPage,
    responses=of_kind("text/csv", "application/vnd.apache.parquet"),
)
async def results(
    request: Request,
    name: str,
    kind: Annotated[Literal["json", "csv", "parquet"], Query(alias="format")] = "json",
    offset: Offset = 0,
    limit: Limit = 1000,
) -> Response:
    """The table, a row per experiment: a page of it as JSON, all of it as CSV or parquet."""
    reading = await fresh(request, name)
    if kind == "json":
        return as_json(views.page_of(reading.rows, offset, limit))
    headers = {"content-disposition": f'attachment; filename="{name}.{kind}"'}
    return Response(await answer(request, reading, kind), media_type=KINDS[kind], headers=headers)


@routes.get("/sweeps/{name}/fit", tags=["results"])
async def fit(request: Request, name: str) -> Response:
    """All fits with intervals, warnings and the validity card, as `fit --json` has them."""
    return as_is(await answer(request, await fresh(request, name), "fit"))


@routes.get("/sweeps/{name}/predict", tags=["results"])
async def predict(request: Request, name: str, budget: Annotated[float, Query(gt=0, allow_inf_nan=False)]) -> Response:
    """N, D and loss at `budget` FLOPs with intervals, and the run that this asks for."""
    return as_is(await answer(request, await fresh(request, name), "predict", repr(budget)))


@routes.get("/sweeps/{name}/summary", tags=["results"])
async def summary(request: Request, name: str) -> Response:
    """The report for programs."""
    return as_json(redacted_values(json.loads(await answer(request, await fresh(request, name), "summary"))))


@routes.get("/sweeps/{name}/report", tags=["results"], response_class=Response, responses=of_kind("text/html"))
async def report(request: Request, name: str) -> Response:
    """The report of what is there now, as one HTML page."""
    content = redacted((await answer(request, await fresh(request, name), "report")).decode())
    headers = {"content-security-policy": STANDALONE, "content-disposition": f'inline; filename="{name}.html"'}
    return Response(content, media_type="text/html", headers=headers)


@routes.get(
    "/sweeps/{name}/figures/{figure}", tags=["results"], response_class=Response, responses=of_kind("image/svg+xml")
)
async def figure(request: Request, name: str, figure: str) -> Response:
    """valleys, laws or curves, as SVG."""
    if figure not in FIGURES:
        raise Refusal(HTTPStatus.NOT_FOUND, f"no such figure; there are {', '.join(FIGURES)}")
    return as_svg(await answer(request, await fresh(request, name), figure))
