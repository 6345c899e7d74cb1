"""ETags, conditional requests and ranges.

The tag of an answer that is sent as a whole is strong, and the hash of its body: whatever changes the body changes the
tag, across a restart of the service, too, and nothing that changed is ever answered with 304.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from flops_fit_ray.service.http.problem import MEDIA_TYPE, encoded, path_of, problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CHANGED = "it is not what If-Match names any more; get it again and send the ETag that it has now"
NO_SUCH_RANGE = "no byte of the range is in this file"
OF_CONTENT = ("content-length", "content-type", "content-disposition")  # headers of an answer that has its content
WITH_CONTENT = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)
_ONE_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", flags=re.IGNORECASE)
_DIGITS = 18  # of a number of bytes; more are as many as there are
_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def tag_of(body: bytes) -> str:
    """Return the strong ETag of a body."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def names_tag(given: Sequence[str], tag: str, *, weak: bool = False) -> bool:
    """Return True if the values of an If-Match or If-None-Match name a tag.

    Args:
        weak: compare weakly (RFC 9110, 8.8.3.2), as for If-None-Match.
    """
    listed = ", ".join(given)
    if listed.strip() == "*":
        return True
    return any(found == tag and (weak or not mark) for mark, found in _TAG.findall(listed))


def asked_range(header: str | None, length: int) -> range | None:
    """Return the bytes that a Range header asks for, empty if there are none of them; None for the whole.

    A header that cannot be read, or asks for several ranges, asks for the whole.
    """
    match = None if header is None else _ONE_RANGE.fullmatch(header)
    if match is None or length == 0:
        return None
    first, last = (int(digits.lstrip("0")[:_DIGITS] or 0) if digits else None for digits in match.groups())
    if first is None:
        return None if last is None else range(max(0, length - last), length)
    if last is not None and last < first:
        return None
    return range(first, length if last is None else min(last + 1, length))


def answered(asked: Headers, tag: str, length: int, *, ranges: bool) -> tuple[HTTPStatus, range]:
    """Return the status of a GET and the bytes of its content to send, in the order of RFC 9110, 13.2.2.

    Args:
        asked: headers of the request.
        length: bytes of the content.
        ranges: whether parts of it can be asked for.
    """
    matching, others = asked.getlist("if-match"), asked.getlist("if-none-match")
    if matching and not names_tag(matching, tag):
        return HTTPStatus.PRECONDITION_FAILED, range(0)
    if others and names_tag(others, tag, weak=True):
        return HTTPStatus.NOT_MODIFIED, range(0)
    if ranges and asked.get("if-range", tag).strip() == tag:  # a date is that of no strong tag
        part = asked_range(asked.get("range"), length)
        if part is not None:
            return HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, part
    return HTTPStatus.OK, range(length)


def complete_headers(headers: MutableHeaders, scope: Scope, status: HTTPStatus, part: range, length: int) -> bytes:
    """Set the headers that go with a status; return the body, where it is not the content."""
    if status in WITH_CONTENT:
        headers["content-length"] = str(len(part))
        if status == HTTPStatus.PARTIAL_CONTENT:
            headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{length}"
        return b""
    for name in OF_CONTENT:
        del headers[name]
    if status == HTTPStatus.NOT_MODIFIED:
        return b""
    message, kind = (CHANGED, "changed") if status == HTTPStatus.PRECONDITION_FAILED else (NO_SUCH_RANGE, "")
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        headers["content-range"] = f"bytes */{length}"
    body = encoded(problem(status, message, instance=path_of(scope), kind=kind))
    headers["content-type"], headers["content-length"] = MEDIA_TYPE, str(len(body))
    return body


class Conditional:
    """Middleware that tags what GET answers, and sends of it what the request has not got yet.

    What has an ETag of its own, and what is sent in parts, passes as it is.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and hold its answer until its body is there."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        held: Message | None = None

        async def sending(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.OK:
                headers = Headers(raw=message["headers"])
                if "content-length" in headers and "etag" not in headers:
                    held = message
                    return
            start, held = held, None
            if start is not None:
                if not message.get("more_body"):
                    start, message = _tagged(scope, start, message.get("body", b""))
                await send(start)
            await send(message)

        await self._app(scope, receive, sending)


def _tagged(scope: Scope, start: Message, content: bytes) -> tuple[Message, Message]:
    """Return an answer as the headers of its request would have it. What is to be saved as a file has ranges."""
    headers, tag = MutableHeaders(raw=list(start["headers"])), tag_of(content)
    is_file = "content-disposition" in headers
    status, part = answered(Headers(scope=scope), tag, len(content), ranges=is_file)
    headers["etag"] = tag
    if is_file:
        headers["accept-ranges"] = "bytes"
    other = complete_headers(headers, scope, status, part, len(content))
    body = content[part.start : part.stop] if status in WITH_CONTENT else other
    return {**start, "status": int(status), "headers": headers.raw}, {"type": "http.response.body", "body": body}
