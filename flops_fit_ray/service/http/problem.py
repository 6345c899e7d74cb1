"""Errors as `application/problem+json` (RFC 9457), beside `error` and `faults`, which this API has always had."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from flops_fit_ray.service.http.redact import redacted

MEDIA_TYPE = "application/problem+json"
TYPES = "/docs/troubleshooting"  # page of the service with an anchor for each of:
KINDS: Mapping[str, tuple[str, str]] = {  # what it means, what to do; docs/troubleshooting.md has the same
    "token": (
        "The token is missing or wrong, or a browser sends the request for another page.",
        "Send `Authorization: Bearer TOKEN` with the content of ROOT/.service/token; in a browser, log in.",
    ),
    "host": (
        "The request names a host that the service does not know as its own.",
        "Start it with `--name HOST[:PORT]`, as a proxy or a browser says it.",
    ),
    "spec": (
        "The spec, or what was to be added to a sweep, is refused; `faults` has a line for each reason.",
        "Each line says what to write instead; `POST /api/v1/specs/validate` tries a spec without starting it.",
    ),
    "running": (
        "A run of this sweep waits, trains or stops, here or elsewhere.",
        "Stop it, or wait until it ends: `GET /api/v1/sweeps/NAME` says where it stands.",
    ),
    "name_taken": (
        "There is a sweep of this name already.",
        "Resume or extend it, give another name, or delete it, which moves it to the bin.",
    ),
    "no_results": (
        "No experiment is completed yet, or the results so far make no law.",
        "Wait for results; `GET /api/v1/sweeps/NAME/experiments?status=failed` has the errors of those that failed.",
    ),
    "busy": (
        "The service has as much to do as it takes: its queue is full, or fits or prices of others come first.",
        "Ask again after the seconds of `Retry-After`; of a slow fit with `Prefer: respond-async`.",
    ),
    "changed": (
        "The sweep or spec is another than the one that `If-Match` names.",
        "Get it again, look at it, and send the ETag that it has now.",
    ),
    "key_reused": (
        "The `Idempotency-Key` came with another request before.",
        "Take a new key for each request, and the same one only to send that request again.",
    ),
    "key_in_use": (
        "The first request with this `Idempotency-Key` is still being carried out.",
        "Ask again after the seconds of `Retry-After`; the answer will be that of the first.",
    ),
}
RETRY_SECONDS = 5  # where nothing better is known


def problem(
    status: HTTPStatus, message: str, faults: Sequence[str] = (), *, instance: str, kind: str = ""
) -> dict[str, Any]:
    """Return the body of an error, with secrets redacted.

    Args:
        instance: path of the request.
        kind: key of `KINDS`; nothing where its status says all.
    """
    said = redacted(message)
    return {
        "type": f"{TYPES}#{kind}" if kind else "about:blank",
        "title": status.phrase,
        "status": int(status),
        "detail": said,
        "instance": instance,
        "error": said,
        "faults": [redacted(fault) for fault in faults],
    }


def encoded(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a body."""
    return json.dumps(content).encode()


def path_of(scope: Mapping[str, Any]) -> str:
    """Return the path of a request as it was sent, without its query."""
    raw: bytes = scope.get("raw_path") or str(scope["path"]).encode()
    return raw.partition(b"?")[0].decode("latin-1")
