"""Client of the service, in the standard library alone: `Client("http://127.0.0.1:8400", token)`."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from flops_fit_ray.errors import FlopsFitError

ENDED = ("stopped", "completed", "failed")


class ServiceError(FlopsFitError):
    """The service answered with an error. `status` is the HTTP status, `faults` has one line per fault."""

    def __init__(self, status: int, message: str, faults: list[str]) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.faults = status, faults


class Client:
    """Client of one service. All methods raise ServiceError on an error status, and OSError without a connection.

    Args:
        token: the content of ROOT/.service/token, or the path of that file.
    """

    def __init__(self, url: str, token: str | Path, *, timeout: float = 150.0) -> None:
        self._url, self._timeout = f"{url.rstrip('/')}/api/v1", timeout
        self._token = token.read_text().strip() if isinstance(token, Path) else token

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> HTTPResponse:
        """Request any route of the API; the response is a file of bytes."""
        content = None if body is None else json.dumps(body).encode()
        every = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json", **headers}
        asked = Request(self._url + path, content, every, method=method)  # noqa: S310 - the owner's own address
        try:
            return cast(HTTPResponse, urlopen(asked, timeout=self._timeout))  # noqa: S310 - as above
        except HTTPError as e:
            with e:
                raw = e.read()
            problem: dict[str, Any] = json.loads(raw) if raw.startswith(b"{") else {"error": e.reason}
            raise ServiceError(e.code, problem["error"], problem.get("faults", [])) from None

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Request a route and return its JSON; None if the answer is empty."""
        with self.request(method, path, body, **headers) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    def pages(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield all items of a paged list."""
        offset: int | None = 0
        while offset is not None:
            page = self.ask("GET", f"{path}?{urlencode({**query, 'offset': offset, 'limit': 1000})}")
            yield from page["items"]
            offset = page["next"]

    def validate(self, text: str, code: str | None = None, **limit: float) -> dict[str, Any]:
        """Return the plan and price of a spec, or its faults; nothing is stored.

        Args:
            limit: minutes, hours or flops that a sweep with `budgets: auto` may cost, as for `start`.
        """
        return dict(self.ask("POST", "/specs/validate", {"text": text, "code": code, **limit}))

    def start(
        self, text: str, *, code: str | None = None, name: str | None = None, key: str | None = None, **limits: Any
    ) -> str:
        """Start a sweep and return its name. The same key never starts a second one; without a key each call does."""
        body = {"text": text, "code": code, "name": name, **limits}
        return str(self.ask("POST", "/sweeps", body, **{"Idempotency-Key": key or uuid.uuid4().hex})["name"])

    def sweep(self, name: str) -> dict[str, Any]:
        """Return the state and progress of a sweep."""
        return dict(self.ask("GET", f"/sweeps/{quote(name)}"))

    def act(self, name: str, what: str, *, key: str | None = None, **more: Any) -> dict[str, Any]:
        """Stop or resume a sweep, or extend it with budgets, sizes or seeds; with the same key once, however often."""
        body, headers = more or ({} if what == "extend" else None), {} if key is None else {"Idempotency-Key": key}
        return dict(self.ask("POST", f"/sweeps/{quote(name)}/{what}", body, **headers))

    def wait(self, name: str, seconds: float = 3600.0) -> dict[str, Any]:
        """Wait until the sweep is stopped, completed or failed, or the time is over, and return its state."""
        deadline = time.monotonic() + seconds
        while (found := self.sweep(name))["state"] not in ENDED and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def events(self, name: str, since: str | None = None) -> Iterator[tuple[str, str | None, Any]]:
        """Yield kind, id and content of each event until the connection ends; `since`: the id of the last one seen."""
        path, headers = f"/sweeps/{quote(name)}/events", {} if since is None else {"Last-Event-ID": since}
        with self.request("GET", path, **headers) as lines:
            event: dict[str, str] = {}
            for line in lines:
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field:
                    event[field] = value
                    continue
                if "data" in event:
                    yield event["event"], event.get("id"), json.loads(event["data"])
                event = {}

    def download(self, name: str, checkpoint_id: str, to: Path) -> Path:
        """Download a checkpoint and check its sha256."""
        path = f"/sweeps/{quote(name)}/checkpoints/{quote(checkpoint_id)}"
        wanted, digest = self.ask("GET", path)["sha256"], hashlib.sha256()
        with self.request("GET", f"{path}/file") as answer, to.open("wb") as file:
            while chunk := answer.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != wanted:
            raise OSError(f"{to}: sha256 is {digest.hexdigest()}, but should be {wanted}; download it again")
        return to
