"""Facts of a device: name, peak FLOP/s, memory."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from flops_fit_ray.training.step.precision import DTYPES

# Dense matmul peaks in FLOP/s from the vendors' data sheets, without sparsity: (fp32 as torch runs it, bf16 and fp16).
# fp32 is without TF32, which torch leaves off by default.
_PEAKS = {
    "H200": (67e12, 989e12),
    "H100 PCIe": (51e12, 756e12),
    "H100 NVL": (60e12, 835e12),
    "H100": (67e12, 989e12),
    "A100": (19.5e12, 312e12),
    "L40S": (91.6e12, 362e12),
    "A10": (31.2e12, 125e12),
    "V100": (15.7e12, 125e12),
    "T4": (8.1e12, 65e12),
}
_GEMM_SIZE = 1024
_GEMM_SECONDS = 0.3  # the first products are slow: page faults, clock speed
_QUIET = 0.95  # of the fastest product's time this process had its core; else another one computed there
_ASK_AGAIN_SECONDS = 60.0  # after a measurement on a busy device

Peak = tuple[float | None, str]  # FLOP/s, and where the number is from, or why there is none


def device_name(device: torch.device) -> str:
    """Return the name of a device for the record."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"


def peak_flops(name: str, device: str, precision: str, threads: int) -> Peak:
    """Return the peak FLOP/s of a device in a precision, and the source of the number.

    For a known GPU from its data sheet; for anything else the fastest of some matrix products, measured here and now,
    if nothing else computes on the device: a peak that others had a part in would flatter an MFU.
    """
    for known, (single, half) in _PEAKS.items():
        if known in name:
            return (single if precision == "fp32" else half), f"data sheet of {known}"
    asked = (name, device, precision, threads)
    found, at = _measured.get(asked, (None, 0.0))
    if found is None or (found[0] is None and time.monotonic() - at > _ASK_AGAIN_SECONDS):
        found = _measured_peak(torch.device(device), precision, threads)
        _measured[asked] = (found, time.monotonic())
    return found


_measured: dict[tuple[str, str, str, int], tuple[Peak, float]] = {}  # and when


def _measured_peak(device: torch.device, precision: str, threads: int) -> Peak:
    peak, quiet = _measured_gemm(device, precision)
    if quiet < _QUIET:
        return (
            None,
            f"no peak: the device was busy with something else while it was measured ({100 * quiet:.0f} % ours)",
        )
    return peak, f"measured GEMM of {_GEMM_SIZE}, {threads} thread(s)"


def _measured_gemm(device: torch.device, precision: str) -> tuple[float, float]:
    """Return the FLOP/s of the fastest of some products, and how much of the device was this process's.

    That is the share of the wall time in which this thread ran; on a GPU the fastest product against the middle one.
    """
    n = _GEMM_SIZE
    a = torch.ones(n, n, device=device, dtype=DTYPES[precision])
    out = torch.empty_like(a)
    products: list[tuple[float, float]] = []  # seconds, and those of this thread
    deadline = time.perf_counter() + _GEMM_SECONDS
    while not products or time.perf_counter() < deadline:
        started, ours = time.perf_counter(), time.thread_time()
        torch.mm(a, a, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        products.append((time.perf_counter() - started, time.thread_time() - ours))
    products.sort()
    seconds, ours = products[0]
    if device.type == "cuda":
        ours = seconds * seconds / products[len(products) // 2][0]
    return 2 * n**3 / seconds, ours / seconds


class DeviceTimer:
    """Sums the seconds that a device spends in blocks. Of a GPU they are known once it is waited for, at `read`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.begin(0.0)

    def begin(self, seconds: float) -> None:
        """Begin anew, with seconds of before."""
        self._seconds = seconds
        self._pending.clear()

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the block."""
        if self._device.type == "cuda":
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call] # torch leaves it untyped
            begun.record()
            yield
            ended.record()
            self._pending.append((begun, ended))
            return
        started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - started

    def read(self) -> float:
        """Return the seconds so far, of a device that has been waited for."""
        self._seconds += sum(begun.elapsed_time(ended) for begun, ended in self._pending) / 1e3
        self._pending.clear()
        return self._seconds


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory. Where the system cannot, the peak is that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak memory since `reset_peak_memory`: allocated on the GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def device_memory(device: torch.device) -> int:
    """Return the total memory of a device in bytes; of the machine for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpu_uuids() -> list[str]:
    """Return the UUIDs of this process's GPUs; none before CUDA is initialised."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch leaves it untyped
        return []
    return [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]


def gpu_libraries() -> tuple[str | None, str | None]:
    """Return the versions of CUDA and NCCL that torch was built with; None without them."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return torch.version.cuda, None
    with contextlib.suppress(RuntimeError, AttributeError, ImportError):
        return torch.version.cuda, ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call] # torch leaves it untyped
    return torch.version.cuda, None


def resident_data_bytes(device: torch.device) -> int:
    """Return how many bytes of data may reside on a GPU: a quarter of its free memory; 0 on the CPU."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 0
