"""A task with a known compute-optimal exponent, in the form of a user's: model, data and loss.

Inputs are x_j ~ N(0, j^-2a), the target is sum_j j^-a·x_j over `TERMS` coordinates, and the model sees the first
`features` of them: N = features. Modes beyond N are not seen, modes beyond D^(1/2a) are not learned by one-pass SGD;
the two balance at N_opt ~ C^(1/(1 + 2a)) (Lin et al. 2024, section 4).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

TERMS = 4096
SEEN = 512  # coordinates that any model may see; the others reach the target as one Gaussian


class TruncatedRegression(nn.Module):
    """Linear regression on the first `features` coordinates, initialised to zero."""

    def __init__(self, features: int, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.linear = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return predictions (batch, 1)."""
        out: Tensor = self.linear(x[:, : self.linear.in_features])
        return out


def reference_risk(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean squared error in training; in eval mode the exact risk, which needs no data."""
    inner = model
    x, y = batch
    if model.training or not isinstance(inner, TruncatedRegression):
        return torch.mean((model(x) - y) ** 2)
    j = torch.arange(1, TERMS + 1, dtype=torch.float64)
    weights = inner.linear.weight[0].double()
    wrong = j**-inner.alpha
    wrong[: len(weights)] -= weights
    return torch.sum(j ** (-2 * inner.alpha) * wrong**2)


def reference_data(samples: int, alpha: float, seed: int = 0) -> TensorDataset:
    """Draw `samples` pairs (x, y)."""
    generator = torch.Generator().manual_seed(seed)
    j = torch.arange(1, TERMS + 1, dtype=torch.float64)
    scale = j**-alpha
    x = torch.randn(samples, SEEN, generator=generator) * scale[:SEEN].float()
    rest = torch.randn(samples, 1, generator=generator) * float(torch.sum(scale[SEEN:] ** 4).sqrt())
    return TensorDataset(x, x @ scale[:SEEN, None].float() + rest)
