"""Connections of the server: a limit of time for a request to arrive, and of how many wait for theirs.

Whoever has no token can do no more than connect and send, so a connection that waits for bytes of its client is what is
limited: the oldest one of the same address is closed where there are too many.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from flops_fit_ray.service.http.guard import HEADERS
from flops_fit_ray.service.http.problem import MEDIA_TYPE, encoded, problem

REQUEST_SECONDS = 15.0  # from the connection, or from the end of the last answer, to the end of a request
MAX_WAITING = 64  # connections of one address
MAX_WAITING_IN_ALL = 192
GRACE_SECONDS = 1.0  # for which none is closed: many may come at one moment, as behind a proxy, with requests at once
BURST = 4  # times as many at most, in that time


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, within these limits."""

    _waiting: ClassVar[dict[str, dict[LimitedProtocol, asyncio.TimerHandle]]] = {}  # by address, the oldest first

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, which waits for a request."""
        super().connection_made(transport)  # type: ignore[arg-type] # as uvicorn narrows it
        self._look()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request, perhaps its last."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._leave()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, and close the connection."""
        if self.cycle is None or self.cycle.response_complete:  # else an answer is under way
            body = encoded(problem(HTTPStatus.BAD_REQUEST, msg, instance=""))
            fields = {**HEADERS, "content-type": MEDIA_TYPE, "content-length": str(len(body)), "connection": "close"}
            lines = ["HTTP/1.1 400 Bad Request", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
            self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _look(self) -> None:
        cycle: Any = self.cycle
        waits = cycle is None or cycle.response_complete or cycle.more_body
        if not waits or self.transport.is_closing():
            self._leave()
        elif self not in (here := self._waiting.setdefault(self._address, {})):
            here[self] = self.loop.call_later(REQUEST_SECONDS, self._close)
            while len(here) > MAX_WAITING and self._close_oldest(here, MAX_WAITING):
                pass
            if sum(map(len, self._waiting.values())) > MAX_WAITING_IN_ALL:
                self._close_oldest(max(self._waiting.values(), key=lambda some: len(some)), MAX_WAITING_IN_ALL)

    def _close_oldest(self, crowd: dict[LimitedProtocol, asyncio.TimerHandle], most: int) -> bool:
        """Close the oldest of these connections, unless what it has sent may not have been read yet."""
        oldest, timer = next(iter(crowd.items()))
        is_new = self.loop.time() < timer.when() - REQUEST_SECONDS + GRACE_SECONDS
        if is_new and len(crowd) <= BURST * most:
            return False
        oldest._close()
        return True

    def _close(self) -> None:
        """Close the connection, and count it no longer: the loop tells of the end only later."""
        self._leave()
        self.connections.discard(self)
        self.transport.abort()

    def _leave(self) -> None:
        here = self._waiting.get(self._address, {})
        if (timer := here.pop(self, None)) is not None:
            timer.cancel()
        if not here:
            self._waiting.pop(self._address, None)
