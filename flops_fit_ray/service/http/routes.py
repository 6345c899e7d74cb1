"""Methods that a path allows, and routes that may answer later."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts


def methods_of(app: FastAPI, path: str) -> list[str]:
    """Return the methods that a path allows, sorted; none if there is no such path."""
    found = {
        method for route in _routes_of(app, path) for method in route.methods or ("GET",)
    }  # static files have none
    if not found:
        return []
    return sorted(found | {"OPTIONS"} | ({"HEAD"} if "GET" in found else set()))


def may_answer_later(app: FastAPI, method: str, path: str) -> bool:
    """Return True if the published description of a route has the answer 202."""
    accepted = int(HTTPStatus.ACCEPTED)
    return any(
        method in (route.methods or ()) and accepted in getattr(route, "responses", {})
        for route in _routes_of(app, path)
    )


def _routes_of(app: FastAPI, path: str) -> Iterator[Any]:
    if not hasattr(app.state, "all_routes"):
        app.state.all_routes = list(iter_route_contexts(app.routes))
    return (route for route in app.state.all_routes if route.path_regex.match(path))
