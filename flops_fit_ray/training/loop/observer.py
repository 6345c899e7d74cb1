"""Callbacks of the training loop. An observer does not change the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flops_fit_ray.training.loop.meter import CurvePoint


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Training speed since the previous progress report; evaluation and saving not counted."""

    tokens_per_second: float
    mfu: float | None  # share of the device's peak; None where it is not known


class Observer:
    """Callbacks that do nothing; a subclass overrides those it needs."""

    curve: list[CurvePoint]  # of the experiment so far; the loop keeps both up to date
    speed: Speed | None

    def __init__(self) -> None:
        self.curve = []
        self.speed = None

    def fetching(self) -> None:
        """Begin to wait for a batch: until `fetched`, a hang is the user's data."""

    def fetched(self) -> None:
        """End the wait for a batch."""

    def energy(self, workers: int) -> float | None:
        """Return the joules drawn by the GPUs of all workers since the first call; None where it is not known."""
        return None

    def progress(self, tokens_seen: int, train_loss: float | None) -> None:
        """Report progress, about once a second.

        Raises:
            InterruptedSweepError: to stop the experiment; it saves a checkpoint first.
        """

    def event(self, message: str, *, level: Literal["info", "warning"] = "info") -> None:
        """Log a line for the experiment; a warning is shown to the user at once."""
