"""What runs on the made-up GPU, by `-p tests.made_up_gpu.plugin`: tests/test_made_up_gpu.py starts it.

Its numbers are the CPU's, so a training on it is held against the same on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.gpu import EXAMPLE, SMALL
from flops_fit_ray.engine._trainable import ExperimentTrainable, TrialContext
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.spec import read_spec
from flops_fit_ray.training.distributed.group import Group
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.observer import Observer
from flops_fit_ray.training.loop.outcome import Outcome
from flops_fit_ray.training.loop.save_policy import SavePolicy
from flops_fit_ray.training.loop.worker import Worker
from flops_fit_ray.training.preflight.check import check_plan
from flops_fit_ray.training.user.parts import load_user_parts
from tests.made_up_gpu.driver import NAME
from tests.made_up_gpu.tensors import MadeUpDevice
from tests.parts import Bigram, first_steps, planned, spec_of, text, user_parts_of
from tests.streams import every_kind
from tests.test_bring import GUESTS, plan_user_parts
from tests.test_checkpoint import RECIPES, experiment_of
from tests.test_trunks import chain_of, trunk_in

# Where the host may wait: to read losses for the curve, at the end, and in an evaluation
MAY_WAIT = ("loop.py:_read", "loop.py:outcome", "_evaluate.py:evaluate")


def nothing_waits(gpu: MadeUpDevice, *but: str) -> None:
    hidden = [wait for wait in gpu.waits if not wait.within(*MAY_WAIT, *but)]
    assert not hidden, [(wait.operation, wait.stack[-12:]) for wait in hidden[:3]]


@pytest.mark.parametrize(
    "name", [name for name in GUESTS if name != "MLP"]
)  # thousands of steps; others have its layers
def test_what_users_bring_trains_as_on_the_cpu_and_nothing_waits(name: str, tmp_path: Path, gpu: MadeUpDevice) -> None:
    model, data, loss = GUESTS[name]
    outcomes = list[Outcome]()
    for device in ("cpu", "cuda"):
        experiments, user, eval_samples = plan_user_parts(model, data(tmp_path), loss)
        assert not gpu.operations
        outcomes.append(train_experiment(experiments[0], user, eval_samples=eval_samples, device=device))
    on_cpu, on_gpu = outcomes
    assert gpu.operations and on_gpu.device == NAME and on_gpu.tokens_seen == on_cpu.tokens_seen
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=1e-5)
    nothing_waits(gpu)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_as_on_the_cpu_and_nothing_waits(recipe: str, tmp_path: Path, gpu: MadeUpDevice) -> None:
    experiment, user, eval_samples = experiment_of(text(), **RECIPES[recipe])
    experiment = first_steps(experiment, 30)
    on_cpu, on_gpu = (
        train_experiment(experiment, user, eval_samples=eval_samples, device=device) for device in ("cpu", "cuda")
    )
    half = experiment.recipe.precision != "fp32"  # which products are in half precision differs
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=1e-2 if half else 1e-5)
    nothing_waits(gpu)


def test_a_branch_begins_at_a_trunk_that_a_gpu_left(tmp_path: Path, gpu: MadeUpDevice) -> None:
    (*chain, _), user, eval_samples = chain_of(every_kind(tmp_path)["tensors"])
    for experiment in chain:
        parent = None if experiment.parent is None else trunk_in(tmp_path, experiment.parent)
        policy = SavePolicy(trunk=trunk_in(tmp_path, experiment.key), parent=parent, eval_every_tokens=1000)
        arguments: dict[str, Any] = {"eval_samples": eval_samples, "policy": policy}
        branch = train_experiment(experiment, user, **arguments, device="cuda")
        assert (branch.parent_step > 0) == (parent is not None)
    alone = replace(policy, parent=None)
    whole = train_experiment(chain[-1], user, eval_samples=eval_samples, device="cuda", policy=alone)
    assert branch.loss == whole.loss


@contextmanager
def one_of_eight_replicas() -> Iterator[Group]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    try:
        yield Group(0, 8)
    finally:
        dist.destroy_process_group()


class Spare(Bigram):
    """Has a weight that nobody uses."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.spare = torch.nn.Parameter(torch.zeros(width))


@pytest.mark.parametrize(("model", "waits"), [(Bigram, 0), (Spare, 1)])
def test_replicas_wait_for_a_gpu_only_where_one_lacks_a_gradient(
    model: type[Bigram], waits: int, gpu: MadeUpDevice
) -> None:
    experiment, user, _ = experiment_of(text(), batch_size=8)
    with one_of_eight_replicas() as group:
        worker = Worker(experiment, replace(user, model=model), torch.device("cuda"), group=group)
        gpu.waits.clear()
        worker.advance(3)
        assert len(gpu.waits) == 3 * waits
        assert all(wait.within("group.py:all_reduce_gradients") for wait in gpu.waits)
        assert (worker._model.spare.grad is None) if model is Spare else True
        gpu.waits.clear()
        seconds = worker.meter.all_reduces.read()
    assert 0 < seconds < worker.meter.train_seconds
    assert len(gpu.waits) == 3  # each event, at a read


def test_what_torch_keeps_of_a_gpu_is_given_back_where_trials_share_it(gpu: MadeUpDevice) -> None:
    for resources, emptied in (({"gpu": 1.0}, 0), ({"gpu": 0.5}, 1)):
        trial = object.__new__(ExperimentTrainable)
        trial._context = cast(TrialContext, SimpleNamespace(slots=Slots(resources=resources, count=2)))
        trial._settled = True
        trial._clear_up()
        assert gpu.emptied == emptied


class Listening(Observer):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def event(self, message: str, *, level: Literal["info", "warning"] = "info") -> None:
        self.said.append(message)


def test_the_text_example_trains_as_one_graph(gpu: MadeUpDevice) -> None:
    few = [line for line in SMALL if not line.startswith(("train.precision", "train.cuda_graph", "resources"))]
    spec = read_spec(EXAMPLE / "sweep.yaml", few)
    user, said = load_user_parts(spec, EXAMPLE), Listening()
    experiment = planned(spec, user).experiments[0]
    short = first_steps(experiment, 8)
    assert short.recipe.cuda_graph and short.recipe.precision == "bf16"
    outcome = train_experiment(short, user, eval_samples=8, device="cuda", observer=said)
    assert not said.said and outcome.loss < 5.6  # ln 256 = 5.55
    nothing_waits(gpu)


def test_a_tensor_that_a_model_left_on_the_cpu_is_named(gpu: MadeUpDevice) -> None:
    class Left(Bigram):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.scale = torch.ones(32)  # no buffer, so it does not move with the model

        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * self.scale

    experiment, user, eval_samples = experiment_of(text())
    with pytest.raises(RuntimeError, match="all tensors to be on the same device"):
        train_experiment(experiment, replace(user, model=Left), eval_samples=eval_samples, device="cuda")


def test_a_sweep_is_checked_on_a_gpu(gpu: MadeUpDevice) -> None:
    spec = spec_of()
    user = user_parts_of(spec)
    report = check_plan(planned(spec, user), user, device="cuda")
    assert report.device == NAME and report.verdict != "FAIL", str(report)
