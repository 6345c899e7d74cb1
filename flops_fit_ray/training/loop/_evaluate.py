"""The held-out loss: every model of a sweep on the same samples, in eval mode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flops_fit_ray.planning import Average, Recipe
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.loop.checkpoint import preserve_mode
from flops_fit_ray.training.rng import RandomState
from flops_fit_ray.training.step.precision import autocast
from flops_fit_ray.training.user.losses import Objective, mean_of, outputs_of, sum_and_count
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

    1) L = sum_b (w_b / W) * L_b, where w_b is the weight of a batch in what the loss averages over.
    2) A loss that is a sum S_b over n_b samples: L_b = S_b * B / n_b with B = batch_size, and w_b = n_b.
    3) stderr = std_b(L_b) / sqrt(number of batches). It is the error of this sample of held-out data, which all models
       of a sweep share, and not that of a difference between two of them.

    Random states are restored, so that training does not depend on when it is evaluated.
    """
    measures = {"": user.objective, **user.metric_objectives}
    values: dict[str, list[Tensor]] = {name: [] for name in measures}
    weights: dict[str, list[float]] = {name: [] for name in measures}
    outside = RandomState.capture()
    RandomState.seed(0)
    try:
        with preserve_mode(model):
            model.eval()
            for batch in batches:
                shares = {name: float(batch.loss_weight(m.average)) for name, m in measures.items()}
                if not any(shares.values()):  # every target is ignored: its mean loss is 0 / 0
                    continue
                with autocast(recipe.precision, device):
                    found = _measured(measures, model, batch.to(device))
                for name, share in shares.items():
                    value, weight = _of_batch(found[name], measures[name].average, share, recipe.batch_size)
                    if weight:
                        values[name].append(value)
                        weights[name].append(weight)
    finally:
        RandomState.restore(outside)
    means = {name: _mean(found, weights[name]) for name, found in values.items()}
    count = len(values[""])
    return Evaluation(
        loss=means.pop(""),
        loss_stderr=float(torch.stack(values[""]).cpu().std()) / math.sqrt(count) if count > 1 else None,
        metrics=means,
    )


def _of_batch(value: Any, average: Average, weight: float, batch_size: int) -> tuple[Tensor, float]:
    """Return the value of a batch and its weight in the mean over all."""
    if (parts := sum_and_count(value)) is not None:
        weight = float(parts[1])
    found = torch.as_tensor(mean_of(value)).detach().double()
    return (found * batch_size / weight if average.over == "sum" else found), weight


def _mean(values: Sequence[Tensor], weights: Sequence[float]) -> float:
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    return float((torch.stack(list(values)).cpu() * shares).sum())


def _measured(measures: Mapping[str, Objective], model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Compute every measure of one batch. Those that take outputs share one forward pass."""
    shared = None if all(m.takes_model for m in measures.values()) else outputs_of(model, batch)
    return {
        name: measure.evaluate(model, batch) if measure.takes_model else measure.function(shared, batch.target)
        for name, measure in measures.items()
    }
