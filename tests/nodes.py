"""Ray nodes as their owners start them: `ray start` processes, each its own group, with a token and a dashboard."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flops_fit_ray.engine.processes import descendants, end_all
from tests.chaos import alive
from tests.hangs import HANG_SECONDS, RAY_PATIENCE

_DASHBOARD = re.compile(r"RAY_API_SERVER_ADDRESS='(http://[\d.:]+)'")


def free_port() -> int:
    """A port that nobody listens on: for servers that cannot choose one themselves, and to find nobody there."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class RealCluster:
    """A head, and nodes that join it."""

    temporary: Path  # short: Ray's sockets lie in there
    token: str
    environment: Mapping[str, str]
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    address: str = ""  # of the cluster, for drivers
    dashboard: str = ""  # of the cluster, for jobs

    def start_head(self, *options: str) -> None:
        """Start the head, whose servers choose their ports, and read them back."""
        port = () if "--port" in options else ("--port", "0")
        dashboard = ("--dashboard-host", "127.0.0.1", "--dashboard-port", "0")
        scaler = () if "--autoscaling-config" in options else ("--no-monitor",)
        head = self.start("--head", *port, *scaler, *dashboard, *options)
        log = self.temporary / "0.log"

        def started() -> bool:
            assert head.poll() is None, log.read_text()
            return "Ray runtime started" in log.read_text() and _DASHBOARD.search(log.read_text()) is not None

        self.until(started)
        self.address = (self.temporary / "ray_current_cluster").read_text().strip()
        self.dashboard = "".join(_DASHBOARD.findall(log.read_text())[:1])

    def start(self, *options: str, before: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """`ray start --block` with these options; `before`: what runs it, such as another mount namespace."""
        command = [
            *before,
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--block",
            "--disable-usage-stats",
            *("--include-log-monitor", "false"),  # nobody follows its drivers
            *options,
        ]
        # The default is one port for all nodes of a machine: the second one would have no agent, and take no jobs
        command += ["--dashboard-agent-listen-port", "0"]
        with (self.temporary / f"{len(self.nodes)}.log").open("wb") as out:
            node = subprocess.Popen(
                command, env=dict(self.environment), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.nodes.append(node)
        return node

    def join(self, *options: str, before: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """A further node."""
        return self.start("--address", self.address, *options, before=before)

    def until(self, condition: Callable[[], bool], seconds: float = HANG_SECONDS) -> None:
        """Wait for something."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.05)

    def until_joined(self, count: int) -> None:
        """Wait until so many nodes are alive."""
        code = (
            "import logging, sys, time, ray\n"
            f"ray.init(address='{self.address}', logging_level=logging.ERROR, log_to_driver=False)\n"
            f"while sum(node['Alive'] for node in ray.nodes()) != {count}: time.sleep(0.1)\n"
        )
        subprocess.run([sys.executable, "-c", code], env=dict(self.environment), check=True, timeout=HANG_SECONDS)

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """A node is gone, with all that runs on it, and without a word."""
        doomed = {node.pid, *descendants(node.pid)}
        for pid in doomed:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        node.wait()
        end_all({pid for pid in doomed if pid in alive(doomed)})
        self.nodes.remove(node)


@contextlib.contextmanager
def real_cluster(*head_options: str, **variables: str) -> Iterator[RealCluster]:
    """A head with its dashboard on loopback; `variables` go into the environment of all that is started."""
    temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    token = secrets.token_hex(32)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        **RAY_PATIENCE,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_TMPDIR": str(temporary),
        **variables,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # a job's python is that of the cluster's PATH
    }
    cluster = RealCluster(temporary, token, environment)
    try:
        cluster.start_head("--temp-dir", str(temporary), *head_options)
        yield cluster
    finally:
        for node in reversed(list(cluster.nodes)):
            cluster.kill(node)
        shutil.rmtree(temporary, ignore_errors=True)
