"""Machines and GPUs of a sweep: as they were read last, and since the service has watched them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flops_fit_ray.analysis import json_value
from flops_fit_ray.console.live_state import NodeUse
from flops_fit_ray.errors import StorageError
from flops_fit_ray.ledger.hardware import Machine
from flops_fit_ray.service.state.cache import SweepCaches
from flops_fit_ray.service.state.snapshot import Snapshot
from flops_fit_ray.storage.atomic import append_line, read_file, write_bytes
from flops_fit_ray.storage.codec import Count, PositiveInt, Record, Timestamp, value_of

MAX_READINGS = 720  # of one sweep; of more, every second one is forgotten, so that the whole time is kept
MAX_BYTES = 2**23  # likewise, of a cluster of many machines
MAX_HISTORIES = 64  # sweeps in memory
SAMPLE_SECONDS = 5.0
GPU_READINGS = ("utilisation", "memory_used", "temperature", "power")


def devices_of(snapshot: Snapshot) -> list[dict[str, Any]]:
    """The machines and GPUs as they were read last, and what they train."""
    return [
        {
            **{name: value for name, value in node.machine.to_json().items() if name != "gpus"},
            "running": node.running,
            "gpus": [{**asdict(g.gpu), "experiments": [e.key for e in g.experiments]} for g in node.gpus],
        }
        for node in snapshot.nodes
    ]


@dataclass(frozen=True, kw_only=True)
class _MachineReading(Record):
    machine: Machine
    running: Count  # experiments


@dataclass(frozen=True, kw_only=True)
class _Reading(Record):
    """One reading of all machines of a sweep, a line of its file."""

    at: Timestamp
    every: PositiveInt  # readings from one that is kept to the next, when this one was
    machines: tuple[_MachineReading, ...]


@dataclass(eq=False)
class _History:
    kept: list[_Reading]
    size: int  # bytes of their lines
    every: int = 1
    passed: int = 0  # readings, of which the first and every so many are kept
    newest: float = 0.0  # when the last reading was taken, in seconds since the epoch


class DeviceHistory:
    """Readings of the devices of sweeps that run, kept in files, so that a service that is started again has them.

    Args:
        file_of: returns the file of a sweep, by its name.
    """

    def __init__(self, file_of: Callable[[str], Path]) -> None:
        self._file_of = file_of
        self._lock = threading.Lock()
        self._of: OrderedDict[str, _History] = OrderedDict()

    def sample(self, caches: SweepCaches, names: Iterator[str]) -> None:
        """Keep the newest readings of these sweeps and of those that somebody watches."""
        for name in sorted({*names, *caches.watched()}):
            snapshot = caches.now(name)
            if snapshot is not None:
                self.add(name, snapshot)

    def add(self, name: str, snapshot: Snapshot) -> None:
        """Keep the readings of a snapshot, unless nothing runs or they are known."""
        at = max((progress.updated_at for _, progress in snapshot.sweep.running), default=0.0)
        with self._lock:
            history = self._history(name)
            if at <= history.newest:
                return
            history.newest, history.passed = at, history.passed + 1
            if (history.passed - 1) % history.every:
                return
            reading = _Reading(at=at, every=history.every, machines=tuple(map(_reading_of, snapshot.nodes)))
            line = _line_of(reading)
            history.kept.append(reading)
            history.size += len(line) + 1
            with contextlib.suppress(OSError, StorageError):  # then they are in memory alone
                if len(history.kept) <= MAX_READINGS and history.size <= MAX_BYTES:
                    append_line(self._file_of(name), line)
                else:
                    _thin(history)
                    lines = [_line_of(one) for one in history.kept]
                    history.size = sum(len(line) + 1 for line in lines)
                    write_bytes(self._file_of(name), "".join(f"{line}\n" for line in lines).encode(), durable=False)

    def forget(self, name: str) -> None:
        """Forget a sweep, whose directory is another one from now on, and remove its file."""
        with self._lock:
            self._of.pop(name, None)
            with contextlib.suppress(OSError):
                self._file_of(name).unlink(missing_ok=True)

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return what was read of each machine and its GPUs, as columns, oldest first; `at` is common to all of them.

        A value that was not read is None.
        """
        with self._lock:
            kept = list(self._history(name).kept)
        at = [one.at for one in kept]
        rows = [{one.machine.host: one for one in reading.machines} for reading in kept]
        return [_of_machine(host, at, [row.get(host) for row in rows]) for host in sorted({h for r in rows for h in r})]

    def _history(self, name: str) -> _History:
        """Return the history of a sweep, as its file has it where it is not in memory."""
        history = self._of.pop(name, None) or _read_history(self._file_of(name))
        self._of[name] = history
        while len(self._of) > MAX_HISTORIES:
            self._of.popitem(last=False)
        return history


def _read_history(path: Path) -> _History:
    content = b""
    with contextlib.suppress(OSError, MemoryError):
        content = read_file(path)
    kept = []
    for line in content.splitlines():
        with contextlib.suppress(ValueError):  # torn: the service was killed
            kept.append(value_of(_Reading, line))
    last = kept[-1] if kept else None
    return _History(
        kept=kept,
        size=len(content),
        every=1 if last is None else last.every,
        passed=0 if last is None else 1,
        newest=0.0 if last is None else last.at,
    )


def _thin(history: _History) -> None:
    """Forget every second reading, so that the whole time is kept."""
    del history.kept[1::2]
    history.every *= 2
    history.kept[-1] = replace(history.kept[-1], every=history.every)


def _line_of(reading: _Reading) -> str:
    return json.dumps(json_value(asdict(reading)), separators=(",", ":"))


def _reading_of(node: NodeUse) -> _MachineReading:
    return _MachineReading(machine=replace(node.machine, gpus=tuple(g.gpu for g in node.gpus)), running=node.running)


def _of_machine(host: str, at: list[float], nodes: list[_MachineReading | None]) -> dict[str, Any]:
    machines = [None if node is None else node.machine for node in nodes]
    gpus = [{} if node is None else {gpu.uuid: gpu for gpu in node.machine.gpus} for node in nodes]
    known = {uuid: gpu for row in gpus for uuid, gpu in row.items()}
    return {
        "host": host,
        "at": at,
        "running": [None if node is None else node.running for node in nodes],
        **{name: [getattr(m, name, None) for m in machines] for name in ("cpu_share", "memory_used")},
        "memory_total": next((m.memory_total for m in reversed(machines) if m is not None), None),
        "gpus": [
            {
                "uuid": uuid,
                "index": gpu.index,
                "name": gpu.name,
                "memory_total": gpu.memory_total,
                "power_limit": gpu.power_limit,
                **{name: [getattr(row.get(uuid), name, None) for row in gpus] for name in GPU_READINGS},
            }
            for uuid, gpu in sorted(known.items(), key=lambda one: one[1].index)
        ],
    }
