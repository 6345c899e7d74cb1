"""The held-out loss: every model of a sweep on the same samples, in eval mode."""

from __future__ import annotations

import math

import torch
from torch import nn

from flops_fit_ray.training.data import fetch
from flops_fit_ray.training.guest import Guest


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    guest: Guest,
    *,
    num_samples: int,
    batch_size: int,
    tokens_per_sample: int | None,
    device: torch.device,
) -> tuple[float, float | None]:
    """Mean loss over the first `num_samples` held-out samples, and its standard error.

    The mean weighs batches by their tokens. The standard error is that of the batch means, None for one batch; it says
    how well this sample of held-out data stands for all, and is shared by all models of a sweep.
    """
    model.eval()
    losses: list[torch.Tensor] = []
    weights: list[int] = []
    for start in range(0, num_samples, batch_size):
        batch = fetch(guest.eval_data, range(start, min(start + batch_size, num_samples)))
        weights.append(batch.num_tokens(tokens_per_sample))
        batch = batch.to(device)
        losses.append(guest.loss(model(*batch.inputs), batch.target).detach())
    model.train()
    values = torch.stack([loss.double().cpu() for loss in losses])
    weight = torch.tensor(weights, dtype=torch.float64)
    mean = float((values * weight).sum() / weight.sum())
    count = len(losses)
    return mean, float(values.std()) / math.sqrt(count) if count > 1 else None
