"""Drivers in processes of their own that are killed, and what must hold afterwards; `python -m tests.chaos` kills on.

Every scenario is a function that takes how often, and returns a `Row`: how often it was done, and every promise that
did not hold. The suite calls them with small numbers; the command with large ones, and prints a table.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from flops_fit_ray.engine.processes import descendants
from flops_fit_ray.errors import EXIT_DONE
from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from tests.hangs import HANG_SECONDS
from tests.records import recorded

SIZES = [5, 7, 10, 14, 20, 28]
SPEC = f"""
name: chaos
model: {{target: "parts:Slow", size_param: features}}
data: {{train: "parts:data"}}
loss: mse
budgets: {[{"flops": c, "sizes": SIZES} for c in (2e4, 4e4)]}
train: {{batch_size: 4, lr: 4e-2, optimizer: sgd, grad_clip: null, warmup_tokens: 0}}
checkpoint: {{steps: 20}}
resources_per_trial: {{cpu: 1}}
fit: {{draws: 200}}
"""
PAUSE_OF_ENVIRONMENT = 'os.environ.get("CHAOS_PAUSE", "0.01")'
PARTS = f"""
import os
import time
import torch
from torch import nn


def pause():
    return float({PAUSE_OF_ENVIRONMENT})


class Slow(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features, self.linear = features, nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x):
        if self.training and not x.is_meta:
            time.sleep(pause())
        return self.linear(x[:, : self.features])


def data():
    scale = torch.arange(1, 65) ** -0.5
    x = torch.randn(9_000, 64, generator=torch.Generator().manual_seed(0)) * scale
    return x, x @ scale[:, None]
"""
NUM_EXPERIMENTS = 2 * len(SIZES)
TIMED = False  # whether promises of seconds are judged: by `main`, and not in the suite, whose machine may be busy


@dataclass
class Row:
    """What became of one promise."""

    name: str
    times: int = 0
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def expect(self, holds: bool, words: str) -> None:
        """A promise, and what to say where it does not hold."""
        if not holds:
            self.violations.append(words)


def make_project(where: Path, pace: Path | None = None) -> Path:
    """A spec and its parts; returns the spec.

    Args:
        pace: a file with the pause of a step in seconds, read before each, so that a test can hold a sweep up while
            it looks, and let it go on.
    """
    where.mkdir(parents=True, exist_ok=True)
    parts = PARTS if pace is None else PARTS.replace(PAUSE_OF_ENVIRONMENT, f"open({str(pace)!r}).read() or 0")
    (where / "parts.py").write_text(parts)
    (where / "sweep.yaml").write_text(SPEC)
    return where / "sweep.yaml"


class Driver:
    """`python -m flops_fit_ray.run` in a process of its own."""

    def __init__(
        self,
        spec: Path,
        root: Path,
        *extra: str,
        pause: float = 0.01,
        environment: Mapping[str, str] | None = None,
        line: str = "",  # of a shell, in place of all that
    ) -> None:
        self.root, self.log = root, root.parent / f"{root.name}.log"
        self.options = shlex.join(["--output", str(root), *extra])
        command = [sys.executable, "-m", "flops_fit_ray.run", str(spec), "--output", str(root), *extra]
        environ = {**os.environ, "CHAOS_PAUSE": str(pause), "PYTHONUNBUFFERED": "1", **(environment or {})}
        command = ["env", *shlex.split(line)] if line else command  # as a shell does it, but without one between us
        self.began = time.time()
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=Path(__file__).parents[2],
                start_new_session=True,  # a process group of its own, as shells and `timeout` make it
            )

    @property
    def pid(self) -> int:
        """The driver itself; `process` is its parent."""
        started = self.until(lambda: bool(psutil.Process(self.process.pid).children()))
        assert started, self.said
        return psutil.Process(self.process.pid).children()[0].pid

    def kill(self) -> None:
        """SIGKILL for the driver itself: its parent has the last word."""
        os.kill(self.pid, signal.SIGKILL)

    def ended(self) -> bool:
        """Whether it has."""
        return self.process.poll() is not None

    def wait(self, seconds: float) -> int:
        """Its exit code; a driver that does not end is killed, and -100."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return -100

    @property
    def said(self) -> list[str]:
        """Its lines so far."""
        return self.log.read_text(errors="replace").splitlines()

    def until(self, condition: Callable[[], bool], seconds: float = HANG_SECONDS) -> bool:
        """Wait for something, as long as the driver lives. Whether it came."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.ended() or time.monotonic() > deadline:
                return condition()
            time.sleep(0.02)
        return True


class Watched:
    """What is recorded in a directory, so that the next look finds whatever was lost, changed or run twice."""

    def __init__(self, root: Path, row: Row) -> None:
        self._root, self._row = root, row
        self._results: dict[str, bytes] = {}
        self._attempts: dict[str, int] = {}

    def look(self) -> int:
        """Compare with the look before. Returns how many results there are."""
        now, paths = recorded(self._root), SweepPaths(self._root)
        for key, content in self._results.items():
            self._row.expect(key in now, f"{key}: its result is lost")
            self._row.expect(now.get(key, content) == content, f"{key}: its result was changed")
            self._row.expect(paths.num_attempts(key) == self._attempts[key], f"{key}: was started again")
        self._results, self._attempts = now, {key: paths.num_attempts(key) for key in now}
        for key in now:
            self._row.expect(
                isinstance(Ledger(paths).result(key), ExperimentResult), f"{key}: its result cannot be read"
            )
        return len(now)


def finish(driver: Driver, row: Row, watched: Watched, sha256: str) -> Sweep | None:
    """Let a driver come to its end, and check all that must hold then."""
    code = driver.wait(HANG_SECONDS)
    row.expect(code == EXIT_DONE, f"the last run ended with {code}: {driver.said[-3:]}")
    watched.look()
    if code != EXIT_DONE:
        return None
    sweep = open_sweep(driver.root)
    row.expect(len(sweep.results) == NUM_EXPERIMENTS, f"{len(sweep.results)} of {NUM_EXPERIMENTS} experiments")
    row.expect(sweep.results_sha256 == sha256, "the results are not those of an uninterrupted run")
    row.expect(not list(driver.root.rglob(".*.tmp")), "a half-written file is left")
    return sweep


def plain_sweep(where: Path) -> Sweep:
    """The same sweep without Ray and without anything that goes wrong."""
    from flops_fit_ray.spec import read_spec
    from flops_fit_ray.training.user.parts import load_user_parts
    from tests.sweeps import make_sweep, trained_once

    os.environ["CHAOS_PAUSE"] = "0"
    spec = make_project(where)
    resolved = read_spec(spec)
    user = trained_once(load_user_parts(resolved, spec.parent))
    return make_sweep(where / "plain", resolved, user)


def uninterrupted(where: Path) -> str:
    """The fingerprint of its results."""
    return plain_sweep(where).results_sha256


def children_of(pid: int) -> dict[int, str]:
    """The processes that descend from one, with their command lines."""
    found = {}
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def alive(pids: Iterator[int] | list[int] | set[int]) -> list[int]:
    """Those that still run, zombies not counted."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


def until_gone(pids: set[int], seconds: float = 20.0) -> list[int]:
    """Wait until processes have ended. Returns those that run even so."""
    deadline = time.monotonic() + seconds
    while (left := alive(pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
