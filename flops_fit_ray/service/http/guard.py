"""Middleware before all routes: checks host, token and origin, and limits size and time of the body.

Plain ASGI, so that streams pass unbuffered.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flops_fit_ray.errors import DirectoryError
from flops_fit_ray.service.http.html import page
from flops_fit_ray.service.http.problem import MEDIA_TYPE, RETRY_SECONDS, encoded, path_of, problem
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.service.private import check_directories, token_content

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_BYTES = 16  # 128 bits
MAX_BODY = 2 * 1024 * 1024  # bytes; a spec has at most half of that
BODY_SECONDS = 10.0
MAX_OPEN = 256  # requests at a time; more are answered with 503
MAX_DEPTH = 64  # of brackets; requests of this API have four
FORBIDDEN_IN_PATHS = (b"%2f", b"%5c", b"%00")  # no name contains a slash or null
COME_AGAIN = (HTTPStatus.ACCEPTED, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)  # with Retry-After
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
PUBLIC_PATHS = ("/api/v1/health", "/login", "/static/style.css", "/static/page.js", "/static/icon.svg")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
STANDALONE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def token_of(paths: ServicePaths) -> str:
    """Return the token of a root, made at the first call. Its file is readable by its owner only.

    Raises:
        DirectoryError: the file cannot be written, or others can read it or write its directories.
    """
    check_directories(paths)
    place = paths.token
    try:
        with contextlib.suppress(FileExistsError):
            file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(file, "w") as out:
                out.write(secrets.token_hex(TOKEN_BYTES) + "\n")
        token = token_content(place)
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise DirectoryError(f"{place}: is a link; delete it and start again") from e
        raise DirectoryError(f"{place}: cannot be written: {e.strerror}; choose another --root") from e
    if len(token) < 2 * TOKEN_BYTES:
        raise DirectoryError(f"{place}: contains no token; delete the file and start again")
    return token


_Refusal = tuple[HTTPStatus, str, str]  # status, message, kind of problem
_WRONG_TOKEN: _Refusal = (
    HTTPStatus.FORBIDDEN,
    "the token is wrong; it is in the file that the service printed at its start",
    "token",
)
_WRONG_ORIGIN: _Refusal = (
    HTTPStatus.FORBIDDEN,
    "the request comes from another origin, or from none; programs must send `Authorization: Bearer TOKEN`",
    "token",
)


class Credentials:
    """The token, and the session cookie that stands for it in a browser."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self.session = hmac.new(self._token, b"session", hashlib.sha256).hexdigest()
        self.cookie = f"flops_fit_ray_{self.session[-8:]}"  # browsers share cookies among the ports of a host

    def is_token(self, given: str) -> bool:
        """Return True if it is the token; compares in constant time."""
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token)

    def is_session(self, given: str) -> bool:
        """Return True if it is the session of the token; compares in constant time."""
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.session.encode())


class Guard:
    """Middleware around the whole application.

    Args:
        hosts: values of the Host header that are accepted, e.g. `127.0.0.1:8400`.
    """

    def __init__(self, app: ASGIApp, *, key: Credentials, hosts: Iterable[str]) -> None:
        self._app, self._key = app, key
        self._hosts = frozenset(host.lower() for host in hosts)
        self._open = 0  # requests that are being answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on, or answer with an error."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket; there are none
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused is not None:
            await self._refuse(scope, send, *refused)
            return
        self._open += 1
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._pass_on(scope, headers, receive, noting)
        except asyncio.CancelledError:  # the service ends before the answer is there
            if begun:
                raise
            message = "the service is ending; ask again when it is back"
            await self._refuse(scope, send, HTTPStatus.SERVICE_UNAVAILABLE, message, "busy")
        finally:
            self._open -= 1

    async def _pass_on(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        """Take the body of a request that may come in, and let the application answer it."""
        with_headers = _with_headers(send)
        try:
            body = await asyncio.wait_for(_body(headers, receive), BODY_SECONDS)
        except _BodyError as e:
            await self._refuse(scope, with_headers, e.status, str(e))
        except TimeoutError:
            message = f"the body did not arrive within {BODY_SECONDS:g} s"
            await self._refuse(scope, with_headers, HTTPStatus.REQUEST_TIMEOUT, message)
        else:
            await self._app(scope, _replayed(body, receive), with_headers)

    def _refused(self, scope: Scope, headers: Mapping[str, str]) -> _Refusal | None:
        if headers.get("host", "").lower() not in self._hosts:
            message = "unknown host name; start the service with --name HOST[:PORT]"
            return HTTPStatus.MISDIRECTED_REQUEST, message, "host"
        if self._open >= MAX_OPEN:
            message = f"{MAX_OPEN} requests are being answered already; try again in a moment"
            return HTTPStatus.SERVICE_UNAVAILABLE, message, "busy"
        if any(code in scope.get("raw_path", b"").lower() for code in FORBIDDEN_IN_PATHS):
            return HTTPStatus.NOT_FOUND, "no such path", ""
        own = scope["method"] in SAFE_METHODS or self._own_origin(headers)
        bearer = headers.get("authorization")
        if scope["path"] in PUBLIC_PATHS:
            return None if own else _WRONG_ORIGIN
        if bearer is not None:  # browsers do not send it by themselves, so no other page can forge the request
            kind, _, given = bearer.partition(" ")
            return None if kind.lower() == "bearer" and self._key.is_token(given.strip()) else _WRONG_TOKEN
        cookie = _cookie(headers.get("cookie", ""), self._key.cookie)
        if cookie is None:
            message = "the token is missing; send `Authorization: Bearer TOKEN`, from the file that the service printed"
            return HTTPStatus.UNAUTHORIZED, message, "token"
        if not self._key.is_session(cookie):
            return _WRONG_TOKEN
        return None if own else _WRONG_ORIGIN

    def _own_origin(self, headers: Mapping[str, str]) -> bool:
        origin = headers.get("origin")
        if origin is None or headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return False
        try:
            parts = urlsplit(origin)
        except ValueError:  # brackets that close nothing
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() in self._hosts

    async def _refuse(self, scope: Scope, send: Send, status: HTTPStatus, message: str, kind: str = "") -> None:
        """Answer with a problem, or with the login page where a browser comes without the token."""
        content, media_type = encoded(problem(status, message, instance=path_of(scope), kind=kind)), MEDIA_TYPE
        asks = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) and not scope["path"].startswith("/api/")
        if asks and scope["method"] in SAFE_METHODS:
            content = page("login.html.j2", wrong=status == HTTPStatus.FORBIDDEN).encode()
            media_type = "text/html; charset=utf-8"
        headers = {**HEADERS, "content-type": media_type, "content-length": str(len(content)), "connection": "close"}
        if status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        if status in COME_AGAIN:
            headers["retry-after"] = str(RETRY_SECONDS)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": int(status), "headers": raw})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})


class _BodyError(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


async def _body(headers: Mapping[str, str], receive: Receive) -> bytes:
    """Receive the whole body.

    Raises:
        _BodyError: it is longer than `MAX_BODY`, or its JSON is nested deeper than `MAX_DEPTH`.
    """
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY:
        raise _BodyError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have at most {MAX_BODY} bytes")
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size > MAX_BODY:
            raise _BodyError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have at most {MAX_BODY} bytes")
        parts.append(part)
    body = b"".join(parts)
    if "json" in headers.get("content-type", "") and _depth(body) > MAX_DEPTH:
        raise _BodyError(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"the body is nested deeper than the {MAX_DEPTH} levels allowed"
        )
    return body


def _depth(body: bytes) -> int:
    """Return the depth of brackets, at most `MAX_DEPTH` + 1. Counts those in strings too, which is safe."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for char in body:
        if char in b"[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > MAX_DEPTH:
                break
        elif char in b"]}":
            depth -= 1
    return deepest


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()  # http.disconnect, when the client is gone
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(send: Send) -> Send:
    """Add `HEADERS` to the response, which may set its own but for cache-control: nothing is ever stored.

    Whoever is to come again is told when.
    """

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(name, value) for name, value in message["headers"] if name.lower() != b"cache-control"]
            present = {name.lower() for name, _ in own}
            wanted = {**HEADERS, "retry-after": str(RETRY_SECONDS)} if message["status"] in COME_AGAIN else HEADERS
            missing = [(n.encode(), v.encode()) for n, v in wanted.items() if n.encode() not in present]
            message = {**message, "headers": [*own, *missing]}
        await send(message)

    return sending


def _cookie(header: str, name: str) -> str | None:
    """Return a cookie's value. By hand: `SimpleCookie` drops every cookie of a header in which one holds JSON."""
    pairs = (pair.strip().partition("=") for pair in header.split(";"))
    return next((value.strip('"') for key, equals, value in pairs if equals and key == name), None)
