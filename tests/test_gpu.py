"""What only a GPU can show. Without one these are skipped, and nothing about GPUs is claimed."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from flops_fit_ray.ledger.hardware import read_gpus
from flops_fit_ray.training.data.dataset import index_rows
from flops_fit_ray.training.distributed.group import Group, create_store, process_group
from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.observer import Observer
from flops_fit_ray.training.loop.save_policy import SavePolicy
from flops_fit_ray.training.step.device import gpu_uuids
from tests.parts import Bigram, first_steps
from tests.streams import every_kind
from tests.test_checkpoint import KINDS, Dropping, Killed, Killer, experiment_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Words(Observer):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def event(self, words: str, *, level: Literal["info", "warning"] = "info") -> None:
        self.words.append(words)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_captured_graph_trains_like_the_eager_step(tmp_path: Path, precision: str) -> None:
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)["tensors"], precision=precision)
    eager = train_experiment(experiment, user, eval_samples=eval_samples, device="cuda")
    observer = Words()
    graph = replace(experiment, recipe=replace(experiment.recipe, cuda_graph=True))
    captured = train_experiment(graph, user, eval_samples=eval_samples, device="cuda", observer=observer)
    assert observer.words == []
    for a, b in zip(captured.curve, eager.curve, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-3) if b.train_loss else a.train_loss is None
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-2) if b.grad_norm else a.grad_norm is None


def test_a_graph_is_captured_beside_the_thread_that_reads_the_next_batch(tmp_path: Path) -> None:
    class Beside(Dropping):
        """Reads a batch in another thread, as a feed does, at the moment at which the graph is captured."""

        def forward(self, ids: Tensor) -> Tensor:
            if ids.is_cuda and torch.cuda.is_current_stream_capturing():
                reader = threading.Thread(target=lambda: read.append(index_rows(ids_there, np.arange(3))))
                reader.start()
                reader.join()
            return super().forward(ids)

    read: list[Tensor] = []
    ids_there = torch.arange(12, device="cuda").view(4, 3)
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)["tensors"])
    graph = replace(experiment, recipe=replace(experiment.recipe, cuda_graph=True))
    arguments: dict[str, Any] = {"eval_samples": eval_samples, "device": "cuda"}
    observer = Words()
    beside = train_experiment(graph, replace(user, model=Beside), **arguments, observer=observer)
    assert observer.words == []
    assert [rows.cpu().tolist() for rows in read] == [[[0, 1, 2], [3, 4, 5], [6, 7, 8]]]
    assert beside.loss == pytest.approx(train_experiment(graph, user, **arguments).loss, rel=1e-4)


def test_a_model_that_cannot_be_captured_is_trained_all_the_same(tmp_path: Path) -> None:
    class Asks(Bigram):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * (1.0 if ids.is_meta or ids.sum().item() >= 0 else 2.0)

    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)["tensors"])
    asking = replace(user, model=Asks)
    graph = replace(experiment, recipe=replace(experiment.recipe, cuda_graph=True))
    observer = Words()
    outcome = train_experiment(graph, asking, eval_samples=eval_samples, device="cuda", observer=observer)
    assert observer.words[0].startswith("CUDA graph capture failed")
    assert outcome.tokens_seen == experiment.tokens


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_on_a_gpu(kind: str, graph: bool, tmp_path: Path) -> None:
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)[kind], cuda_graph=graph)
    experiment = first_steps(experiment, 40)
    arguments: dict[str, Any] = {"eval_samples": eval_samples, "device": "cuda"}
    whole = train_experiment(experiment, user, **arguments)
    policy = SavePolicy(store=CheckpointStore(tmp_path / "s", key=experiment.key), checkpoint_steps=10)
    with pytest.raises(Killed):
        train_experiment(experiment, user, **arguments, policy=policy, observer=Killer(25))
    resumed = train_experiment(experiment, user, **arguments, policy=policy)
    assert resumed.resumed_from == 20
    assert resumed.loss == pytest.approx(whole.loss, rel=1e-4)
    assert whole.device == torch.cuda.get_device_name() and whole.peak_memory_bytes


def test_the_driver_reports_the_gpu_that_this_process_computes_on() -> None:
    torch.zeros(1 << 28, device="cuda")
    (mine, *_) = read_gpus(gpu_uuids())
    assert mine.name == torch.cuda.get_device_name()
    assert mine.memory_total is not None and mine.memory_used is not None
    assert mine.memory_total == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.05)
    assert mine.memory_used > 1 << 28
    assert mine.temperature is None or 0 < mine.temperature < 120


@pytest.mark.parametrize("sharded", [False, True])
def test_a_group_of_one_trains_by_nccl_as_nobody_does(sharded: bool, tmp_path: Path) -> None:
    """More workers need more GPUs: NCCL gives each its own."""
    from flops_fit_ray.training.distributed.fsdp import ShardedGroup  # a second of imports

    kind = ShardedGroup if sharded else Group
    experiment, user, eval_samples = experiment_of(every_kind(tmp_path)["tensors"])
    arguments: dict[str, Any] = {"eval_samples": eval_samples, "device": "cuda"}
    alone = train_experiment(experiment, user, **arguments)
    store, _ = create_store("127.0.0.1")
    policy = SavePolicy(store=CheckpointStore(tmp_path / "s", key=experiment.key), checkpoint_steps=10)
    with process_group(store, kind(0, 1), "cuda", 60.0) as group:
        with pytest.raises(Killed):
            train_experiment(experiment, user, **arguments, policy=policy, observer=Killer(25), group=group)
        resumed = train_experiment(experiment, user, **arguments, policy=policy, group=group)
    assert resumed.resumed_from == 20 and resumed.tokens_seen == experiment.tokens
    assert resumed.loss == pytest.approx(alone.loss, rel=1e-4)
