"""Pictures of 8 x 8 pixels with three soft spots each, as many as a diffusion model can use."""

import torch
from torch import Tensor


def train(samples: int = 400_000) -> Tensor:
    return spots(samples, seed=0)


def held_out(samples: int = 4_000) -> Tensor:
    return spots(samples, seed=1)


def spots(samples: int, seed: int) -> Tensor:
    """Pictures (samples, 64) with mean about 0 and variance about 1."""
    random = torch.Generator().manual_seed(seed)
    places = 7 * torch.rand(samples, 3, 2, generator=random)
    widths = 0.5 + 1.5 * torch.rand(samples, 3, 1, 1, generator=random)
    axis = torch.arange(8.0)
    x, y = (axis - places[..., :1]) ** 2, (axis - places[..., 1:]) ** 2  # (samples, 3, 8) each
    pictures = torch.exp(-(x[..., :, None] + y[..., None, :]) / (2 * widths**2)).sum(1).flatten(1)
    return (pictures - 0.45) / 0.45
