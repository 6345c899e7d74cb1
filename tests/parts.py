"""Small models and data that the tests bring, as a user would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from flops_fit_ray.planning import Experiment, Plan, make_plan
from flops_fit_ray.spec import SweepSpec, make_spec
from flops_fit_ray.training.preflight.model_size import measure_sizes
from flops_fit_ray.training.user.losses import cross_entropy, mse
from flops_fit_ray.training.user.parts import UserParts, make_user_parts

INPUTS = 512
BIGRAM = {"target": "tests.parts:Bigram", "size_param": "width", "sizes": [4, 8, 16]}  # a spec's model section


class TruncatedRegression(nn.Module):
    """Linear regression on the first `features` inputs: N = features, and a known optimum.

    It asks for the gradient of its inputs too, as a layer within a network does: then a sample costs 6·N FLOPs.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.linear = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x[:, : self.features].detach().requires_grad_())
        return out


class Mlp(nn.Module):
    """Two layers with dropout, so that eval mode and the random state both matter."""

    def __init__(self, width: int, inputs: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Bigram(nn.Module):
    """A lookup table and a head, tied or not."""

    def __init__(self, width: int, vocab: int = 32, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab, width)
        self.head = nn.Linear(width, vocab, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(ids))
        return out


class Pairs(Dataset[Any]):
    """A map-style dataset that gives one sample at a time."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def power_law_regression(samples: int = 10_000) -> TensorDataset:
    """x_j ~ N(0, 1/j), y = sum of x_j / sqrt(j): then N_opt ~ C^(1/2) for `Truncated` under one-pass SGD."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.arange(1, INPUTS + 1) ** -0.5
    x = torch.randn(samples, INPUTS, generator=generator) * scale
    return TensorDataset(x, x @ scale[:, None])


def regression(samples: int = 2000, inputs: int = 8) -> TensorDataset:
    """A smooth function of a few inputs."""
    x = torch.rand(samples, inputs, generator=torch.Generator().manual_seed(2))
    return TensorDataset(x, torch.sin(3 * x).sum(dim=1, keepdim=True))


def text(samples: int = 500, context: int = 16, vocab: int = 32) -> TensorDataset:
    """Token ids in which the next one depends on the one before."""
    ids = torch.randint(vocab, (samples, context + 1), generator=torch.Generator().manual_seed(3))
    ids[:, 1::2] = (ids[:, 0:-1:2] * 7 + 3) % vocab
    return TensorDataset(ids[:, :-1], ids[:, 1:])


def spec_of(**changes: Any) -> SweepSpec:
    """A valid spec for `Mlp`, with sections replaced by `changes`."""
    content: dict[str, Any] = {
        "model": {"target": "tests.parts:Mlp", "size_param": "width", "sizes": [4, 8, 16]},
        "data": {"train": "tests.parts:regression"},
        "loss": "mse",
        "budgets": [1e5, 2e5],
        "train": {"batch_size": 8, "lr": 1e-2},
        "resources_per_trial": {"cpu": 1},
        "fit": {"draws": 200},  # a test of what intervals cover asks for more
    }
    return make_spec({**content, **changes}, "test")


def user_parts_of(spec: SweepSpec, model: Any = Mlp, train: Any = None, loss: Any = None) -> UserParts:
    """The parts that go with `spec_of`."""
    return make_user_parts(
        model=model,
        model_kwargs=spec.model.kwargs,
        loss=loss or (cross_entropy if spec.loss == "cross_entropy" else mse),
        train=regression() if train is None else train,
        held_out=None,
        data=spec.data,
    )


def first_steps(experiment: Experiment, steps: int) -> Experiment:
    """A shorter experiment, under the same key."""
    return replace(experiment, steps=steps, tokens=steps * experiment.tokens // experiment.steps)


def planned(spec: SweepSpec, user: UserParts) -> Plan:
    """The plan of a spec with these parts."""
    return make_plan(spec, measure_sizes(spec, user))
