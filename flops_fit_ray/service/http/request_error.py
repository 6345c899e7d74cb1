"""Errors of requests, with their HTTP status."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus


class RequestError(Exception):
    """A request that is answered with an error. `faults` has one line per fault, if there are several."""

    def __init__(self, status: HTTPStatus, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.status, self.message, self.faults = status, message, tuple(faults)


def not_found(what: str) -> RequestError:
    """Return a 404 error."""
    return RequestError(HTTPStatus.NOT_FOUND, f"no such {what}")


def conflict(message: str) -> RequestError:
    """Return a 409 error: the present state does not allow the request."""
    return RequestError(HTTPStatus.CONFLICT, message)
