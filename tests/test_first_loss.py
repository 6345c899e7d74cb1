"""A worker whose model or loss is not the one of the plan is found out by the loss before the first step."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flops_fit_ray.engine.loaders import ObjectLoader, comparing_loader
from flops_fit_ray.errors import DataDiffersError
from flops_fit_ray.planning import FirstLoss
from flops_fit_ray.training.preflight.model_size import measure_sizes
from flops_fit_ray.training.user.first_loss import MAX_BYTES, compare_first_loss, first_loss
from flops_fit_ray.training.user.parts import UserParts
from tests.parts import Mlp, regression, spec_of, user_parts_of


def user_of(**parts: Any) -> UserParts:
    return replace(user_parts_of(spec_of(), train=regression()), **parts)


def found_in(user: UserParts) -> FirstLoss | None:
    return measure_sizes(spec_of(), user).first_loss


class FromEnvironment(Mlp):
    """A model that is another one where a variable is not set."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.scale = float(os.environ.get("SCALE", "1"))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Noisy(Mlp):
    """Dropout and a loss that draws: the same with the same seed."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.drop(x) + torch.randn_like(x))


class OwnEntropy(Mlp):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        for p in self.parameters():
            nn.init.normal_(p, generator=torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "big")))


def test_the_same_model_and_loss_have_the_same_first_loss() -> None:
    for model in (Mlp, FromEnvironment, Noisy):
        user = user_of(model=model)
        planned = found_in(user)
        assert planned is not None and planned.loss > 0
        before = torch.get_rng_state()
        compare_first_loss(user, planned)
        compare_first_loss(user, replace(planned, host="another"))
        assert torch.equal(torch.get_rng_state(), before)
    assert found_in(user_of(model=OwnEntropy)) is None  # no process makes it a second time


def other_initialisation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(nn.Linear, "reset_parameters", lambda self: [nn.init.normal_(p, std=0.1) for p in self.parameters()])


def a_broken_library(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(functional, "relu", lambda x, inplace=False: x / 0)


def a_variable(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("SCALE", "1.01")


def another_loss(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(functional, "mse_loss", functional.l1_loss)


@pytest.mark.parametrize("change", [other_initialisation, a_broken_library, a_variable, another_loss])
def test_what_the_plan_did_not_know_of_is_found_out(
    change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    user = user_of(model=FromEnvironment)
    measured = measure_sizes(spec_of(), user)
    loader = comparing_loader(ObjectLoader(user), spec_of(), measured)
    assert loader().model is not None  # as things are
    change(monkeypatch)
    with pytest.raises(
        DataDiffersError, match=r"another model or loss than the plan: .* model of size 4 has a loss of"
    ):
        loader()


def test_other_processors_may_round_and_no_more() -> None:
    planned = FirstLoss(size=8, kwargs={}, batch=None, loss=5.5452, rounding=1e-6, host="here")
    assert planned.difference(5.5452 * (1 + 5e-6), "here") is None
    assert planned.difference(5.5452 * (1 + 5e-4), "here") is not None
    assert planned.difference(5.5452 * (1 + 5e-4), "there") is None
    assert planned.difference(5.5452 * (1 + 2e-3), "there") is not None
    assert replace(planned, rounding=4 * 2**-8).difference(5.55, "here") is None  # bfloat16
    assert replace(planned, loss=0.0).difference(0.0, "there") is None


def test_samples_that_are_too_large_to_travel_are_not_sent() -> None:
    wide = torch.zeros(2, MAX_BYTES // 4)
    user = user_of()
    measured = measure_sizes(spec_of(), user)
    assert measured.first_loss is not None
    batch = measured.first_loss.batch
    assert first_loss(user, measured.sizes[0], batch) is not None
    assert first_loss(user, measured.sizes[0], replace(batch, content=(wide, wide))) is None
