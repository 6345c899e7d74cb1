"""Machines and GPUs of a sweep: as they were read last, and since the service has watched them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from flops_fit_ray.console.live_state import NodeUse
from flops_fit_ray.service.state.cache import SweepCaches
from flops_fit_ray.service.state.snapshot import Snapshot

MAX_READINGS = 720  # of one sweep; of more, every second one is forgotten, so that the whole time is kept
MAX_HISTORIES = 64  # sweeps
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


@dataclass(eq=False)
class _History:
    every: int = 1  # readings from one that is kept to the next
    passed: int = 0
    newest: float = 0.0  # when the last reading was taken, in seconds since the epoch
    kept: list[tuple[float, tuple[NodeUse, ...]]] = field(default_factory=list)


class DeviceHistory:
    """Readings of the devices of sweeps that run, kept in memory alone: a service that is restarted begins again."""

    def __init__(self) -> None:
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
            history = self._of.pop(name, None) or _History()
            self._of[name] = history
            while len(self._of) > MAX_HISTORIES:
                self._of.popitem(last=False)
            if at <= history.newest:
                return
            history.newest, history.passed = at, history.passed + 1
            if (history.passed - 1) % history.every:
                return
            history.kept.append((at, snapshot.nodes))
            if len(history.kept) > MAX_READINGS:
                del history.kept[1::2]
                history.every *= 2

    def forget(self, name: str) -> None:
        """Forget a sweep, whose directory is another one from now on."""
        with self._lock:
            self._of.pop(name, None)

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return what was read of each machine and its GPUs, as columns, oldest first; `at` is common to all of them.

        A value that was not read is None.
        """
        with self._lock:
            history = self._of.get(name)
            kept = [] if history is None else list(history.kept)
        at = [when for when, _ in kept]
        rows = [{node.machine.host: node for node in nodes} for _, nodes in kept]
        return [_of_machine(host, at, [row.get(host) for row in rows]) for host in sorted({h for r in rows for h in r})]


def _of_machine(host: str, at: list[float], nodes: list[NodeUse | None]) -> dict[str, Any]:
    machines = [None if node is None else node.machine for node in nodes]
    gpus = [{} if node is None else {g.gpu.uuid: g.gpu for g in node.gpus} for node in nodes]
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
