"""The save policy of an experiment: what is saved, when and where, and what ends it. It does not change the result."""

from __future__ import annotations

from dataclasses import dataclass

from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.training.loop.checkpoint import CheckpointStore


@dataclass(frozen=True, kw_only=True)
class SavePolicy:
    """Checkpoints, evaluations on the way and final weights of one experiment."""

    store: CheckpointStore | None = None
    checkpoint_seconds: float | None = None
    checkpoint_steps: int | None = None
    keep_best: bool = False
    stop_diverged: bool = True  # end an experiment whose loss explodes, though it is finite
    eval_every_tokens: int | None = None
    weights: StoragePath | None = None  # where the final weights go
    trunk: CheckpointStore | None = None  # where this experiment leaves its trunk for others
    parent: CheckpointStore | None = None  # the trunk that it starts from
