"""Bytes of the sources of Python's standard library, as samples that a Hugging Face model takes.

`labels` are the same ids as `input_ids`: the model shifts them by one itself.
"""

import sysconfig
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Samples(Dataset[dict[str, Tensor]]):
    def __init__(self, text: bytes, context: int) -> None:
        ids = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.rows = ids[: len(ids) // context * context].view(-1, context)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index].long()
        return {"input_ids": row, "labels": row}


def train(context: int = 64) -> Samples:
    return Samples(_text()[200_000:], context)


def held_out(context: int = 64) -> Samples:
    return Samples(_text()[:200_000], context)


def _text() -> bytes:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    return b"".join(file.read_bytes() for file in sorted(root.rglob("*.py")) if not skipped & set(file.parts))
