"""An open file as an answer: the whole or a range of it, in chunks, with its own ETag."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

from starlette.datastructures import Headers
from starlette.responses import Response

from flops_fit_ray.service.http.conditional import WITH_CONTENT, answered, complete_headers

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

CHUNK_BYTES = 1 << 20


class OpenFileResponse(Response):
    """Response of a file that is open already, and is closed when it is sent.

    Args:
        length: bytes that it has.
        tag: its strong ETag.
    """

    media_type = "application/octet-stream"

    def __init__(self, file: BinaryIO, length: int, tag: str, headers: Mapping[str, str]) -> None:
        self._file, self._length, self._tag = file, length, tag
        super().__init__(headers={**headers, "accept-ranges": "bytes", "etag": tag})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what the headers of the request ask for."""
        with self._file:
            status, part = answered(Headers(scope=scope), self._tag, self._length, ranges=True)
            body = complete_headers(self.headers, scope, status, part, self._length)
            await send({"type": "http.response.start", "status": int(status), "headers": self.raw_headers})
            if status in WITH_CONTENT and part:
                await self._send(part, send)
            else:
                await send({"type": "http.response.body", "body": body})

    async def _send(self, part: range, send: Send) -> None:
        self._file.seek(part.start)
        left = len(part)
        while left and (chunk := await asyncio.to_thread(self._file.read, min(CHUNK_BYTES, left))):
            left -= len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})
