"""Data in every form that users bring, all of the same kind of text, so that one model fits all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from flops_fit_ray.training.data import TokenFile
from tests.parts import text

CONTEXT = 16


class Noisy(Dataset[Any]):
    """Map-style, with an augmentation that draws from torch's and numpy's random numbers."""

    def __init__(self, samples: int = 500) -> None:
        self.rows = text(samples)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.rows[index]
        flips = torch.rand(CONTEXT) < 0.1 * np.random.rand()
        return torch.where(flips, torch.zeros_like(inputs), inputs), targets


class Plain(IterableDataset[Any]):
    """Finite, in a random order, and without a state of its own."""

    def __init__(self, samples: int = 500) -> None:
        self.rows = text(samples)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.randperm(len(self.rows)).tolist():
            yield self.rows[index]


class Stateful(IterableDataset[Any]):
    """Endless, and it can be put back to where it was; it goes on from there when it is read anew."""

    def __init__(self, samples: int = 500) -> None:
        self.rows = text(samples)
        self.position = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            row = self.rows[(self.position * 7) % len(self.rows)]
            self.position += 1
            yield row

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def loader(samples: int = 500, workers: int = 0) -> DataLoader[Any]:
    """A ready loader that shuffles."""
    return DataLoader(Noisy(samples), batch_size=8, shuffle=True, num_workers=workers)


def token_file(directory: Path, samples: int = 500) -> TokenFile:
    """The same kind of text in nanoGPT's layout."""
    inputs, _ = text(samples).tensors
    path = directory / "train.bin"
    path.write_bytes(inputs.flatten().numpy().astype(np.uint16).tobytes() + b"\0\0")
    return TokenFile(path, context=CONTEXT)


def mappings(samples: int = 500) -> dict[str, Tensor]:
    """Columns with Hugging Face's names."""
    inputs, targets = text(samples).tensors
    return {"ids": inputs, "labels": targets}


def every_kind(directory: Path) -> dict[str, Any]:
    """One of each."""
    return {
        "tensors": TensorDataset(*text().tensors),
        "augmented": Noisy(),
        "token file": token_file(directory),
        "iterable": Plain(),
        "iterable with state": Stateful(),
        "loader": loader(),
        "mappings": mappings(),
    }
