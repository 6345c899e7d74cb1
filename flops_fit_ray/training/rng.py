"""The random state of this process: Python, numpy, torch and CUDA as one value."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


class RandomState:
    """The global generators of Python, numpy, torch and all CUDA devices.

    A captured state holds numbers, tuples and tensors only, so that `torch.load(weights_only=True)` reads it.
    """

    @staticmethod
    def seed(seed: int) -> None:
        """Seed all generators."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        if torch.accelerator.current_accelerator() is None:
            torch.default_generator.manual_seed(seed)  # the other formats the stack for each device that could come
        else:
            torch.manual_seed(seed)

    @staticmethod
    def capture(*, devices: bool = True) -> dict[str, Any]:
        """Return the current state; without `devices`, of the CPU's generators only."""
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
        """Set all generators to a captured state."""
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state_all(state["cuda"])
