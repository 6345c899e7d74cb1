"""Middleware that answers later: `Prefer: respond-async` (RFC 7240) gets 202 at once, and a place to look.

They are held in memory, for whoever has the token: a service that was started again has none of them.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers

from flops_fit_ray.service.http.problem import MEDIA_TYPE, encoded, path_of, problem
from flops_fit_ray.service.http.routes import may_answer_later

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PLACE = "/api/v1/answers"
MAX_ANSWERS = 100  # awaited, or there to be fetched
KEPT_SECONDS = 600.0  # for which an answer can be fetched, from when it is there
REFUSED_SECONDS = 0.2  # within which a refusal is answered at once, as without the preference
MAX_WAIT_SECONDS = 60.0  # that `wait` can ask for
LATER_SECONDS = 3600.0  # that an answer may take
IS_LATER = "flops_fit_ray.later"  # key of the scope of such a request
_WAIT = re.compile(r"wait\s*=\s*\"?([0-9]{1,9})\"?", flags=re.IGNORECASE)


@dataclass(eq=False)
class LateAnswer:
    """One answer, once it is there."""

    id: str
    path: str  # of the request
    asked_at: float = field(default_factory=time.time)
    ended: float = math.inf  # time.monotonic()
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    error: Exception | None = None  # of the service itself

    @property
    def is_there(self) -> bool:
        """True if it can be sent."""
        return self.ended < math.inf

    def to_json(self) -> dict[str, Any]:
        """Return where it stands, while it is awaited."""
        return {"id": self.id, "state": "pending", "asked_for": self.path, "asked_at": self.asked_at,
                "answer": f"{PLACE}/{self.id}"}  # fmt: skip


class LateAnswers:
    """All answers that come later, at most `MAX_ANSWERS`, and each for `KEPT_SECONDS`."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, LateAnswer] = OrderedDict()
        self._work: set[asyncio.Task[None]] = set()

    def of(self, answer_id: str) -> LateAnswer | None:
        """Return an answer by its id; None if there is none, or it was kept long enough."""
        self._forget()
        return self._kept.get(answer_id)

    def add(self, path: str) -> LateAnswer | None:
        """Return a new answer; None if as many are awaited as there can be."""
        self._forget()
        if len(self._kept) >= MAX_ANSWERS:
            oldest = next((one for one in self._kept.values() if one.is_there), None)
            if oldest is None:
                return None
            del self._kept[oldest.id]
        found = LateAnswer(id=secrets.token_urlsafe(16), path=path)
        self._kept[found.id] = found
        return found

    def drop(self, answer: LateAnswer) -> None:
        """Forget an answer that was sent at once."""
        self._kept.pop(answer.id, None)

    def begin(self, work: asyncio.Task[None]) -> None:
        """Hold a task until it ends."""
        self._work.add(work)
        work.add_done_callback(self._work.discard)

    def close(self) -> None:
        """End all work."""
        for work in self._work:
            work.cancel()

    def _forget(self) -> None:
        over = [one.id for one in self._kept.values() if time.monotonic() - one.ended > KEPT_SECONDS]
        for answer_id in over:
            del self._kept[answer_id]


def asked_wait(given: Sequence[str]) -> float | None:
    """Return the seconds that a Prefer header waits before it takes 202 for an answer; None if it does not take it."""
    preferences = [one.strip() for one in re.split("[,;]", ",".join(given))]
    if "respond-async" not in (one.lower() for one in preferences):
        return None
    waits = [float(match[1]) for one in preferences if (match := _WAIT.fullmatch(one))]
    return min(waits[0], MAX_WAIT_SECONDS) if waits else 0.0


class Later:
    """Middleware that answers 202 where a request prefers it and its route publishes that status."""

    def __init__(self, app: ASGIApp, *, answers: LateAnswers) -> None:
        self._app, self._answers = app, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer now, or later."""
        wait = None if scope["type"] != "http" else asked_wait(Headers(scope=scope).getlist("prefer"))
        if wait is None or not may_answer_later(scope["app"], scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        answer = self._answers.add(path_of(scope))
        if answer is None:
            message = f"{MAX_ANSWERS} answers are awaited already; try again when some are there"
            said = problem(HTTPStatus.SERVICE_UNAVAILABLE, message, instance=path_of(scope), kind="busy")
            await _send(send, HTTPStatus.SERVICE_UNAVAILABLE, [(b"content-type", MEDIA_TYPE.encode())], encoded(said))
            return
        work = asyncio.create_task(self._work(answer, scope, (await receive()).get("body", b"")))
        self._answers.begin(work)
        await asyncio.wait({work}, timeout=max(wait, REFUSED_SECONDS))
        if answer.is_there and (wait or answer.status >= HTTPStatus.BAD_REQUEST):
            self._answers.drop(answer)
            if answer.error is not None:
                raise answer.error
            await _send(send, answer.status, answer.headers, answer.body)
            return
        headers = [(b"content-type", b"application/json"), (b"location", f"{PLACE}/{answer.id}".encode()),
                   (b"preference-applied", b"respond-async")]  # fmt: skip
        await _send(send, HTTPStatus.ACCEPTED, headers, encoded(answer.to_json()))

    async def _work(self, answer: LateAnswer, scope: Scope, body: bytes) -> None:
        """Let the application answer, whether anybody waits for it or not."""
        given = False

        async def receive() -> Message:
            nonlocal given
            if given:
                await asyncio.Event().wait()  # nobody hangs up
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = [pair for pair in message["headers"] if pair[0].lower() != b"content-length"]
            else:
                answer.body += message.get("body", b"")

        try:
            await asyncio.wait_for(self._app({**scope, IS_LATER: True}, receive, send), LATER_SECONDS)
        except Exception as e:  # noqa: BLE001 - whoever looks is told
            answer.error, answer.status = e, int(HTTPStatus.INTERNAL_SERVER_ERROR)
        answer.ended = time.monotonic()


async def _send(send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
    every = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": int(status), "headers": every})
    await send({"type": "http.response.body", "body": body})
