"""Text that comes with every torch: its own sources and those of Python's standard library, as bytes."""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

HELD_OUT_BYTES = 262_144
SKIPPED = {"site-packages", "dist-packages", "__pycache__"}


def train(context: int = 256, limit: int | None = None) -> TensorDataset:
    """Return all text but that of held-out files; `limit` is the number of bytes to take."""
    return _windows(_read(held_out=False, limit=limit), context)


def held_out(context: int = 256, limit: int | None = None) -> TensorDataset:
    return _windows(_read(held_out=True, limit=min(limit or HELD_OUT_BYTES, HELD_OUT_BYTES)), context)


def _read(*, held_out: bool, limit: int | None) -> bytes:
    """One side of the split by file, in an order that is the same everywhere."""
    chosen = sorted((number, path) for number, path in _sources() if (number % 50 == 0) == held_out)
    text = bytearray()
    for _, path in chosen:
        text += path.read_bytes() + b"\n"
        if limit is not None and len(text) > limit:
            return bytes(text[: limit + 1])
    return bytes(text)


def _sources() -> Iterator[tuple[int, Path]]:
    """Yield each file after a number made of its name."""
    for root in (Path(sysconfig.get_path("stdlib")), Path(torch.__file__).parent):
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(set(folders) - SKIPPED)  # installed packages are not even listed
            for name in names:
                path = Path(folder, name)
                if path.suffix == ".py":
                    named = (root.name, path.relative_to(root).as_posix())
                    yield int(hashlib.sha256("/".join(named).encode()).hexdigest()[:12], 16), path


def _windows(text: bytes, context: int) -> TensorDataset:
    """Each sample: `context` bytes and, as target, the byte that follows each of them."""
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    count = (len(ids) - 1) // context
    return TensorDataset(ids[: count * context].view(count, context), ids[1 : count * context + 1].view(count, context))
