"""What a step sends: collectives and bytes of eight workers, seven of which do not exist."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from flops_fit_ray.training.distributed.group import Group
from flops_fit_ray.training.loop.worker import Worker
from tests.parts import BIGRAM, planned, spec_of, text, user_parts_of

WORKERS = 8
BLOCKS = 3


class Deep(nn.Module):
    """A table, blocks, a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(32, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(BLOCKS))
        self.head = nn.Linear(width, 32)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.table(ids)
        for block in self.blocks:
            x = x + block(x).relu()
        out: Tensor = self.head(x)
        return out


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Every collective, with the bytes of the largest tensor that it is given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # as above
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.found.append((func.__name__.partition(".")[0].strip("_"), max(t.nbytes for t in _tensors(args))))
        return func(*args, **(kwargs or {}))

    def bytes_of(self, name: str) -> list[int]:
        return sorted(size for found, size in self.found if found == name)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


@contextmanager
def one_of_eight(*, sharded: bool) -> Iterator[Worker]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from flops_fit_ray.training.distributed.fsdp import ShardedGroup  # a second of imports

    group = (ShardedGroup if sharded else Group)(0, WORKERS)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORKERS)
    try:
        spec = spec_of(
            model=BIGRAM,
            data={"train": "tests.parts:text", "max_epochs": 60},
            loss="cross_entropy",
            budgets=[2e6, 4e6],
            train={"batch_size": 2 * WORKERS, "lr": 1e-2},
        )
        user = user_parts_of(spec, model=Deep, train=text())
        yield Worker(planned(spec, user).experiments[-1], user, torch.device("cpu"), group=group)
    finally:
        dist.destroy_process_group()


def sizes_of(width: int) -> tuple[int, int]:
    """Bytes of a block, and of table and head."""
    return 4 * (width * width + width), 4 * (32 * width + width * 32 + 32)


def test_replicas_add_up_all_gradients_at_once() -> None:
    with one_of_eight(sharded=False) as worker:
        block, rest = sizes_of(worker._experiment.size_kwargs["width"])
        params = len(list(worker._model.parameters()))
        with Collectives() as sent:
            worker.advance(1)
    # First the loss and who has a gradient of which parameter, in double precision, then one bucket
    assert sent.found == [("allreduce", 8 * (1 + params)), ("allreduce", BLOCKS * block + rest)]


def test_shards_are_gathered_twice_and_their_gradients_scattered_once() -> None:
    """Forward and backward need the weights of a block, and what is in no block stays gathered in between."""
    from torch.distributed.tensor import DTensor

    with one_of_eight(sharded=True) as worker:
        block, rest = sizes_of(worker._experiment.size_kwargs["width"])
        held = sum(p.to_local().nbytes for p in worker._model.parameters() if isinstance(p, DTensor))
        with Collectives() as sent:
            worker.advance(1)
    assert sent.bytes_of("allgather_base") == [*[block] * 2 * BLOCKS, rest]
    assert sent.bytes_of("reduce_scatter_base") == [*[block] * BLOCKS, rest]
    assert sent.bytes_of("allreduce") == [8]  # the loss
    assert sent.bytes_of("broadcast") == [8]  # what the leader is about to do
    assert len(sent.found) == 3 * BLOCKS + 4
    assert held == (BLOCKS * block + rest) / WORKERS


def test_shards_are_saved_whole_and_loaded_as_they_were() -> None:
    """The fake group gathers this worker's shard eight times and gives it the first part back: both can be foretold."""
    from torch.distributed.tensor import DTensor

    with one_of_eight(sharded=True) as worker:
        worker.advance(2)
        state = worker.state()
        shards = {name: p.to_local().clone() for name, p in worker._model.named_parameters() if isinstance(p, DTensor)}
        moments = [s["exp_avg_sq"].to_local().clone() for s in worker.stepper.optimizer.state.values()]
    assert len(shards) == len(moments) == 3 + 2 * BLOCKS
    for name, shard in shards.items():
        assert torch.equal(state["model"][name], shard.repeat(WORKERS, *[1] * (shard.ndim - 1))), name
    for number, moment in enumerate(moments):
        assert state["optimizer"]["state"][number]["exp_avg_sq"].shape[0] == WORKERS * len(moment)
    with one_of_eight(sharded=True) as other:
        other.resume(state)
        assert (other.step, other.tokens_seen) == (2, state["tokens_seen"])
        params = dict(other._model.named_parameters())
        assert all(torch.equal(params[name].to_local(), shard) for name, shard in shards.items())  # type: ignore[attr-defined] # DTensors
        loaded = [s["exp_avg_sq"].to_local() for s in other.stepper.optimizer.state.values()]
        assert all(torch.equal(a, b) for a, b in zip(loaded, moments, strict=True))


def test_a_shard_is_an_eighth_of_weights_and_moments_and_one_block_is_whole_at_a_time() -> None:
    """What `check` says of memory is measured on a device, so the tracker is held to the formula."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker  # brings torch's compiler: 2 s

    with one_of_eight(sharded=True) as worker:
        block, rest = sizes_of(worker._experiment.size_kwargs["width"])
        tracker = FSDPMemTracker(worker._model, worker.stepper.optimizer)
        tracker.track_inputs(())
        with tracker:
            worker.advance(1)
        held, peak = (
            {getattr(kind, "value", kind): size for kind, size in next(iter(found.values())).items()}
            for found in (tracker.get_tracker_snapshot("current"), tracker.get_tracker_snapshot("peak"))
        )
        count = len(list(worker._model.parameters()))
    shard = (BLOCKS * block + rest) // WORKERS
    assert held["Sharded Param"] == shard and held["Unsharded Param"] == 0
    assert held["OptState"] == 2 * shard + 4 * count  # two moments, and the number of steps of each parameter
    assert peak["Sharded Param"] == shard and peak["Unsharded Param"] in (rest, rest + block)
