"""Who watches an experiment, and how it is looked after. Nothing here changes what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from flops_fit_ray.training.loop.meter import CurvePoint


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of training alone, since the sign of life before."""

    tokens_per_second: float
    mfu: float  # share of the device's peak


class Observer:
    """Told what happens, and does nothing about it. Whoever watches overrides what is of interest."""

    curve: list[CurvePoint]  # of the experiment so far; the loop keeps both up to date
    speed: Speed | None

    def __init__(self) -> None:
        self.curve = []
        self.speed = None

    def fetching(self) -> None:
        """A batch is being asked for; what blocks from now on is the user's data."""

    def fetched(self) -> None:
        """It came."""

    def progress(self, tokens_seen: int, train_loss: float | None) -> None:
        """About once a second. An InterruptedSweepError from here ends the experiment after a checkpoint."""

    def event(self, words: str, *, aloud: bool = False) -> None:
        """Something worth a line in the experiment's log; `aloud` where its owner should hear of it now."""


@dataclass(frozen=True, kw_only=True)
class SavePolicy:
    """How an experiment is looked after. Nothing in here changes what comes out."""

    store: CheckpointStore | None = None
    checkpoint_seconds: float | None = None
    checkpoint_steps: int | None = None
    keep_best: bool = False
    eval_every_tokens: int | None = None
    weights: Path | None = None  # where the final weights go
    trunk: CheckpointStore | None = None  # where this experiment leaves its trunk for others
    parent: CheckpointStore | None = None  # the trunk that it begins at
