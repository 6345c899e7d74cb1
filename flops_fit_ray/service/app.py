"""The application put together, and the server that runs it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from flops_fit_ray.errors import DirectoryError, FitError, FlopsFitError, ResourceError, SpecError, first_line
from flops_fit_ray.service.app_state import AppState
from flops_fit_ray.service.http.guard import Guard, Key, token_of
from flops_fit_ray.service.http.html import VERSION, page
from flops_fit_ray.service.http.redact import redacted
from flops_fit_ray.service.http.refusal import Refusal
from flops_fit_ray.service.pages import pages
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.service.rest import api
from flops_fit_ray.service.runs.launch import Launcher, LocalRuns, RayRuns
from flops_fit_ray.service.runs.queue import Runs
from flops_fit_ray.service.runs.specs import Specs
from flops_fit_ray.service.state.cache import SweepCaches
from flops_fit_ray.service.state.fits import FitWorker

PUMP_SECONDS = 0.5
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SOCKETS = 256  # at the same time; more are refused
MAX_HEAD = 64 * 1024  # bytes of a request's headers
GRACE_SECONDS = 3  # for answers that are under way when it ends


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the owner of the service decides."""

    root: Path  # of the sweep directories
    code: tuple[Path, ...] = ()  # directories whose code specs may name
    host: str = "127.0.0.1"
    port: int = 8400
    names: tuple[str, ...] = ()  # under which it is reached besides its own
    address: str | None = None  # of a Ray cluster's job server; None: processes of this machine
    at_once: int = 1
    most_waiting: int = 20

    @property
    def hosts(self) -> tuple[str, ...]:
        """As browsers name it."""
        known = [f"[{n}]" if ":" in n else n for n in (*LOOPBACK, self.host)]
        return (*(f"{name}:{self.port}" for name in known), *self.names)


def make_app(parts: AppState, token: str, hosts: Sequence[str]) -> FastAPI:
    """The application, guarded; `hosts` are the names under which it may be asked for."""

    @contextlib.asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        with _pumping(parts.runs):
            yield
        parts.work.close()

    app = FastAPI(
        title="flops_fit_ray",
        version=VERSION,
        description="Sweeps over HTTP. Every route but `health` wants `Authorization: Bearer TOKEN`.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=alive,
    )
    app.state.parts = parts
    app.include_router(api)
    app.include_router(pages)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    for kind, answer in _ANSWERS.items():
        app.add_exception_handler(kind, answer)
    _with_token(app)
    app.state.key = Key(token)
    app.add_middleware(Guard, key=app.state.key, hosts=hosts)
    return app


def _with_token(app: FastAPI) -> None:
    """Say in the published OpenAPI that there is one."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        schema = make()
        schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        schema["paths"]["/api/v1/health"]["get"]["security"] = []
        return schema

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's documentation has it


@contextlib.contextmanager
def _pumping(runs: Runs) -> Iterator[None]:
    """Hand over what waits, as long as the block runs."""
    done = threading.Event()

    def pump() -> None:
        while not done.wait(PUMP_SECONDS):
            try:
                runs.pump()
            except Exception as e:  # noqa: BLE001 - the queue must go on, whatever one run's files hold
                runs.trouble = f"{type(e).__name__}: {first_line(e)}"

    thread = threading.Thread(target=pump, name="queue", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _say(request: Request, status: HTTPStatus, words: str, faults: Sequence[str] = ()) -> Response:
    words, faults = redacted(words), [redacted(fault) for fault in faults]
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": words, "faults": faults}, status_code=status)
    return HTMLResponse(page("error.html.j2", status=status, words=words, faults=faults), status_code=status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _say(request, error.status, error.words, error.faults)


async def _wrong(request: Request, error: Exception) -> Response:
    """An error of ours, raised on purpose."""
    assert isinstance(error, FlopsFitError)
    if isinstance(error, SpecError):
        return _say(request, HTTPStatus.UNPROCESSABLE_ENTITY, str(error), error.faults)
    known = isinstance(error, FitError | DirectoryError)
    return _say(request, HTTPStatus.CONFLICT if known else HTTPStatus.SERVICE_UNAVAILABLE, str(error))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, e['loc'][1:])) or e['loc'][0]}: {e['msg']}" for e in error.errors()]
    return _say(request, HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(faults)[:2000], faults[:100])


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = _say(request, HTTPStatus(error.status_code), str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


_ANSWERS: dict[type[Exception], Callable[[Request, Exception], Any]] = {
    Refusal: _refused,
    FlopsFitError: _wrong,
    RequestValidationError: _invalid,
    HTTPException: _http,
}


def make_parts(settings: Settings) -> AppState:
    """What the application works with.

    Raises:
        ResourceError: the cluster does not answer.
    """
    paths = ServicePaths(settings.root)
    specs = Specs(paths, settings.code)
    launcher: Launcher = LocalRuns(paths) if settings.address is None else RayRuns(paths, settings.address)
    runs = Runs(paths, specs, launcher, at_once=settings.at_once, most_waiting=settings.most_waiting)
    return AppState(runs=runs, specs=specs, mirrors=SweepCaches(paths), work=FitWorker())


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until a signal.

    Raises:
        DirectoryError: another service looks after the root, or it cannot be written.
        ResourceError: the port is taken, or the cluster does not answer.
    """
    import uvicorn
    from filelock import FileLock, Timeout

    paths = ServicePaths(settings.root)
    token = token_of(paths)
    lock = FileLock(paths.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout as e:
        way_out = "stop that, or take another --root"
        raise DirectoryError(f"{settings.root}: another service looks after it; {way_out}") from e
    with lock, _listening(settings) as listening:
        app = make_app(make_parts(settings), token, settings.hosts)
        for line in _words(settings, paths):
            say(line)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=SOCKETS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            h11_max_incomplete_event_size=MAX_HEAD,
            ws="none",
        )
        uvicorn.Server(config).run([listening])


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With its protocol named, asyncio sends small answers at once; else each waits 40 ms for an acknowledgement
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((settings.host, settings.port))
        except OSError as e:
            where, why = f"{settings.host}:{settings.port}", e.strerror or e
            raise ResourceError(f"{where} cannot be listened on: {why}; take another --host or --port") from e
        yield found


def _words(settings: Settings, paths: ServicePaths) -> Iterator[str]:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    yield f"sweeps in {settings.root}: http://{host}:{settings.port}"
    yield f"token: in {paths.token}, for your eyes alone"
    yield f"code of specs: {', '.join(map(str, settings.code)) or 'none, so nothing can be started (--code DIR)'}"
    if settings.host not in LOOPBACK:
        yield (
            "warning: whoever is on the way can read the token and all else: put a proxy with TLS before it, or listen "
            "on loopback and forward the port (ssh -L)"
        )
