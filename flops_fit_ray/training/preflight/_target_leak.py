"""Target leak test: a model trained on random tokens beats chance only if it sees its targets.

A missing shift, or attention that is not causal, gives low losses that mean nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flops_fit_ray.training.data import Batch, has_tokens
from flops_fit_ray.training.lazy_compiler import import_compiler_late
from flops_fit_ray.training.user.losses import Objective

LEAK_SECONDS = 15.0
LEAK_STEPS = 300
LEAK_TOKENS = 8  # distinct ids, uniformly random: without a leak no model gets below ln 8
CHANCE_LOSS = math.log(LEAK_TOKENS)


@dataclass(frozen=True)
class TargetLeak:
    """Loss of a model on random tokens."""

    loss: float
    steps: int

    @property
    def is_leak(self) -> bool:
        """True below 97 % of the chance loss; a mean over ten batches errs by much less than 3 %."""
        return self.loss < 0.97 * CHANCE_LOSS


def detect_target_leak(model: nn.Module, objective: Objective, batch: Batch, device: torch.device) -> TargetLeak | None:
    """Train a model on random batches shaped like `batch`; None if its targets are not its input tokens."""
    draw = _random_like(batch)
    if draw is None:
        return None
    model.train()
    import_compiler_late()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    recent: list[float] = []
    deadline, steps, mean = time.perf_counter() + LEAK_SECONDS, 0, math.inf
    while steps < LEAK_STEPS and mean > 0.6 * CHANCE_LOSS and time.perf_counter() < deadline:
        optimizer.zero_grad()
        loss = objective(model, draw().to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-9:], loss.item()]
        mean, steps = sum(recent) / len(recent), steps + 1
    return TargetLeak(mean, steps)


def _random_like(batch: Batch) -> Callable[[], Batch] | None:
    """Return a generator of random batches of the same structure; None unless targets are the (shifted) inputs."""
    content = batch.content
    if isinstance(content, Tensor):
        return (lambda: Batch(_tokens_like(content), batch.num_samples)) if has_tokens(content) else None
    target = batch.target
    positional, named = batch.arguments
    inputs = next((v for v in (*positional, *named.values()) if has_tokens(v)), None)
    if inputs is None or not has_tokens(target) or inputs.shape != target.shape:
        return None
    shift = 0 if torch.equal(inputs, target) else 1
    if shift and not torch.equal(inputs[:, 1:], target[:, :-1]):
        return None

    def draw() -> Batch:
        rows = torch.randint(LEAK_TOKENS, (len(inputs), inputs.shape[1] + shift), dtype=inputs.dtype)
        new_inputs, new_target = rows[:, : inputs.shape[1]].contiguous(), rows[:, shift:].contiguous().to(target.dtype)

        def swapped(value: Any) -> Any:
            return new_target if value is target else new_inputs if value is inputs else value

        if isinstance(content, Mapping):
            return Batch({k: swapped(v) for k, v in content.items()}, batch.num_samples)
        return Batch(tuple(swapped(v) for v in content), batch.num_samples)

    return draw


def _tokens_like(rows: Tensor) -> Tensor:
    return torch.randint(LEAK_TOKENS, tuple(rows.shape), dtype=rows.dtype)
