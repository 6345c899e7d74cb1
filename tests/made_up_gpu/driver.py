"""What `torch.cuda` answers where the made-up device is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from tests.made_up_gpu.tensors import Capture, the_device

GIB = 1 << 30
NAME = "Made-up H100"  # so that its data sheet is known
MEMORY = 80 * GIB
UUID = "00000000-0000-4000-8000-000000000000"


class MadeUpStream:
    """A stream in which everything has happened already."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, other: MadeUpStream) -> None: ...
    def synchronize(self) -> None:
        the_device().wait("Stream.synchronize")


class MadeUpGraph:
    """A CUDA graph."""

    def __init__(self) -> None:
        self._capture = Capture()

    def capture_begin(self, *_: Any, **__: Any) -> None:
        the_device().capture = self._capture

    def capture_end(self) -> None:
        the_device().capture = None
        self._capture.end()

    def replay(self) -> None:
        self._capture.replay()


@contextmanager
def _graph(graph: MadeUpGraph, *_: Any, **__: Any) -> Iterator[None]:
    graph.capture_begin()
    try:
        yield
    finally:
        graph.capture_end()


def install() -> None:
    """Let `torch.cuda` answer as if there were one GPU, from now on in this process."""
    properties = SimpleNamespace(name=NAME, total_memory=MEMORY, uuid=UUID, major=9, minor=0, multi_processor_count=132)
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: NAME,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (9, 0),
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda *_: the_device().wait("synchronize"),
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "reset_peak_memory_stats": lambda *_: None,
        "max_memory_allocated": lambda *_: 1 << 20,
        "empty_cache": lambda: None,
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
    torch.backends.cudnn.is_acceptable = lambda tensor: False  # none is built in
    torch.Tensor.pin_memory = torch.Tensor.clone  # type: ignore[assignment, method-assign] # all memory is alike here
