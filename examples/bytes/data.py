"""Text that every Python installation has: the sources of its own standard library, as bytes.

Nothing is downloaded. The split is by file, so that no line of a held-out file is ever trained on.
"""

import hashlib
import os
import sysconfig
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

HELD_OUT_BYTES = 65_536  # of held-out text that every model is evaluated on
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}


def train(context: int = 64) -> TensorDataset:
    return _windows(_read(held_out=False), context)


def held_out(context: int = 64) -> TensorDataset:
    return _windows(_read(held_out=True)[: HELD_OUT_BYTES + 1], context)


def _read(held_out: bool) -> bytes:
    """All sources of one side of the split, in an order that is the same everywhere."""
    root = Path(sysconfig.get_path("stdlib"))
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = set(folders) - SKIPPED  # installed packages are not even listed
        files += [Path(folder, name).relative_to(root) for name in names if name.endswith(".py")]
    chosen = sorted((f for f in files if (_hash(f) % 20 == 0) == held_out), key=_hash)
    return b"\n".join((root / f).read_bytes() for f in chosen)


def _hash(path: Path) -> int:
    return int(hashlib.sha256(path.as_posix().encode()).hexdigest()[:12], 16)


def _windows(text: bytes, context: int) -> TensorDataset:
    """Each sample: `context` bytes and, as target, the byte that follows each of them."""
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    count = (len(ids) - 1) // context
    inputs = ids[: count * context].view(count, context)
    targets = ids[1 : count * context + 1].view(count, context)
    return TensorDataset(inputs.int(), targets.int())
