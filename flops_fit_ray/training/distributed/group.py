"""Several workers that train one experiment together: each takes its share of every batch, and all take the same step.

Every worker draws the whole batch in the order that the seed decides, and computes the gradient of its share, weighted
so that the sum over the workers is the gradient of the batch's mean. One sum over all workers after the backward pass,
and all of them hold the same gradient, take the same step, and see the same loss. So D is exact, whatever counts as a
token, and the result is that of one worker but for the order of a sum (Li et al. 2020, section 3.2, without overlap);
training lets the difference grow as it does any rounding.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined] # torch leaves them unexported

from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.rng import RandomState

BUCKET_BYTES = 25 * 2**20  # summed at once


class Action(enum.IntEnum):
    """What workers do together."""

    ADVANCE = 0
    EVALUATE = 1
    STATE = 2
    WEIGHTS = 3
    END = 4


@dataclass(frozen=True)
class Group:
    """One of `size` workers, each with the whole model. A group of one does nothing at all."""

    rank: int = 0
    world_size: int = 1

    sharded: ClassVar[bool] = False  # whether each worker holds a part of the model (see `shards`)

    @property
    def is_single(self) -> bool:
        """Whether there are no others."""
        return self.world_size == 1

    @property
    def is_leader(self) -> bool:
        """Whether this worker reads the clock, evaluates and saves; the others follow."""
        return self.rank == 0

    def max_local_samples(self, samples: int) -> int:
        """The largest number of samples of a batch that one worker has."""
        return -(-samples // self.world_size)

    def local_batch(self, batch: Batch) -> Batch | None:
        """This worker's part of a batch; None where there is none for it."""
        if self.is_single:
            return batch
        parts = batch.split(self.max_local_samples(batch.num_samples))
        return parts[self.rank] if self.rank < len(parts) else None

    def seed_step(self, seed: int, step: int, *, shared: bool) -> None:
        """Before each draw of the data (`shared`) and each forward pass: random numbers that resume by themselves.

        Data must be the same for all; what the model draws (dropout) must not.
        """
        if self.is_single:
            return
        words = f"{seed}/{step}/{'data' if shared else self.rank}"
        RandomState.seed(int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") % 2**63)

    def all_reduce_gradients(self, params: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Sum the gradients over all workers, in place, and return the sum of the losses.

        A parameter that no worker has a gradient of keeps none, so that the optimizer leaves it alone.
        """
        if self.is_single:
            return loss
        first = torch.zeros(1 + len(params), dtype=torch.float64, device=loss.device)
        first[0] = loss
        first[1:] = torch.tensor([p.grad is not None for p in params], dtype=torch.float64, device=loss.device)
        dist.all_reduce(first)
        used = [p for p, count in zip(params, first[1:].tolist(), strict=True) if count]
        for p in used:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for bucket in _buckets([p.grad for p in used if p.grad is not None]):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            dist.all_reduce(flat)
            for gradient, summed in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))
        return first[0].to(loss.dtype)

    def place_model(self, model: nn.Module, device: torch.device) -> None:
        """Bring a model to the device. The weights are the leader's: a constructor may draw what no seed decides."""
        model.to(device)
        if not self.is_single:
            self.broadcast_weights(model, device)

    def broadcast_weights(self, model: nn.Module, device: torch.device) -> None:
        """Take the leader's weights, by way of the device."""
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                there = tensor.to(device)
                dist.broadcast(there, src=0)
                tensor.copy_(there)

    def gather_full(self, value: Any) -> Any:
        """A tree of plain values, with the tensors put together that the workers have parts of."""
        return value

    def gather_model_state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The model's state, whole."""
        state: Mapping[str, Tensor] = model.state_dict()
        return state

    def distribute_state(
        self, state: Mapping[str, Any] | None, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Mapping[str, Any] | None:
        """The leader's state, on every worker. It is unpickled, and comes from nobody else."""
        if self.is_single:
            return state
        box = [state]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def announce(self, action: Action) -> None:
        """What this worker is about to do. Where each has the whole model, only steps concern the others."""

    def actions(self, steps: int) -> Iterator[Action]:
        """What a worker that does not lead has to do until the leader is done, with so many steps left."""
        return itertools.repeat(Action.ADVANCE, steps)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one kind, as many as are worth one sum."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (gradient.dtype != bucket[0].dtype or size + gradient.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


SINGLE_WORKER = Group()


def create_store(host: str) -> tuple[Store, int]:
    """Where the workers of an experiment meet, kept by its leader; and the port it listens on."""
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    return store, int(store.port)


@contextlib.contextmanager
def process_group(store: Store, group: Group, device: str, timeout: float) -> Iterator[Group]:
    """Be one of the workers: gloo on CPUs, NCCL on GPUs.

    Args:
        timeout: seconds that the others are waited for.
    """
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=store,
        rank=group.rank,
        world_size=group.world_size,
        timeout=datetime.timedelta(seconds=timeout),
    )
    try:
        yield group
        dist.barrier()  # nobody leaves while another one still waits for the last sum
    finally:
        dist.destroy_process_group()


def connect_store(host: str, port: int, timeout: float) -> Store:
    """The store that the leader has opened."""
    return TCPStore(host, port, is_master=False, timeout=datetime.timedelta(seconds=timeout))
