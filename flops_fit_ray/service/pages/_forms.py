"""Forms of the pages: their fields, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, quote

from fastapi import Request
from fastapi.responses import RedirectResponse, Response

from flops_fit_ray.service.http.request_error import RequestError
from flops_fit_ray.service.runs.asked import Additions
from flops_fit_ray.service.state import views
from flops_fit_ray.spec import BudgetsFor

MAX_FIELDS = 50  # of a form


async def fields_of(request: Request) -> dict[str, str]:
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


def cost_limit(form: Mapping[str, str]) -> BudgetsFor | None:
    """Return what a sweep whose budgets are `auto` may cost; None where the form does not say.

    Raises:
        RequestError: it is no positive number, or its unit is unknown.
    """
    text, unit = form.get("limit", "").strip(), form.get("unit", "minutes")
    if not text:
        return None
    value = _number(text)
    if unit not in ("minutes", "hours", "flops") or not 0 < value < math.inf:
        message = f"limit: {text!r} {unit} is no cost; give a positive number of minutes, hours or flops"
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, message)
    return BudgetsFor.model_validate({unit: value})


def additions_of(form: Mapping[str, str]) -> Additions:
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


def flops_of(text: str) -> float | dict[str, Any]:
    """Return a number of FLOPs, or `error` with what is wrong with it."""
    c = _number(text)
    if 1 <= c <= views.MAX_BUDGET:
        return c
    return {"error": f"{text!r} is not a number of FLOPs from 1 to {views.MAX_BUDGET:g}; give e.g. 1e21"}


def served_of(text: str) -> float | dict[str, Any]:
    """Return a number of tokens, or `error` with what is wrong with it."""
    tokens = _number(text)
    if 1 <= tokens <= views.MAX_BUDGET:
        return tokens
    return {"error": f"{text!r} is not a number of tokens from 1 to {views.MAX_BUDGET:g}; give e.g. 1e12"}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def to_sweep(name: str, place: str = "") -> Response:
    """Return the redirection to a sweep's page after a form."""
    return RedirectResponse(f"/sweeps/{quote(name)}{place}", HTTPStatus.SEE_OTHER)
