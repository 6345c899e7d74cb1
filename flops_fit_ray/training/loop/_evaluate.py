"""The held-out loss: every model of a sweep on the same samples, in eval mode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flops_fit_ray.planning import Recipe
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.loop.checkpoint import preserve_mode
from flops_fit_ray.training.rng import RandomState
from flops_fit_ray.training.step.precision import autocast
from flops_fit_ray.training.user.losses import Objective, as_objective, outputs_of
from flops_fit_ray.training.user.parts import UserParts


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out loss and metrics of a model."""

    loss: float
    loss_stderr: float | None  # over batches; None for a single one
    metrics: Mapping[str, float]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    user: UserParts,
    recipe: Recipe,
    batches: Iterable[Batch],
    device: torch.device,
) -> Evaluation:
    """Return mean loss and metrics over held-out batches, and the standard error of the loss.

    1) L = sum_b (w_b / W) * L_b: batches are weighted by their targets that are not ignored.
    2) stderr = std_b(L_b) / sqrt(number of batches). It is the error of this sample of held-out data, which all models
       of a sweep share, and not that of a difference between two of them.

    Random states are restored, so that training does not depend on when it is evaluated.
    """
    measures = {"": user.objective, **{name: as_objective(f) for name, f in user.metrics.items()}}
    values: dict[str, list[Tensor]] = {name: [] for name in measures}
    weights: list[int] = []
    outside = RandomState.capture()
    RandomState.seed(0)
    try:
        with preserve_mode(model):
            model.eval()
            for batch in batches:
                weight = int(batch.loss_weight())
                if weight == 0:  # every target is ignored: its mean loss is 0 / 0
                    continue
                weights.append(weight)
                with autocast(recipe.precision, device):
                    for name, value in _measured(measures, model, batch.to(device)).items():
                        values[name].append(torch.as_tensor(value).detach().double())
    finally:
        RandomState.restore(outside)
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    means = {name: float((torch.stack(found).cpu() * shares).sum()) for name, found in values.items()}
    losses, count = torch.stack(values[""]).cpu(), len(weights)
    return Evaluation(
        loss=means.pop(""),
        loss_stderr=float(losses.std()) / math.sqrt(count) if count > 1 else None,
        metrics=means,
    )


def _measured(measures: Mapping[str, Objective], model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Compute every measure of one batch. Those that take outputs share one forward pass."""
    shared = None if all(m.takes_model for m in measures.values()) else outputs_of(model, batch)
    return {
        name: measure(model, batch) if measure.takes_model else measure.function(shared, batch.target)
        for name, measure in measures.items()
    }
