"""State of the user's code that no state_dict holds: trunks do not lose it, and experiments do not hand it on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.save_policy import SavePolicy
from flops_fit_ray.training.user.parts import UserParts
from tests.parts import planned, regression, spec_of, user_parts_of
from tests.test_checkpoint import Killer

STEPS = 0  # of all models of this process
SEEN = {"steps": [0]}


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.relu(self.a(x))) * self.share()
        return out

    def share(self) -> float:
        return 1.0


class Counting(Net):
    """Anneals by a counter, which is in no state_dict."""

    steps = 0

    def share(self) -> float:
        self.steps += self.training
        return min(1.0, self.steps / 40)


class Averaging(Net):
    mean: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.mean())
        return super().forward(x) - self.mean


class Kept(Averaging):
    """As it should be: the same, in the state_dict."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("mean", torch.zeros(()))


class Harmless(Net):
    """Keeps its last outputs, with their graph, a log and a count that nothing reads."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.log: list[int] = []
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        self.log.append(len(x))
        return self.last


class Global(Net):
    def share(self) -> float:
        global STEPS
        STEPS += self.training
        SEEN["steps"][0] += self.training
        return min(1.0, (STEPS + SEEN["steps"][0]) / 80)


def chain(model: Any) -> tuple[list[Experiment], UserParts, int]:
    """Two experiments of which the second begins at the first one's trunk."""
    spec = spec_of(
        model={"target": "tests.parts:Mlp", "size_param": "width", "sizes": [4, 8, 16]},
        budgets=[1e5, 2e5],
        train={"batch_size": 8, "lr": 1e-2, "warmup_tokens": 0},
    )
    user = user_parts_of(spec, model=model, train=regression())
    plan = planned(spec, user)
    pair = [e for e in plan.experiments if e.size == 8]
    assert len(pair) == 2 and pair[1].parent == pair[0].key
    return pair, user, plan.measurements.data.eval_samples


def branched(model: Any, directory: Path) -> tuple[float, float, list[str]]:
    """The loss of the second from scratch and from the first one's trunk, and what was said."""
    (first, second), user, samples = chain(model)
    scratch = train_experiment(second.from_scratch(), user, eval_samples=samples).loss
    observer = Killer()
    trunk = CheckpointStore(directory / "trunk", key=first.key, keep=1)
    train_experiment(first, user, eval_samples=samples, policy=SavePolicy(trunk=trunk), observer=observer)
    found = train_experiment(second, user, eval_samples=samples, policy=SavePolicy(parent=trunk), observer=observer)
    assert (found.parent_step > 0) == bool(trunk.steps())
    return scratch, found.loss, observer.events


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Counting, "steps"),
        (Averaging, "mean"),
        (Global, "globals of its module"),
        (Kept, ""),
        (Harmless, ""),
        (Net, ""),
    ],
)
def test_a_trunk_that_would_lose_state_is_not_left(model: Any, named: str, tmp_path: Path) -> None:
    scratch, found, events = branched(model, tmp_path)
    assert found == scratch
    said = [e for e in events if "no trunk is left: the model keeps state outside of its state_dict" in e]
    assert said == [] if not named else f"({named})" in said[0] and said[0].startswith("ALOUD")


def test_looking_for_lost_state_changes_no_bit(tmp_path: Path) -> None:
    for model in (Counting, Averaging, Global, Harmless):
        (first, _), user, samples = chain(model)
        plain = train_experiment(first, user, eval_samples=samples)
        policy = SavePolicy(
            store=CheckpointStore(tmp_path / model.__name__, key=first.key), checkpoint_steps=5,
            trunk=CheckpointStore(tmp_path / "trunk", key=first.key),
        )  # fmt: skip
        observer = Killer()
        watched = train_experiment(first, user, eval_samples=samples, policy=policy, observer=observer)
        assert [p.train_loss for p in watched.curve] == [p.train_loss for p in plain.curve]
        assert any("resumed from a checkpoint it gives other bits" in e for e in observer.events) == (
            model is not Harmless
        )


def test_experiments_of_one_process_begin_with_the_globals_of_a_new_one() -> None:
    (first, _), user, samples = chain(Global)
    runs = [train_experiment(first, replace(user), eval_samples=samples).loss for _ in range(2)]
    assert runs[0] == runs[1] and STEPS == SEEN["steps"][0] > 10
