"""Data of the processes that train: the plan's, or the sweep ends."""

import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import RayTaskError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from flops_fit_ray import find_optimal
from flops_fit_ray.engine._team import _worker_error
from flops_fit_ray.engine.cluster import JOB_CONFIG, _worker_environment
from flops_fit_ray.errors import DataDiffersError, SpecError
from flops_fit_ray.planning import ValueProbe
from flops_fit_ray.training.data import PreparedData, as_data, compare_data, probe_of, sample_data
from tests.parts import Mlp, Pairs, regression, text
from tests.streams import Noisy, Plain


def prepared(train: Any, held_out: Any = None) -> PreparedData:
    taken = None if held_out is None else as_data(held_out, "data.eval")
    return PreparedData(train=as_data(train, "data.train"), held_out=taken, source="data.eval")


def compare(planned: PreparedData, here: PreparedData) -> str:
    """What a worker with the data `here` says; empty where they are the plan's."""
    train, held_out = (None if d is None else sample_data(d) for d in (planned.train, planned.held_out))
    assert train is not None
    random_state = torch.get_rng_state()
    try:
        compare_data(here, pickle.loads(pickle.dumps(probe_of(train, held_out, planned.source))), seconds=60)  # noqa: S301 - ours
    except DataDiffersError as e:
        (fault,) = e.faults
        return fault
    assert torch.equal(torch.get_rng_state(), random_state)
    return ""


def shuffled(seed: int, count: int = 2000) -> Subset[Any]:
    return Subset(regression(count), np.random.default_rng(seed).permutation(count).tolist())


class OwnOrder(IterableDataset[Any]):
    """An order drawn when it is made, as of a module that is imported in each process."""

    def __init__(self, seed: int) -> None:
        self.order = np.random.default_rng(seed).permutation(500)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from (text()[int(i)] for i in self.order)


class NeverTheSame(Dataset[Any]):
    """An unseeded generator of its own changes the inputs, never the labels."""

    def __init__(self, first: int = 0) -> None:
        self.first, self.generator = first, np.random.default_rng()

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.generator.random(3)), self.first + index


def test_the_same_data_in_another_process_pass() -> None:
    same: dict[str, Callable[[], PreparedData]] = {
        "tensors": lambda: prepared(regression(), text()),
        "split": lambda: prepared(shuffled(1)),
        "augmented": lambda: prepared(Noisy(), Noisy(60)),  # by the global generators
        "stream": lambda: prepared(Plain()),
        "loader": lambda: prepared(DataLoader(Noisy(), batch_size=8, shuffle=True)),
        "its own order": lambda: prepared(OwnOrder(1)),
        "random": lambda: prepared(NeverTheSame()),
    }
    for name, make in same.items():
        assert compare(make(), make()) == "", name


@pytest.mark.parametrize(
    ("plan", "worker", "said"),
    [
        (prepared(shuffled(1)), prepared(shuffled(2)), "data.train (other samples, or the same in another order)"),
        (prepared(regression(), shuffled(1)), prepared(regression(), shuffled(2)), "than the plan: data.eval (other"),
        (prepared(shuffled(1), shuffled(3)), prepared(shuffled(2), shuffled(4)), "order) and data.eval (other"),
        (prepared(regression(50)), prepared(regression(49)), "data.train (49 samples for 50)"),
        (
            prepared(Plain()),
            prepared(Plain(400)),
            "data.train (other samples",
        ),  # a stream that does not know its length
        (prepared(OwnOrder(1)), prepared(OwnOrder(2)), "data.train (other samples"),
        (prepared(text()), prepared(TensorDataset(*text().tensors[:1])), "data.train (samples of another form)"),
        (prepared(Noisy()), prepared(Pairs(*text().tensors)), "data.train (other samples"),
        (
            prepared(NeverTheSame()),
            prepared(NeverTheSame(1)),
            "data.train (other samples",
        ),  # by what is always the same
    ],
)
def test_other_data_in_a_worker_are_named_with_usual_causes_and_a_way_out(
    plan: PreparedData, worker: PreparedData, said: str
) -> None:
    fault = compare(plan, worker)
    assert said in fault and "usual causes: np.random" in fault and "The way out: seed" in fault


def test_rounding_of_another_processor_is_no_difference() -> None:
    x, y = regression().tensors
    assert compare(prepared((x, y)), prepared((x, y * (1 + 2**-22)))) == ""
    assert compare(prepared((x, y)), prepared((x, y * 1.001))) != ""
    assert compare(prepared((x, y.bfloat16())), prepared((x, (y * (1 + 2**-9)).bfloat16()))) == ""
    assert not ValueProbe("a").is_like(ValueProbe("b"))  # integers are the same or not


def test_data_that_are_never_the_same_are_named_in_the_plan() -> None:
    train = sample_data(NeverTheSame())
    assert [v.digest is None for v in train.values[:2]] == [True, False]
    assert list(probe_of(train, None, "").warnings()) == []  # the labels can be compared

    class Noise(NeverTheSame):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0]

    (warning,) = probe_of(sample_data(Noise()), None, "").warnings()
    assert str(warning).startswith(
        "data.train gives other samples each time it is read, whatever torch, numpy and random"
    )


def test_the_error_of_another_worker_of_a_team_is_the_same() -> None:
    cause = DataDiffersError("data", ["data.train differs"])
    assert _worker_error(RayTaskError("get_ready", "trace", cause)) is cause  # type: ignore[no-untyped-call] # Ray's


class ByProcess(Pairs):
    """Files that differ, an order by hash(), the time: whatever makes a process see other samples."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return super().__getitem__((index + os.getpid()) % len(self))


@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_a_sweep_ends_with_one_error_before_anything_is_trained(ray_here: None, tmp_path: Any) -> None:
    with pytest.raises(SpecError, match=r"^find_optimal: a worker's process on .* dataset \(other samples") as caught:
        find_optimal(
            Mlp, "width", dataset=ByProcess(*regression().tensors), loss_fn="mse", sizes=[4, 8, 16], batch_size=8,
            compute_budgets=[1e5, 2e5], lr=1e-2, resources_per_trial={"cpu": 1}, output_dir=tmp_path, quiet=True,
        )  # fmt: skip
    assert caught.value.exit_code == 2
    assert not list(tmp_path.rglob("result.json")) and not list(tmp_path.rglob("failure.json"))


def test_workers_of_a_cluster_get_the_drivers_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "3")
    assert _worker_environment() == {"env_vars": {"PYTHONHASHSEED": "3"}}
    monkeypatch.setenv(JOB_CONFIG, '{"runtime_env": {"env_vars": {"PYTHONHASHSEED": "3"}}}')
    assert _worker_environment() is None
