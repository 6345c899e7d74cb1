"""The published OpenAPI: what holds on every route is added here, once."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from flops_fit_ray.service.http.problem import MEDIA_TYPE
from flops_fit_ray.service.rest._shapes import Problem

ERRORS = (400, 401, 403, 404, 405, 408, 409, 413, 421, 422, 500, 503)
OF_GET = (412, 416)  # of If-Match and Range
PUBLIC = "/api/v1/health"


def published(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI with the token, the errors and the answers of conditional requests on every route."""
    components = schema.setdefault("components", {})
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"token": []}]
    schema["paths"][PUBLIC]["get"]["security"] = []
    shapes = components.setdefault("schemas", {})
    shapes[Problem.__name__] = Problem.model_json_schema()
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which are not sent
        shapes.pop(name, None)
    for item in schema["paths"].values():
        for method, route in item.items():
            _complete(route["responses"], is_get=method == "get")
    return schema


def _complete(responses: dict[str, Any], *, is_get: bool) -> None:
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    for code in ERRORS + (OF_GET if is_get else ()):
        responses[str(code)] = {"description": HTTPStatus(code).phrase, "content": content}
    if is_get:
        responses["304"] = {"description": HTTPStatus.NOT_MODIFIED.phrase}
