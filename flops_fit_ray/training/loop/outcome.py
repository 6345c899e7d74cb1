"""The outcome of training one experiment."""

from __future__ import annotations

from dataclasses import dataclass, field

from flops_fit_ray.planning.training_metrics import TrainingMetrics
from flops_fit_ray.training.loop.meter import CurvePoint


@dataclass(frozen=True, kw_only=True)
class Outcome(TrainingMetrics):
    """The measurements of a training, and the curve along it."""

    train_seconds: float  # of `seconds`, the training alone
    curve: list[CurvePoint] = field(repr=False)
