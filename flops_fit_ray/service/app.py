"""Application of the service, and the server that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from flops_fit_ray.background import looping
from flops_fit_ray.errors import DirectoryError, FitError, FlopsFitError, ResourceError, SpecError, first_line
from flops_fit_ray.service.app_state import AppState
from flops_fit_ray.service.http.conditional import Conditional
from flops_fit_ray.service.http.guard import HEADERS, Credentials, Guard, token_of
from flops_fit_ray.service.http.html import VERSION, page
from flops_fit_ray.service.http.later import LateAnswers, Later
from flops_fit_ray.service.http.methods import Methods
from flops_fit_ray.service.http.problem import KINDS, MEDIA_TYPE, TYPES, encoded, path_of, problem
from flops_fit_ray.service.http.request_error import RequestError
from flops_fit_ray.service.http.routes import methods_of
from flops_fit_ray.service.http.visits import Visits, visiting
from flops_fit_ray.service.pages import pages
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.service.private import private_umask
from flops_fit_ray.service.rest import api, published
from flops_fit_ray.service.rest.feeds import Feeds
from flops_fit_ray.service.runs.bin import Bin
from flops_fit_ray.service.runs.launch import Launcher, LocalLauncher, RayLauncher
from flops_fit_ray.service.runs.queue import Runs
from flops_fit_ray.service.runs.specs import Specs
from flops_fit_ray.service.state.cache import SweepCaches
from flops_fit_ray.service.state.devices import SAMPLE_SECONDS, DeviceHistory
from flops_fit_ray.service.state.fits import FitWorker
from flops_fit_ray.training.fence import Fence

QUEUE_SECONDS = 0.5  # between two looks at the queue
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_HEADER_BYTES = 64 * 1024
THREADS = 40  # that read for asynchronous requests; as many as for others
SHUTDOWN_SECONDS = 3  # for answers in progress


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the service, from the options of `serve`."""

    root: Path  # of the sweep directories
    code: tuple[Path, ...] = ()  # directories whose code specs may load
    host: str = "127.0.0.1"
    port: int = 8400
    names: tuple[str, ...] = ()  # further host names, e.g. of a reverse proxy
    tracker_hosts: tuple[str, ...] = ()  # HOST or HOST:PORT that specs may send metrics to
    address: str | None = None  # of a Ray cluster's job server; None: processes on this machine
    at_once: int = 1
    max_queued: int = 20

    @property
    def hosts(self) -> tuple[str, ...]:
        """Values of the Host header that are accepted."""
        known = [f"[{n}]" if ":" in n else n for n in (*LOOPBACK, self.host)]
        return (*(f"{name}:{self.port}" for name in known), *self.names)


def make_app(state: AppState, token: str, hosts: Sequence[str]) -> FastAPI:
    """Make the application behind its guard; `hosts` are the accepted values of the Host header."""

    @contextlib.asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor(THREADS, "reader")
        loop.set_default_executor(threads)  # of Python's own there are but 5 more than cores
        with _queue_thread(state.runs), _device_thread(state):
            yield
        app.state.answers.close()
        state.fit_worker.close()

    app = FastAPI(
        title="flops_fit_ray",
        version=VERSION,
        description="Sweeps over HTTP. Every route but `health` needs `Authorization: Bearer TOKEN`.",
        openapi_url="/api/v1/openapi.json",
        generate_unique_id_function=lambda route: route.name,  # operationIds, which stay
        docs_url=None,
        redoc_url=None,
        lifespan=alive,
    )
    app.state.app_state = state
    app.state.feeds = Feeds(state)
    app.state.visits = Visits()
    for routes in (api, pages):
        app.include_router(routes, dependencies=[Depends(visiting)])
    app.add_api_route(TYPES, _problem_types, response_class=HTMLResponse, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    _with_all_published(app)
    app.state.key = Credentials(token)
    app.state.answers = LateAnswers()
    app.add_middleware(Later, answers=app.state.answers)
    app.add_middleware(Conditional)
    app.add_middleware(Methods)
    app.add_middleware(Guard, key=app.state.key, hosts=hosts)  # the last one is asked first
    return app


def _with_all_published(app: FastAPI) -> None:
    """Publish what holds on every route, too."""
    make = app.openapi
    app.openapi = lambda: published(make())  # type: ignore[method-assign] # as FastAPI's documentation has it


def _queue_thread(runs: Runs) -> contextlib.AbstractContextManager[None]:
    """Start queued runs in a thread, for the duration of the block."""

    def loop(done: threading.Event) -> None:
        while not done.wait(QUEUE_SECONDS):
            try:
                runs.start_waiting()
            except Exception as e:  # noqa: BLE001 - one run's files must not stop the queue
                runs.trouble = f"{type(e).__name__}: {first_line(e)}"

    return looping(loop, "queue")


def _device_thread(state: AppState) -> contextlib.AbstractContextManager[None]:
    """Sample the devices of running sweeps in a thread, for the duration of the block."""

    def loop(done: threading.Event) -> None:
        while not done.wait(SAMPLE_SECONDS):
            with contextlib.suppress(FlopsFitError, RequestError, OSError, ValueError):  # of files; the next time
                state.sample_devices()

    return looping(loop, "devices")


def _problem_types() -> str:
    """Show what each `type` of a problem means, and what to do."""
    return page("problems.html.j2", kinds=KINDS)


def _error_response(
    request: Request, status: HTTPStatus, message: str, faults: Sequence[str] = (), kind: str = ""
) -> Response:
    said = problem(status, message, faults, instance=path_of(request.scope), kind=kind)
    if request.url.path.startswith("/api/"):
        return Response(encoded(said), status, media_type=MEDIA_TYPE)
    content = page("error.html.j2", status=status, message=said["detail"], faults=said["faults"])
    return HTMLResponse(content, status_code=status)


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    response = _error_response(request, error.status, error.message, error.faults, error.kind)
    if error.retry_after is not None:
        response.headers["retry-after"] = str(error.retry_after)
    return response


async def _on_flops_fit_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FlopsFitError)
    if isinstance(error, SpecError):
        return _error_response(request, HTTPStatus.UNPROCESSABLE_ENTITY, str(error), error.faults, "spec")
    if isinstance(error, FitError):
        return _error_response(request, HTTPStatus.CONFLICT, str(error), kind="no_results")
    known = isinstance(error, DirectoryError)
    return _error_response(request, HTTPStatus.CONFLICT if known else HTTPStatus.SERVICE_UNAVAILABLE, str(error))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, e['loc'][1:])) or e['loc'][0]}: {e['msg']}" for e in error.errors()]
    return _error_response(request, HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(faults)[:2000], faults[:100])


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status, said = HTTPStatus(error.status_code), str(error.detail)
    headers = dict(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["allow"] = ", ".join(methods_of(request.app, request.url.path))  # of all routes of the path
        said = f"{request.method} is not allowed here; use one of {headers['allow']}"
    elif status == HTTPStatus.NOT_FOUND and said == status.phrase:
        said = "no such path; GET /api/v1/openapi.json lists them all"
    response = _error_response(request, status, said)
    response.headers.update(headers)
    return response


async def _on_fault(request: Request, error: Exception) -> Response:
    message = f"the service itself failed ({type(error).__name__}); its log has the traceback"
    response = _error_response(request, HTTPStatus.INTERNAL_SERVER_ERROR, message)
    response.headers.update(HEADERS)  # it is sent from outside of the guard
    return response


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Any]] = {
    RequestError: _on_request_error,
    FlopsFitError: _on_flops_fit_error,
    RequestValidationError: _on_validation_error,
    HTTPException: _on_http_exception,
    Exception: _on_fault,
}


def make_state(settings: Settings) -> AppState:
    """Make the state of the application.

    Raises:
        ResourceError: the cluster does not answer.
    """
    paths = ServicePaths(settings.root)
    specs, fence = Specs(paths, settings.code, settings.tracker_hosts), Fence(settings.code)
    launcher: Launcher = (
        LocalLauncher(paths, fence) if settings.address is None else RayLauncher(paths, settings.address, fence)
    )
    runs = Runs(paths, specs, launcher, at_once=settings.at_once, max_queued=settings.max_queued)
    caches, history = SweepCaches(paths), DeviceHistory(paths.devices)
    fit_worker = FitWorker(lambda root: caches.is_overdue(Path(root).name))

    runs.on_end = caches.expire

    def forget(name: str) -> None:
        caches.forget(name)
        fit_worker.forget(paths.sweep(name).root)
        history.forget(name)

    return AppState(
        runs=runs,
        specs=specs,
        caches=caches,
        fit_worker=fit_worker,
        device_history=history,
        bin=Bin(runs, forget),
    )


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until a signal.

    Raises:
        DirectoryError: another service serves the root, or it cannot be written.
        ResourceError: the port is taken, or the cluster does not answer.
    """
    from filelock import FileLock, Timeout

    paths = ServicePaths(settings.root)
    with private_umask():
        token = token_of(paths)
        lock = FileLock(paths.lock)
        try:
            lock.acquire(timeout=0)
        except Timeout as e:
            fault = f"{settings.root}: another service serves it; stop that, or give another --root"
            raise DirectoryError(fault) from e
        with lock, _listening(settings) as listening:
            _serve_on(listening, settings, token, say)


def _serve_on(listening: socket.socket, settings: Settings, token: str, say: Callable[[str], None]) -> None:
    import uvicorn

    from flops_fit_ray.service.http.connections import LimitedProtocol

    settings = replace(settings, port=int(listening.getsockname()[1]))  # 0 was any free one
    app = make_app(make_state(settings), token, settings.hosts)
    for line in _greeting(settings, ServicePaths(settings.root)):
        say(line)
    config = uvicorn.Config(
        app,
        http=LimitedProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="none",
    )
    uvicorn.Server(config).run([listening])


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is named; without it small answers wait 40 ms for an acknowledgement
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((settings.host, settings.port))
            found.listen()  # from now on, so that who reads the greeting can connect
        except OSError as e:
            where, why = f"{settings.host}:{settings.port}", e.strerror or e
            raise ResourceError(f"cannot listen on {where}: {why}; give another --host or --port") from e
        yield found


def _greeting(settings: Settings, paths: ServicePaths) -> Iterator[str]:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    yield f"sweeps in {settings.root}: http://{host}:{settings.port}"
    yield f"token: in {paths.token}; keep it secret"
    yield f"code of specs: {', '.join(map(str, settings.code)) or 'none, so no sweep can be started (--code DIR)'}"
    if settings.host not in LOOPBACK:
        yield (
            "warning: without TLS, anyone on the network path can read the token: put a reverse proxy with TLS in "
            "front, or listen on loopback and forward the port (ssh -L)"
        )
