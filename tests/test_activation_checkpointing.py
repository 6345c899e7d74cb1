"""Activation checkpointing and Adam's epsilon: same bits for less memory, and keys that stay."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.step._activation_checkpointing import checkpoint_activations
from flops_fit_ray.training.step.stepper import Stepper
from flops_fit_ray.training.user.layers import blocks_of
from flops_fit_ray.training.user.parts import UserParts
from tests.parts import BIGRAM, Bigram, planned, spec_of, text, user_parts_of


class Block(nn.Module):
    """Whatever may differ in a second run: dropout, running statistics, a counter, random numbers of Python's."""

    count: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.register_buffer("count", torch.zeros(()))
        self.drop = nn.Dropout(0.1)

    def forward(self, *, x: Tensor) -> Tensor:
        self.count += 1  # a block after the other is less and less of the whole
        normed = self.norm(x.flatten(0, 1)).view_as(x)
        kept = 1.0 if random.random() < 0.8 else 0.5
        out: Tensor = x + kept / self.count * self.drop(self.outer(self.inner(normed).relu()))
        return out


class Blocks(nn.Module):
    """A table, blocks, a head."""

    def __init__(self, width: int, depth: int = 3) -> None:
        super().__init__()
        self.table = nn.Embedding(32, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 32)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.table(ids)
        for block in self.blocks:
            x = block(x=x)
        out: Tensor = self.head(x)
        return out


def experiment_of(**train: Any) -> tuple[Experiment, UserParts]:
    spec = spec_of(
        model=BIGRAM,
        data={"train": "tests.parts:text", "max_epochs": 60},
        loss="cross_entropy",
        budgets=[4e6, 8e6],
        train={"batch_size": 8, "lr": 1e-2, **train},
    )
    user = user_parts_of(spec, model=Blocks, train=text())
    found = planned(spec, user).experiments[0]
    return replace(found, steps=8, tokens=8 * found.tokens // found.steps), user


@pytest.mark.parametrize("train", [{}, {"precision": "bf16", "micro_batch_size": 3}], ids=["fp32", "bf16 in parts"])
def test_blocks_that_run_twice_give_the_same_bits_flops_and_key(train: dict[str, Any]) -> None:
    (plain, user), (twice, _) = experiment_of(**train), experiment_of(**train, activation_checkpointing=True)
    assert twice.recipe.activation_checkpointing and not plain.recipe.activation_checkpointing
    assert (twice.key, twice.flops) == (plain.key, plain.flops)
    first, second = (train_experiment(e, user, eval_samples=24) for e in (plain, twice))
    assert second.loss == first.loss and second.loss_stderr == first.loss_stderr
    assert [(p.train_loss, p.grad_norm) for p in second.curve] == [(p.train_loss, p.grad_norm) for p in first.curve]


def test_memory_falls_to_one_block_and_the_inputs_of_all() -> None:
    """Counted by hand: a block keeps what its norm and its two matrices are given, (1 + 1 + 4) · width a position."""
    from torch.distributed._tools.mem_tracker import MemTracker  # brings torch's compiler, which takes 2 s

    positions, width, depth = 16 * 24, 64, 12
    ids = torch.randint(32, (16, 24))

    def peak(*, checkpointed: bool) -> int:
        model = Blocks(width, depth)
        if checkpointed:
            checkpoint_activations(model)
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            model(ids).sum().backward()
        (of_cpu,) = tracker.get_tracker_snapshot("peak").values()
        return sum(size for kind, size in of_cpu.items() if getattr(kind, "value", kind) in ("Activation", "Temp"))

    kept, again = peak(checkpointed=False), peak(checkpointed=True)
    inputs, block = depth * 4 * positions * width, 6 * 4 * positions * width
    assert kept > depth * block
    assert again < inputs + 2 * block


def test_only_blocks_run_twice_and_only_to_train() -> None:
    calls = list[nn.Module]()
    model = Blocks(4)
    for module in (model.head, *model.blocks):
        inner = module.inner if isinstance(module, Block) else module
        inner.register_forward_hook(lambda module, *_: calls.append(module))
    checkpoint_activations(model)
    names = list(model.state_dict())
    ids = torch.randint(32, (2, 4))
    model(ids).sum().backward()
    assert len(calls) == 2 * len(model.blocks) + 1
    calls.clear()
    with torch.no_grad():
        model(ids)
    model.eval()(ids)
    assert len(calls) == 2 * (len(model.blocks) + 1)
    assert list(model.state_dict()) == names == list(Blocks(4).state_dict())
    assert blocks_of(model) == list(model.blocks)


def test_a_model_without_blocks_is_refused_before_anything_runs() -> None:
    spec = spec_of(
        model=BIGRAM, data={"train": "tests.parts:text"}, loss="cross_entropy", budgets=[4e6, 8e6],
        train={"batch_size": 8, "lr": 1e-2, "activation_checkpointing": True},
    )  # fmt: skip
    with pytest.raises(SpecError, match="train.activation_checkpointing: Bigram has no blocks"):
        planned(spec, user_parts_of(spec, model=Bigram, train=text()))
    with pytest.raises(SpecError, match="set cuda_graph or activation_checkpointing to false"):
        spec_of(train={"batch_size": 8, "lr": 1e-2, "activation_checkpointing": True, "cuda_graph": True})


def test_epsilon_is_adams_and_in_the_key_where_it_is_not_the_usual_one() -> None:
    plain, user = experiment_of()
    assert experiment_of(eps=1e-8)[0].key == plain.key
    other, _ = experiment_of(eps=0.5)
    assert other.key != plain.key and other.recipe.eps == 0.5
    # With betas (0, 0) a step is lr · g / (|g| + eps)
    recipe = replace(other.recipe, betas=(0.0, 0.0), grad_clip=None, weight_decay=0.0, schedule="constant")
    model = Blocks(4)
    stepper = Stepper(model, user, recipe, 10, torch.device("cpu"))
    before, grad = model.head.weight.detach().clone(), torch.full_like(model.head.weight, 0.25)
    model.head.weight.grad = grad
    stepper.set_lr(5)
    stepper.optimizer.step()
    torch.testing.assert_close(before - model.head.weight, recipe.lr * grad / (grad + 0.5))
