"""A denoiser of pictures, and the loss of a diffusion model (Ho et al. 2020, equation 14) of `(model, batch)`."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Denoiser(nn.Module):
    """Says which noise is in a picture of 64 pixels at a time t between 0 and 1.

    The noisy picture itself is passed on by its share of noise (as in Karras et al. 2022, equation 7), so that layers
    narrower than the picture need to know what the picture is like and not to carry its noise.
    """

    def __init__(self, width: int, layers: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(64 + 16, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))
        self.last = nn.Linear(width, 64)

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        waves = t[:, None] * math.pi * 2.0 ** torch.arange(8, device=t.device)
        x = functional.silu(self.first(torch.cat([noisy, waves.sin(), waves.cos()], 1)))
        for layer in self.layers:
            x = x + functional.silu(layer(x))
        noise: Tensor = self.last(x) + (t[:, None] * math.pi / 2).sin() * noisy
        return noise


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Mix each picture with noise at a random time (a cosine schedule), and ask the model for the noise."""
    t, noise = torch.rand(len(batch), device=batch.device), torch.randn_like(batch)
    angle = t[:, None] * math.pi / 2
    return functional.mse_loss(model(angle.cos() * batch + angle.sin() * noise, t), noise)
