"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): a block runs again for its gradient.

It keeps its inputs alone: memory falls from the activations of all blocks to those of one and the inputs of the others,
for one more forward pass in the time. Blocks are those that `shard_model` gathers one at a time: the members of the
outermost `ModuleList`, `ModuleDict` or `Sequential`. The second run gives the same bits: random numbers (Python's,
NumPy's, torch's) and buffers (running statistics) are for its time as they were before the first.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flops_fit_ray.training.rng import RandomState
from flops_fit_ray.training.user.layers import blocks_of

_Buffers = list[tuple[nn.Module, str, Tensor]]


def checkpoint_activations(model: nn.Module) -> None:
    """Let the blocks of a model run again in the backward pass, in place. Names and hooks of its modules stay."""
    for block in dict.fromkeys(blocks_of(model)):
        block.forward = _run_twice(block, block.forward)


def _run_twice(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        asked = functools.partial(forward, **kwargs)
        if torch.compiler.is_compiling():  # which sees buffers and random numbers itself
            return checkpoint(asked, *args, use_reentrant=False)
        random, buffers = RandomState.capture(), _buffers_of(block)
        before = [(module, name, tensor.clone()) for module, name, tensor in buffers]
        contexts = (contextlib.nullcontext(), _as_before(random, before))
        return checkpoint(asked, *args, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts)

    return run


def _buffers_of(block: nn.Module) -> _Buffers:
    return [(m, name, b) for m in block.modules() for name, b in m._buffers.items() if b is not None]


@contextlib.contextmanager
def _as_before(random: dict[str, Any], buffers: _Buffers) -> Iterator[None]:
    """Put random numbers and buffers back for the block. Tensors are exchanged, as autograd has saved them."""
    outside, now = RandomState.capture(), [(module, name, module._buffers[name]) for module, name, _ in buffers]
    RandomState.restore(random)
    for module, name, tensor in buffers:
        module._buffers[name] = tensor
    try:
        yield
    finally:
        for module, name, current in now:
            module._buffers[name] = current
        RandomState.restore(outside)
