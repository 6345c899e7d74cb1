"""What one experiment gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flops_fit_ray.training.loop.meter import CurvePoint


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one experiment gave."""

    tokens_seen: int  # D, counted in the batches
    loss: float  # held-out; where there is no held-out data, the smoothed training loss
    loss_kind: str  # which of the two
    loss_stderr: float | None
    train_loss: float  # mean over the last 5 % of the steps
    metrics: Mapping[str, float]
    seconds: float  # training, of all attempts that this result rests on, and the last evaluation
    train_seconds: float
    tokens_per_second: float
    flops_per_second: float
    mfu: float  # share of the device's peak
    peak_source: str
    peak_memory_bytes: int | None
    data_wait_share: float
    micro_batch_size: int  # what ran
    precision: str
    attention: str  # the kernel
    device: str
    workers: int  # that trained it together
    resumed_from: int | None  # step
    parent_step: int  # steps that a trunk of another experiment had taken; 0 from scratch
    tokens_executed: int  # D without the trunk's, counted in the batches
    seconds_executed: float  # `seconds` without the trunk's
    curve: list[CurvePoint] = field(repr=False)
