"""Errors of requests, with their HTTP status."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        faults: one line per fault, if there are several.
        kind: key of `problem.KINDS`, where there is more to be said of such errors.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        faults: Sequence[str] = (),
        *,
        kind: str = "",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.faults = status, message, tuple(faults)
        self.kind, self.retry_after = kind, retry_after


def not_found(what: str) -> RequestError:
    """Return a 404 error."""
    return RequestError(HTTPStatus.NOT_FOUND, f"no such {what}")


def conflict(message: str, kind: str = "") -> RequestError:
    """Return a 409 error: the present state does not allow the request."""
    return RequestError(HTTPStatus.CONFLICT, message, kind=kind)


def busy(message: str, retry_after: int | None = None) -> RequestError:
    """Return a 503 error: the same request may succeed later."""
    return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, message, kind="busy", retry_after=retry_after)
