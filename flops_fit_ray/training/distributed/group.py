"""Data parallelism: the workers of one experiment split every batch and take the same optimizer steps.

1) Every worker draws the same whole batch B in the order that the seed decides, and keeps its part B_r.
2) It computes sum over its micro-batches m of (w_m / W) * loss(m): w_m is what the loss averages over in m, such as its
   targets, W that of the whole batch B. The sum over the workers is the loss of B, whatever the parts' sizes.
3) One all-reduce (sum) of the gradients after the backward pass, in buckets (Li et al. 2020, arXiv:2006.15704, section
   3.2; here without overlap). All workers hold the same gradient, take the same step and see the same loss.

So D is exact, whatever counts as a token, and the result is that of one worker up to the order of a floating-point sum.
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

_BROKEN = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")  # gloo's words, and NCCL's
BUCKET_BYTES = 25 * 2**20  # of gradients per all-reduce; DistributedDataParallel's default


class Action(enum.IntEnum):
    """The collective operations that the leader starts and the other workers follow."""

    ADVANCE = 0
    EVALUATE = 1
    STATE = 2
    WEIGHTS = 3
    END = 4


@dataclass(frozen=True)
class Group:
    """One of `world_size` workers with a replica of the model each. With one worker every method is a no-op."""

    rank: int = 0
    world_size: int = 1

    sharded: ClassVar[bool] = False  # True where each worker holds a shard of the model (fsdp.py)

    @property
    def is_single(self) -> bool:
        """True for the only worker of an experiment."""
        return self.world_size == 1

    @property
    def is_leader(self) -> bool:
        """True for rank 0, which reads the clock, evaluates and saves; the others follow."""
        return self.rank == 0

    def max_local_samples(self, samples: int) -> int:
        """Return the largest number of samples of a batch of `samples` that one worker gets."""
        return -(-samples // self.world_size)

    def local_batch(self, batch: Batch) -> Batch | None:
        """Return this worker's part of a batch; None where the batch has fewer parts than workers."""
        if self.is_single:
            return batch
        parts = batch.split(self.max_local_samples(batch.num_samples))
        return parts[self.rank] if self.rank < len(parts) else None

    def seed_step(self, seed: int, step: int, *, shared: bool) -> None:
        """Seed all generators from (seed, step), so that no random state of a worker has to be saved.

        Args:
            shared: the same seed on every worker, to draw the batch; else one per rank, because dropout masks differ.
        """
        if self.is_single:
            return
        name = f"{seed}/{step}/{'data' if shared else self.rank}"
        RandomState.seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 2**63)

    def all_reduce_gradients(self, params: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Sum the gradients over all workers, in place, and return the sum of the losses.

        A parameter without a gradient on every worker keeps None, so that the optimizer skips it as with one worker.
        Only a worker that lacks a gradient has to read from the device whether another one has it.
        """
        if self.is_single:
            return loss
        # 1) The loss, and how many workers have a gradient of each parameter, in one all-reduce
        lacking = [i for i, p in enumerate(params) if p.grad is None]
        first = torch.ones(1 + len(params), dtype=torch.float64, device=loss.device)
        first[0] = loss
        for i in lacking:
            first[1 + i] = 0
        dist.all_reduce(first)
        # 2) Zeros where this worker has none, so that all workers sum the same tensors in the same order
        for i in lacking:
            params[i].grad = torch.zeros_like(params[i])
        # 3) The gradients, flattened into buckets
        for bucket in _buckets([p.grad for p in params if p.grad is not None]):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            dist.all_reduce(flat)
            for gradient, summed in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))
        # 4) What no worker uses
        if lacking:
            counts = first.cpu().tolist()
            for i in lacking:
                if not counts[1 + i]:
                    params[i].grad = None
        return first[0].to(loss.dtype)

    def all_reduce(self, value: Tensor) -> Tensor:
        """Return the sum of a number over all workers."""
        if not self.is_single:
            dist.all_reduce(value)
        return value

    def place_model(self, model: nn.Module, device: torch.device) -> None:
        """Move a model to the device with the leader's weights: a constructor may draw from an unseeded generator."""
        model.to(device)
        if not self.is_single:
            self.broadcast_weights(model, device)

    def broadcast_weights(self, model: nn.Module, device: torch.device) -> None:
        """Broadcast the leader's parameters and buffers, one tensor at a time, through `device`."""
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                there = tensor.to(device)
                dist.broadcast(there, src=0)
                tensor.copy_(there)

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """Return a tensor unsharded, on every worker."""
        return tensor

    def gather_model_state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the full model state, in the layout of one worker; complete on the leader only."""
        state: Mapping[str, Tensor] = model.state_dict()
        return state

    def gather_optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the full optimizer state, in the layout of one worker; complete on the leader only."""
        return optimizer.state_dict()

    def distribute_state(
        self, state: Mapping[str, Any] | None, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Mapping[str, Any] | None:
        """Return the leader's checkpoint state on every worker. It is unpickled, and comes from the leader alone."""
        if self.is_single:
            return state
        box = [state]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def announce(self, action: Action) -> None:
        """Tell the other workers what to join. Replicas only need to step, so nothing is sent here."""

    def actions(self, steps: int) -> Iterator[Action]:
        """Yield what a follower has to join until the leader is done, with `steps` optimizer steps left."""
        return itertools.repeat(Action.ADVANCE, steps)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group gradients of one dtype into buckets of at most BUCKET_BYTES."""
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
    """Open the rendezvous store of a group, on its leader. Returns it and its port."""
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    return store, int(store.port)


@contextlib.contextmanager
def process_group(store: Store, group: Group, device: str, timeout: float) -> Iterator[Group]:
    """Join torch's default process group for the block: NCCL on GPUs, gloo on CPUs.

    Args:
        timeout: seconds that a collective waits for the other workers.
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
        dist.barrier()  # a worker that leaves early breaks the last collective of the others
    finally:
        dist.destroy_process_group()


def connect_store(host: str, port: int, timeout: float) -> Store:
    """Connect to the rendezvous store that the leader has opened."""
    return TCPStore(host, port, is_master=False, timeout=datetime.timedelta(seconds=timeout))


def is_collective_error(error: BaseException) -> bool:
    """Return True for what torch raises where a collective cannot be completed."""
    words = isinstance(error, RuntimeError) and any(library in str(error) for library in ("gloo", "NCCL"))
    return words or isinstance(error, dist.DistError)


def is_broken_connection(error: BaseException) -> bool:
    """Return True where the words of a collective's error say that another worker is gone."""
    return any(words in str(error) for words in _BROKEN)
