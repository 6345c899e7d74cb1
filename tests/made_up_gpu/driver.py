"""What `torch.cuda` answers where the made-up device is."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.made_up_gpu.tensors import Capture, the_device

NAME = "NVIDIA H200"  # so that its data sheet is known
MEMORY = 141 << 30


class MadeUpStream:
    """A stream in which everything has happened already."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, other: MadeUpStream) -> None: ...
    def synchronize(self) -> None:
        the_device().wait("Stream.synchronize")


class MadeUpEvent:
    """A moment in a stream."""

    def __init__(self, **_: Any) -> None:
        self._at = math.nan

    def record(self) -> None:
        self._at = time.perf_counter()

    def elapsed_time(self, end: MadeUpEvent) -> float:
        """Milliseconds."""
        the_device().wait("Event.elapsed_time")
        return 1e3 * (end._at - self._at)


class MadeUpGraph:
    """A CUDA graph."""

    def __init__(self) -> None:
        self._capture = Capture()

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        the_device().begin(self._capture, capture_error_mode)

    def capture_end(self) -> None:
        the_device().end()
        self._capture.end()

    def replay(self) -> None:
        self._capture.replay()


@contextmanager
def _graph(graph: MadeUpGraph, capture_error_mode: str = "global") -> Iterator[None]:
    graph.capture_begin(capture_error_mode=capture_error_mode)
    try:
        yield
    finally:
        graph.capture_end()


def table(*gpus: str, version: str = "570.86.15") -> str:
    """Return the content of a table of nvml.c: H200s that work, with these UUIDs."""
    rows = [f"0 {uuid} {2 << 30} {MEMORY} 73 512300 700000 2500000 61 {NAME}" for uuid in gpus]
    return "\n".join([f"0 {version}", *rows, ""])


def _visible() -> list[str]:
    """The UUIDs of the GPUs that this process sees. Its tensors lie on the first one."""
    path = os.environ.get("MADE_UP_DRIVER")  # of nvml.c
    rows = ["0 GPU-a"] if path is None else Path(path).read_text().splitlines()[1:]
    uuids = [row.split()[1] for row in rows]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return uuids if chosen is None else [uuids[int(index)] for index in chosen.split(",") if index]


def _properties(index: Any = 0) -> SimpleNamespace:
    uuid = _visible()[torch.device(index).index or 0 if isinstance(index, str | torch.device) else index]
    return SimpleNamespace(name=NAME, total_memory=MEMORY, uuid=uuid.removeprefix("GPU-"), major=9, minor=0)


def install() -> None:
    """Let `torch.cuda` answer as if there were one GPU, from now on in this process."""
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "device_count": lambda: len(_visible()),
        "current_device": lambda: 0,
        "get_device_name": lambda *_: NAME,
        "get_device_properties": _properties,
        "get_device_capability": lambda *_: (9, 0),
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda *_: the_device().wait("synchronize"),
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "reset_peak_memory_stats": lambda *_: None,
        "max_memory_allocated": lambda *_: 1 << 20,
        "memory_allocated": lambda *_: 1 << 20,
        "memory_reserved": lambda *_: 1 << 20,
        "empty_cache": lambda: the_device().empty_cache(),
        "Event": MadeUpEvent,
        "manual_seed_all": lambda seed: None,  # its random numbers are the CPU's
        "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
        "set_rng_state_all": lambda states: None,
        "Stream": MadeUpStream,
        "current_stream": lambda *_: MadeUpStream(),
        "stream": lambda _: nullcontext(),
        "CUDAGraph": MadeUpGraph,
        "graph": _graph,
        "is_current_stream_capturing": lambda: the_device().capture is not None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.backends.cuda.is_built = lambda: True
    torch.backends.cudnn.is_acceptable = lambda tensor: False  # none is built in
    torch.Tensor.pin_memory = torch.Tensor.clone  # type: ignore[assignment, method-assign] # all memory is alike here
