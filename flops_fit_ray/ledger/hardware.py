"""Hardware of a machine and its load, from NVML, psutil and the system; what they do not say is None, never 0."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from flops_fit_ray.storage.codec import Amount, Count, Record
from flops_fit_ray.storage.lock import hostname

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Gpu(Record):
    """One GPU, as its driver reports it (NVML)."""

    uuid: str
    index: Count  # on its node, in the driver's order
    name: str
    utilisation: Amount | None = None  # share of the last moments in which a kernel ran, 0 to 1
    memory_used: Count | None = None  # bytes
    memory_total: Count | None = None
    temperature: float | None = None  # °C
    power: Amount | None = None  # W
    power_limit: Amount | None = None
    energy: Amount | None = None  # J since the driver was loaded

    @property
    def memory_share(self) -> float | None:
        """Share of its memory that is used, 0 to 1."""
        return self.memory_used / self.memory_total if self.memory_used is not None and self.memory_total else None


@dataclass(frozen=True, kw_only=True)
class Machine(Record):
    """One node."""

    host: str
    cpu: str = ""  # its name
    cpus: Count | None = None  # cores that the system shows
    cpu_share: Amount | None = None  # of all of them, busy since the reading before, 0 to 1
    memory_used: Count | None = None  # bytes
    memory_total: Count | None = None
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None  # of its GPUs
    cuda: str | None = None  # that torch was built for
    nccl: str | None = None

    @property
    def libraries(self) -> tuple[str, ...]:
        """Versions of driver, CUDA and NCCL, as far as they are known: "driver 570.86", "CUDA 13.0"."""
        known = {"driver": self.driver, "CUDA": self.cuda, "NCCL": self.nccl}
        return tuple(f"{what} {version}" for what, version in known.items() if version)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Cluster(Record):
    """The machines that a sweep runs on."""

    slots: Count  # experiments at a time
    note: str = ""  # where it is not what was asked for
    machines: tuple[Machine, ...] = ()


class EnergyMeter:
    """Sums the energy that GPUs draw, from the counters of their drivers."""

    def __init__(self) -> None:
        self._first: dict[str, float | None] = {}  # by uuid
        self._last: dict[str, float | None] = {}

    def joules(self, gpus: Iterable[Gpu]) -> float | None:
        """Return what all GPUs read so far have drawn, each since its first reading; None where one does not say."""
        for gpu in gpus:
            self._first.setdefault(gpu.uuid, gpu.energy)
            self._last[gpu.uuid] = gpu.energy
        drawn = [_difference(self._first[uuid], last) for uuid, last in self._last.items()]
        known = [joules for joules in drawn if joules is not None]
        return sum(known) if known and len(known) == len(drawn) else None


def _difference(first: float | None, last: float | None) -> float | None:
    return None if first is None or last is None or last < first else last - first  # a driver loaded anew counts from 0


class Readings:
    """Reads the load of this machine; the share of busy cores is over the time since the reading before."""

    def __init__(self) -> None:
        self._before = _cpu_times()

    def read(self, uuids: Sequence[str] | None = None) -> Machine:
        """Read everything, with the GPUs in `uuids`; by default all of them."""
        now, before = _cpu_times(), self._before
        share = None
        if now is not None and before is not None and (spent := now[1] - before[1]) > 0:
            share = min(1.0, max(0.0, (now[0] - before[0]) / spent))
            self._before = now
        used, total = _memory()
        return Machine(
            host=hostname(),
            cpu=_cpu_name(),
            cpus=os.cpu_count(),
            cpu_share=share,
            memory_used=used,
            memory_total=total,
            gpus=read_gpus(uuids),
            driver=_driver(),
        )


def read_gpus(uuids: Sequence[str] | None = None) -> tuple[Gpu, ...]:
    """Read the GPUs of this machine from NVML; none where there is no NVML."""
    nvml = _nvml()
    if nvml is None:
        return ()
    found = []
    for index in range(_asked(nvml.nvmlDeviceGetCount) or 0):
        handle = _asked(nvml.nvmlDeviceGetHandleByIndex, index)
        uuid = None if handle is None else _asked(nvml.nvmlDeviceGetUUID, handle)
        if uuid is not None and (uuids is None or _text(uuid) in uuids):
            found.append(_gpu(nvml, handle, index, _text(uuid)))
    return tuple(found)


def _gpu(nvml: Any, handle: Any, index: int, uuid: str) -> Gpu:
    memory = _asked(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    busy = _asked(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)  # percent
    power = _asked(lambda: nvml.nvmlDeviceGetPowerUsage(handle))  # mW
    limit = _asked(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    energy = _asked(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))  # mJ
    warmth = _asked(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return Gpu(
        uuid=uuid,
        index=index,
        name=_asked(lambda: _text(nvml.nvmlDeviceGetName(handle))) or "GPU",
        utilisation=None if busy is None else busy / 100,
        memory_used=None if memory is None else int(memory.used),
        memory_total=None if memory is None else int(memory.total),
        temperature=None if warmth is None else float(warmth),
        power=None if power is None else power / 1000,
        power_limit=None if limit is None else limit / 1000,
        energy=None if energy is None else energy / 1000,
    )


@functools.cache
def _nvml() -> Any | None:
    """Open the driver's library, once; None where there is no NVIDIA GPU."""
    try:
        import pynvml  # type: ignore[import-untyped] # it has no types
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _asked(question: Callable[..., _T], *of: Any) -> _T | None:
    """Return NVML's answer; None where a device has none (a MIG slice has no utilisation, a laptop no power limit)."""
    nvml = _nvml()
    assert nvml is not None
    try:
        return question(*of)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # older bindings give bytes


@functools.cache
def _driver() -> str | None:
    nvml = _nvml()
    return None if nvml is None else _asked(lambda: _text(nvml.nvmlSystemGetDriverVersion()))


@functools.cache
def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine()


def _cpu_times() -> tuple[float, float] | None:
    """Return the busy seconds and all seconds of all cores since the start of the machine."""
    import psutil

    with contextlib.suppress(OSError, psutil.Error):
        times = psutil.cpu_times()._asdict()
        idle = times["idle"] + times.get("iowait", 0.0)
        total = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)  # user time holds both
        return total - idle, total
    return None


def _memory() -> tuple[int | None, int | None]:
    """Return the bytes used and in all."""
    import psutil

    with contextlib.suppress(OSError, psutil.Error):
        memory = psutil.virtual_memory()
        return memory.total - memory.available, memory.total
    return None, None
