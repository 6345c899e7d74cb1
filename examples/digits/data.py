"""Handwritten digits of scikit-learn (1,797 of 8 x 8 pixels), distorted anew each time that one is seen.

A sample is a digit turned, shifted and scaled a little with noise on top, fixed by its index: 400,000 of them, none
seen twice. The held-out ones are other distortions of the same digits: with digits that no model has seen the loss
stays where it is from a few thousand samples on, as 1,797 are too few to learn what others write like.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset


def train(samples: int = 400_000) -> TensorDataset:
    return distorted_digits(samples, seed=0)


def held_out(samples: int = 2_000) -> TensorDataset:
    return distorted_digits(samples, seed=1)


def distorted_digits(samples: int, seed: int) -> TensorDataset:
    """Pictures (samples, 1, 8, 8) with brightness about 0 to 1, and digits (samples)."""
    random = torch.Generator().manual_seed(seed)
    pictures, digits = load_digits(return_X_y=True)
    which = torch.randint(len(digits), (samples,), generator=random)
    x = torch.tensor(pictures, dtype=torch.float32).view(-1, 1, 8, 8)[which] / 16
    return TensorDataset(distort(x, random), torch.tensor(digits)[which])


def distort(x: Tensor, random: torch.Generator) -> Tensor:
    """Turn by up to 20 degrees, scale by up to 15 %, shift by up to a pixel, and add noise."""
    most = torch.tensor([[0.35], [0.15], [0.25], [0.25]])
    angle, scale, dx, dy = (2 * torch.rand(4, len(x), generator=random) - 1) * most
    cos, sin = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
    turns = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)  # (samples, 2, 3)
    grid = functional.affine_grid(turns, list(x.shape), align_corners=False)
    moved = functional.grid_sample(x, grid, align_corners=False)
    return moved + 0.1 * torch.randn(moved.shape, generator=random)
