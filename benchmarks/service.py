"""`python -m benchmarks.service`: reads at a fixed rate from a directory of 10,000 experiments, while a sweep trains.

Two questions: how long an answer takes, and how much longer the sweep takes because of them. With `--seconds` no sweep
trains, and with `--watchers` so many people follow the events of the directory meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.storage.atomic import write_json
from flops_fit_ray.storage.paths import SCHEMA_VERSION, SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.sweep.recorded import record_spec
from tests.serving import ServiceProcess
from tests.sweeps import make_sweep, reference_parts, reference_spec

CONNECTIONS = 16
ARRIVALS = 5.0  # results a second
SPEC = """
name: busy
model: {target: "busy:Busy", size_param: width}
data: {train: "busy:data"}
loss: mse
budgets: [{flops: 6e8, sizes: [16, 24, 32, 48]}, {flops: 1.2e9, sizes: [24, 32, 48, 64]}]
train: {batch_size: 8, lr: 1e-2, optimizer: sgd, grad_clip: null, warmup_tokens: 0}
resources_per_trial: {cpu: 1}
fit: {draws: 200}
"""
PARTS = """
import torch
from torch import nn


class Busy(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.into, self.through, self.out = nn.Linear(32, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, x):
        return self.out(self.through(self.into(x).tanh()).tanh())


def data():
    x = torch.randn(400_000, 32, generator=torch.Generator().manual_seed(0))
    return x, x[:, :1].sin()
"""


def large_directory(root: Path, number: int, done: int) -> list[tuple[StoragePath, dict[str, Any]]]:
    """Make a directory of so many experiments, the first `done` with results; returns what the others would have."""
    spec = reference_spec()
    with tempfile.TemporaryDirectory() as place:
        small = make_sweep(Path(place), spec, reference_parts(spec))
    known = {r.key: r for r in small.results}
    paths = SweepPaths(root)
    experiments, contents = [], []
    for i in range(number):
        e = small.plan.experiments[i % len(small.plan.experiments)]
        made = replace(e, key=f"{i:016x}", parent=None, recipe=replace(e.recipe, seed=i))
        experiments.append(made)
        result = replace(known[e.key], key=made.key, seed=i, loss=known[e.key].loss * (1 + 0.01 * random.random()))  # noqa: S311
        contents.append((paths.result(made.key), {"schema_version": SCHEMA_VERSION, **asdict(result)}))
    for path, content in contents[:done]:
        write_json(path, content, sealed=True, durable=False)
    record_spec(paths, spec)
    plan = replace(small.plan, experiments=tuple(experiments))
    write_json(paths.plan, {**plan.to_json(), "command": "flops-fit-ray run somewhere", "base": None}, sealed=True)
    return contents[done:]


class Arrivals(threading.Thread):
    """Results that come in, as of a sweep on many GPUs."""

    def __init__(self, contents: list[tuple[StoragePath, dict[str, Any]]], per_second: float) -> None:
        super().__init__(daemon=True)
        self._contents, self._per_second = contents, per_second
        self._done = threading.Event()

    def run(self) -> None:
        """Until `end`."""
        while self._contents and not self._done.wait(1 / self._per_second):
            write_json(*self._contents.pop(0), sealed=True)

    def end(self) -> None:
        """No more of them."""
        self._done.set()
        self.join()


class Load(threading.Thread):
    """Reads at a fixed rate, whatever the answers take."""

    def __init__(self, port: int, token: str, rate: float, number: int) -> None:
        super().__init__(daemon=True)
        self._port, self._token, self._rate, self._number = port, token, rate, number
        self._done = threading.Event()
        self.seconds: list[float] = []
        self.statuses: list[int] = []

    def run(self) -> None:
        """Until `end`."""
        begun = time.monotonic()
        threads = [threading.Thread(target=self._read, args=(i, begun), daemon=True) for i in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def end(self) -> None:
        """No more of it."""
        self._done.set()
        self.join()

    def _read(self, which: int, begun: float) -> None:
        dice = random.Random(which)  # noqa: S311 - nothing secret
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        count = 0
        while not self._done.is_set():
            due = begun + (count * CONNECTIONS + which) / self._rate
            count += 1
            time.sleep(max(0.0, due - time.monotonic()))
            connection.request("GET", self._path(dice), headers={"Authorization": f"Bearer {self._token}"})
            answer = connection.getresponse()
            answer.read()
            self.seconds.append(time.monotonic() - due)  # from when it was due: a queue counts
            self.statuses.append(answer.status)

    def _path(self, dice: random.Random) -> str:
        key, offset = f"{dice.randrange(self._number):016x}", dice.randrange(self._number)
        base = "/api/v1/sweeps/large"
        sorts = ("loss", "params", "seconds")
        return dice.choice(
            [
                base,
                base,
                f"{base}/experiments?limit=50&offset={offset}",
                f"{base}/experiments?limit=50&status=completed&sort={dice.choice(sorts)}&order=desc",
                f"{base}/experiments/{key}",
                f"{base}/experiments/{key}/metrics",
            ]
        )


class Watching(threading.Thread):
    """Connections that follow the events of the directory."""

    def __init__(self, port: int, token: str, number: int) -> None:
        super().__init__(daemon=True)
        self._done = threading.Event()
        self._selector = selectors.DefaultSelector()
        self.outcomes = 0  # events heard, of all together
        self.broken = 0  # connections that ended by themselves
        lines = (
            "GET /api/v1/sweeps/large/events HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            f"Authorization: Bearer {token}",
        )
        head = "\r\n".join([*lines, "", ""])
        for _ in range(number):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(head.encode())
            self._selector.register(connection, selectors.EVENT_READ)

    def run(self) -> None:
        """Until `end`."""
        while not self._done.is_set():
            for key, _ in self._selector.select(0.5):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                heard = b""
                with contextlib.suppress(ConnectionError):
                    heard = connection.recv(1 << 20)
                self.outcomes += heard.count(b"event: outcome")
                if not heard:
                    self.broken += 1
                    self._selector.unregister(connection)

    def end(self) -> None:
        """No more of it."""
        self._done.set()
        self.join()


def sweep_seconds(place: Path, root: Path) -> float:
    """Wall seconds of one real sweep on one core."""
    started = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "flops_fit_ray.run",
        str(place / "sweep.yaml"),
        "--output",
        str(root),
        "--slots",
        "1",
    ]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=dict(os.environ))  # noqa: S603 - our own
    assert done.returncode in (0, 1), done.returncode  # whether there is a law is not the question
    return time.monotonic() - started


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service")
    parser.add_argument("--rate", type=float, default=200.0, help="reads per second")
    parser.add_argument("--experiments", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=3, help="sweeps alone and under load, in turn")
    parser.add_argument("--seconds", type=float, help="of reads, without any sweep")
    parser.add_argument("--watchers", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="service") as where:
        root, code = Path(where) / "runs", Path(where) / "code"
        code.mkdir()
        (code / "busy.py").write_text(PARTS)
        (code / "sweep.yaml").write_text(SPEC)
        to_come = large_directory(root / "large", asked.experiments, int(0.9 * asked.experiments))
        service = ServiceProcess(root, code)
        client = service.client
        began = time.monotonic()
        client.sweep("large")
        first = time.monotonic() - began
        alone, loaded, seconds, statuses = [], [], [], []
        token = ServicePaths(root).token.read_text().strip()
        watching = Watching(service.port, token, asked.watchers)
        watching.start()
        for i in range(asked.pairs if asked.seconds is None else 1):
            if asked.seconds is None:
                alone.append(sweep_seconds(code, Path(where) / f"alone{i}"))
            load = Load(service.port, token, asked.rate, asked.experiments)
            arrivals = Arrivals(to_come, ARRIVALS)
            load.start()
            arrivals.start()
            if asked.seconds is None:
                loaded.append(sweep_seconds(code, Path(where) / f"loaded{i}"))
            else:
                time.sleep(asked.seconds)
            load.end()
            arrivals.end()
            seconds += load.seconds
            statuses += load.statuses
        memory, spent = service.memory(), service.cpu_seconds()
        watching.end()
        service.end()
    p50, p99, worst = np.quantile(seconds, [0.5, 0.99, 1.0])
    found = {
        "name": "service",
        "experiments": asked.experiments,
        "first_read_s": round(first, 2),
        "reads": len(seconds),
        "rate": asked.rate,
        "failed": sum(status != 200 for status in statuses),
        "p50_ms": round(1000 * p50, 1),
        "p99_ms": round(1000 * p99, 1),
        "worst_ms": round(1000 * worst, 1),
        "watchers": asked.watchers,
        "watchers_lost": watching.broken,
        "outcomes_heard": watching.outcomes,
        "memory_mb": round(memory / 1e6),
        "cpu_s": round(spent, 1),
        "sweep_alone_s": [round(s, 1) for s in alone],
        "sweep_under_load_s": [round(s, 1) for s in loaded],
        "slowdown": round(float(np.median(np.array(loaded) / np.array(alone))), 3) if loaded else None,
    }
    print(json.dumps(found))  # noqa: T201 - its output


if __name__ == "__main__":
    main()
