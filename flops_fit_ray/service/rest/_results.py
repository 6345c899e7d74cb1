"""Routes of a sweep's results: table, fit, prediction, report, figures."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from flops_fit_ray.service.app_state import as_is, as_json, as_page, as_svg, ask_fit_worker, fresh_snapshot, of_kind
from flops_fit_ray.service.http.guard import STANDALONE
from flops_fit_ray.service.http.redact import redacted, redacted_values
from flops_fit_ray.service.http.request_error import RequestError
from flops_fit_ray.service.rest import _documents as documents
from flops_fit_ray.service.rest import _shapes as shapes
from flops_fit_ray.service.rest._predict_query import PredictQuery
from flops_fit_ray.service.rest._shapes import Limit, Offset

FIGURES = ("valleys", "laws", "curves")
KINDS = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}

routes = APIRouter()


@routes.get(
    "/sweeps/{name}/results",
    tags=["results"],
    response_model=shapes.ExperimentPage,
    responses={**of_kind("text/csv", "application/vnd.apache.parquet"), **shapes.LATER},
)
async def get_results(
    request: Request,
    name: str,
    kind: Annotated[Literal["json", "csv", "parquet"], Query(alias="format")] = "json",
    offset: Offset = 0,
    limit: Limit = 1000,
) -> Response:
    """Return a row per experiment: one page as JSON, or the whole table as CSV or parquet."""
    snapshot = await fresh_snapshot(request, name)
    if kind == "json":
        return as_page(request, snapshot.rows, offset, limit)
    headers = {"content-disposition": f'attachment; filename="{name}.{kind}"'}
    return Response(await ask_fit_worker(request, snapshot, kind), media_type=KINDS[kind], headers=headers)


@routes.get("/sweeps/{name}/fit", tags=["results"], response_model=documents.FitOut, responses=shapes.LATER)
async def get_fit(request: Request, name: str) -> Response:
    """Return all fits with intervals, warnings and the validity card, as `fit --json` prints them."""
    return as_is(await ask_fit_worker(request, await fresh_snapshot(request, name), "fit"))


@routes.get("/sweeps/{name}/predict", tags=["results"], response_model=documents.PredictOut, responses=shapes.LATER)
async def get_prediction(
    request: Request,
    name: str,
    asked: Annotated[PredictQuery, Query()],
) -> Response:
    """Return N, D and loss at `budget` FLOPs, or for a loss, with intervals, and the recommended training run."""
    return as_is(await ask_fit_worker(request, await fresh_snapshot(request, name), "predict", *asked.words))


@routes.get("/sweeps/{name}/summary", tags=["results"], response_model=documents.SummaryOut, responses=shapes.LATER)
async def get_summary(request: Request, name: str) -> Response:
    """Return the content of summary.json."""
    return as_json(
        redacted_values(json.loads(await ask_fit_worker(request, await fresh_snapshot(request, name), "summary")))
    )


@routes.get(
    "/sweeps/{name}/report",
    tags=["results"],
    response_class=Response,
    responses={**of_kind("text/html"), **shapes.LATER},
)
async def get_report(request: Request, name: str) -> Response:
    """Return the report of the results so far, as one HTML page."""
    content = redacted((await ask_fit_worker(request, await fresh_snapshot(request, name), "report")).decode())
    headers = {"content-security-policy": STANDALONE, "content-disposition": f'inline; filename="{name}.html"'}
    return Response(content, media_type="text/html", headers=headers)


@routes.get(
    "/sweeps/{name}/figures/{figure}",
    tags=["results"],
    response_class=Response,
    responses={**of_kind("image/svg+xml"), **shapes.LATER},
)
async def get_figure(request: Request, name: str, figure: str) -> Response:
    """Return a figure as SVG: valleys, laws or curves."""
    if figure not in FIGURES:
        raise RequestError(HTTPStatus.NOT_FOUND, f"no such figure; take one of {', '.join(FIGURES)}")
    return as_svg(await ask_fit_worker(request, await fresh_snapshot(request, name), figure))
