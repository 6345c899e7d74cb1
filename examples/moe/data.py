"""Bytes of the sources of Python's standard library: windows of 64, and as targets the byte after each."""

import sysconfig
from pathlib import Path

import torch
from torch.utils.data import TensorDataset


def train() -> TensorDataset:
    return _windows(_text()[200_000:])


def held_out() -> TensorDataset:
    return _windows(_text()[:200_000])


def _text() -> bytes:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    return b"".join(file.read_bytes() for file in sorted(root.rglob("*.py")) if not skipped & set(file.parts))


def _windows(text: bytes, context: int = 64) -> TensorDataset:
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    count = (len(ids) - 1) // context
    inputs, targets = ids[: count * context], ids[1 : count * context + 1]
    return TensorDataset(inputs.view(count, context).int(), targets.view(count, context).long())
