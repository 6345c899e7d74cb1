"""Handwritten digits of scikit-learn (1,797 of 8 x 8 pixels), distorted anew each time that one is seen.

A sample of the training set is a digit turned, shifted and scaled a little with noise on top, fixed by its index. So
200,000 samples are there, and none is repeated. Every fifth digit is held out, with five distortions of its own.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset


def train(samples: int = 200_000) -> TensorDataset:
    return _distorted(held_out=False, samples=samples, seed=0)


def held_out(samples: int = 1_800) -> TensorDataset:
    return _distorted(held_out=True, samples=samples, seed=1)


def _distorted(*, held_out: bool, samples: int, seed: int) -> TensorDataset:
    """Pictures (samples, 1, 8, 8) with brightness about 0 to 1, and digits (samples)."""
    pictures, digits = load_digits(return_X_y=True)
    chosen = (torch.arange(len(digits)) % 5 == 0) == held_out
    x = torch.tensor(pictures, dtype=torch.float32)[chosen].view(-1, 1, 8, 8) / 16
    y = torch.tensor(digits)[chosen]
    which = torch.arange(samples) % len(x)
    return TensorDataset(distort(x[which], torch.Generator().manual_seed(seed)), y[which])


def distort(x: Tensor, random: torch.Generator) -> Tensor:
    """Turn by up to 20 degrees, scale by up to 15 %, shift by up to a pixel, and add noise."""
    angle, scale, dx, dy = (2 * torch.rand(4, len(x), generator=random) - 1) * torch.tensor(
        [[0.35], [0.15], [0.25], [0.25]]
    )
    cos, sin = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
    turns = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)  # (samples, 2, 3)
    grid = functional.affine_grid(turns, list(x.shape), align_corners=False)
    moved = functional.grid_sample(x, grid, align_corners=False)
    return moved + 0.1 * torch.randn(moved.shape, generator=random)
