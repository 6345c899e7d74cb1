"""The service: in a thread of the test or as a process of its own, which listen, or behind a client alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import uvicorn

from flops_fit_ray.service.app import Settings, make_app, make_state
from flops_fit_ray.service.app_state import AppState
from flops_fit_ray.service.client import Client
from flops_fit_ray.service.http.connections import LimitedProtocol
from flops_fit_ray.service.http.guard import token_of
from flops_fit_ray.service.paths import ServicePaths
from tests.hangs import HANG_SECONDS

if TYPE_CHECKING:
    from starlette.testclient import TestClient


HOST = "http://127.0.0.1:8400"


@dataclass
class Served:
    """A service in a thread."""

    url: str
    token: str
    state: AppState
    app: Any

    @property
    def client(self) -> Client:
        """Whoever has the token."""
        return Client(self.url, self.token)


@contextlib.contextmanager
def serving(root: Path, code: tuple[Path, ...] = (), **settings: Any) -> Iterator[Served]:
    """A service of `root` on a free port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = int(listener.getsockname()[1])
    asked = Settings(root=root, code=code, port=port, **settings)
    token = token_of(ServicePaths(root))
    state = make_state(asked)
    app = make_app(state, token, asked.hosts)
    config = uvicorn.Config(
        app, http=LimitedProtocol, port=port, log_level="warning", timeout_graceful_shutdown=1, ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.02)
    try:
        yield Served(f"http://127.0.0.1:{port}", token, state, app)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


class ServiceProcess:
    """`flops-fit-ray serve` in a process of its own."""

    def __init__(self, root: Path, code: Path, *more: str, environment: Mapping[str, str] | None = None) -> None:
        self.root, self.log = root, root.parent / "service.log"
        words = ["serve", "--root", str(root), "--code", str(code), "--port", "0", *more]
        with self.log.open("ab") as out:
            before = out.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flops_fit_ray", *words],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**(os.environ if environment is None else environment), "PYTHONUNBUFFERED": "1"},
            )
        until = time.monotonic() + 120
        while (said := self.log.read_bytes()[before:].decode()).count("\n") < 1:  # it says where it listens
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(said)
            time.sleep(0.1)
        self.url = said.splitlines()[0].rpartition(": ")[2]
        self.port = int(self.url.rpartition(":")[2])

    @property
    def client(self) -> Client:
        """Whoever can read the token's file."""
        return Client(self.url, ServicePaths(self.root).token)

    def memory(self) -> int:
        """Bytes that it holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])

    def cpu_seconds(self) -> float:
        """CPU seconds that it has taken, its fits apart."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def kill(self) -> None:
        """As the kernel does."""
        self.process.kill()
        self.process.wait(HANG_SECONDS)

    def end(self) -> int:
        """As Ctrl-C does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(HANG_SECONDS)


def client_of(root: Path, code: Path | None = None) -> TestClient:
    """Whoever has the token, with a service that nothing listens for; what is queued stays so."""
    from starlette.testclient import TestClient

    settings = Settings(root=root, code=() if code is None else (code,), at_once=0)
    token = token_of(ServicePaths(root))
    app = make_app(make_state(settings), token, settings.hosts)
    headers = {"Authorization": f"Bearer {token}"}
    return TestClient(app, base_url=HOST, headers=headers, raise_server_exceptions=False)
