"""Everything that draws random numbers in this process, as one value."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


class RandomState:
    """The generators of python, numpy, torch and every CUDA device that was used.

    A state is made of numbers, tuples and tensors alone, so that it can be loaded without executing anything.
    """

    @staticmethod
    def seed(seed: int) -> None:
        """Start all of them from one seed."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    @staticmethod
    def capture(*, devices: bool = True) -> dict[str, Any]:
        """The states now; without `devices` only those that the CPU draws from."""
        kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        state = {
            "python": random.getstate(),
            "numpy": (str(kind), torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, cached),
            "torch": torch.get_rng_state(),
        }
        if devices and torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch leaves it untyped
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    @staticmethod
    def restore(state: dict[str, Any]) -> None:
        """Go on where the states were captured."""
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        kind, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state_all(state["cuda"])
