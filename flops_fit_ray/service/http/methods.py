"""HEAD and OPTIONS on every path. HEAD answers as GET does, without its body; OPTIONS names the methods in Allow."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING

from flops_fit_ray.service.http.routes import methods_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

NOT_OF_HEAD = (b"range", b"if-range")  # RFC 9110, 14.2: ranges are of GET alone


class Methods:
    """Middleware that makes HEAD of GET and answers OPTIONS; no other origin is ever allowed anything."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer OPTIONS, ask for HEAD what GET would answer, and pass on the rest."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            await self._head(scope, receive, send)
            return
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            allowed = methods_of(scope["app"], scope["path"])
            if allowed:
                headers = [(b"allow", ", ".join(allowed).encode())]
                await send({"type": "http.response.start", "status": int(HTTPStatus.NO_CONTENT), "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
        await self._app(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = asyncio.Event()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                answered.set()

        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in NOT_OF_HEAD]
        asked = {**scope, "method": "GET", "headers": headers}
        work = asyncio.ensure_future(self._app(asked, receive, sending))
        work.add_done_callback(lambda _: answered.set())
        try:
            await answered.wait()
            if work.done():
                work.result()  # raises what it raised
        finally:  # a stream has no end, and a file is not read in vain
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
