"""A spec as the body of a request: YAML as it stands in sweep.yaml, with the other fields in the query."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from flops_fit_ray.service.http.request_error import RequestError

MEDIA_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")  # the first: RFC 9512
BODY = {"requestBody": {"content": {MEDIA_TYPES[0]: {"schema": {"type": "string"}}}}}  # beside JSON


class YamlRoute(APIRoute):
    """Route whose JSON body has a field `text`, and which takes YAML as that field."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, which is given JSON in either case."""
        handler = super().get_route_handler()

        async def handling(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            return await handler(await _as_json(request) if media_type in MEDIA_TYPES else request)

        return handling


async def _as_json(request: Request) -> Request:
    try:
        text = (await request.body()).decode()
    except UnicodeDecodeError as e:
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, f"the body is not UTF-8 text (byte {e.start})") from e
    body = json.dumps({**request.query_params, "text": text}).encode()
    others = [(name, value) for name, value in request.scope["headers"] if name.lower() != b"content-type"]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [*others, (b"content-type", b"application/json")]
    return Request({**request.scope, "headers": headers}, receive)
