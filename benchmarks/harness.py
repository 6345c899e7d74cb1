"""Interleaved pairs, a ratio with its interval, and one JSON line. A ratio without the same answer is no result."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Line:
    """One result. `ratio` is peer over ours: above 1 we are faster."""

    name: str
    ratio: float | None
    ci95: tuple[float, float] | None
    pairs: int
    target: float | None
    limit: str
    same_answer: bool
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, peer: Sequence[float], ours: Sequence[float], *, digits: int = 3, **rest: Any) -> Line:
        """A line of the seconds of pairs of blocks; `rest` are its other fields."""
        ratio, (low, high) = ratio_of(peer, ours)
        interval = (round(low, digits), round(high, digits))
        return cls(ratio=round(ratio, digits), ci95=interval, pairs=len(ours), **rest)

    def print(self) -> None:
        """To stdout, with what it was measured on."""
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        content = {**asdict(self), "date": date.today().isoformat(), "versions": versions, "hardware": hardware()}
        sys.stdout.write(json.dumps(content) + "\n")
        sys.stdout.flush()


def device_here() -> torch.device:
    """The device that everything is measured on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hardware() -> str:
    """The device in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.machine()
    return f"{model}, {os.cpu_count()} cores"


def interleaved(
    runners: Mapping[str, Callable[[], None]], blocks: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of every runner in every block, one after the other, so that a busy machine is busy for all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(blocks):
        names = list(runners)
        for name in names if number % 2 == 0 else reversed(names):
            started = clock()
            runners[name]()
            seconds[name].append(clock() - started)
    return seconds


def ratio_of(peer: Sequence[float], ours: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The geometric mean of peer over ours by pairs, and its 95 % interval."""
    logs = [math.log(p / o) for p, o in zip(peer, ours, strict=True)]
    mean = statistics.fmean(logs)
    half = 1.96 * statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    return math.exp(mean), (math.exp(mean - half), math.exp(mean + half))
