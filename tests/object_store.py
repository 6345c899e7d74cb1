"""A real S3 server on this machine, and a proxy before it that misbehaves when told to."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BUCKET = "sweeps"


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """moto's server with one bucket; yields its port. Credentials of a kind are in the environment meanwhile."""
    from pyarrow.fs import FileSystem

    with pytest.MonkeyPatch.context() as patch, tempfile.NamedTemporaryFile("r") as log:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        with Path(log.name).open("w") as out:
            server = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ)
        try:
            while (found := re.search(r"Running on http://127.0.0.1:(\d+)", log.read())) is None:
                log.seek(0)
                assert server.poll() is None
                time.sleep(0.1)
            port = int(found[1])
            filesystem, _ = FileSystem.from_uri(f"{uri(port, '')}&allow_bucket_creation=true")
            filesystem.create_dir(BUCKET)
            yield port
        finally:
            server.kill()
            server.wait()


def uri(port: int, name: str) -> str:
    """A name in the bucket, by way of a port."""
    return f"s3://{BUCKET}{'/' if name else ''}{name}?endpoint_override=127.0.0.1:{port}&scheme=http"


class Proxy:
    """Passes everything on while `mode` is "ok"; "refuse", "cut" (after some bytes) and "hang" are what stores do."""

    def __init__(self, server_port: int, cut_after: int = 20_000) -> None:
        self.mode, self._server_port, self._cut_after = "ok", server_port, cut_after
        self.held = threading.Event()  # set once a request hangs
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Serve nobody any more."""
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(client,), daemon=True).start()

    def _one(self, client: socket.socket) -> None:
        if self.mode == "refuse":
            client.close()
            return
        server = socket.create_connection(("127.0.0.1", self._server_port))
        threading.Thread(target=self._pass_on, args=(server, client, False), daemon=True).start()
        self._pass_on(client, server, True)

    def _pass_on(self, source: socket.socket, target: socket.socket, to_server: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while content := source.recv(4096):
                while self.mode == "hang":
                    self.held.set()
                    time.sleep(0.05)
                if self.mode == "refuse":
                    break
                if to_server and self.mode == "cut":
                    if passed + len(content) > self._cut_after:
                        break
                    passed += len(content)
                target.sendall(content)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
