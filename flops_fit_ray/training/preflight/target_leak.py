"""Whether a model can see its targets: trained on random tokens, it gets good at them only if it does.

A missing shift, or attention that is not causal, gives losses that look splendid and mean nothing.
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
from flops_fit_ray.training.user.losses import Objective

LEAK_SECONDS = 15.0
LEAK_STEPS = 300
LEAK_TOKENS = 8  # distinct ones; nothing that cannot see its target gets below ln 8
CHANCE_LOSS = math.log(LEAK_TOKENS)


@dataclass(frozen=True)
class TargetLeak:
    """How well a model did on tokens that nobody can predict."""

    loss: float
    steps: int

    @property
    def is_leak(self) -> bool:
        """Whether it did better than a blind one can: a mean over ten batches errs by much less than 3 %."""
        return self.loss < 0.97 * CHANCE_LOSS


def detect_target_leak(model: nn.Module, objective: Objective, batch: Batch, device: torch.device) -> TargetLeak | None:
    """Train a model on random batches of the form of `batch`; None where its targets are not its tokens."""
    draw = _random_like(batch)
    if draw is None:
        return None
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    recent: list[float] = []
    ends, steps, mean = time.perf_counter() + LEAK_SECONDS, 0, math.inf
    while steps < LEAK_STEPS and mean > 0.6 * CHANCE_LOSS and time.perf_counter() < ends:
        optimizer.zero_grad()
        loss = objective(model, draw().to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-9:], loss.item()]
        mean, steps = sum(recent) / len(recent), steps + 1
    return TargetLeak(mean, steps)


def _random_like(batch: Batch) -> Callable[[], Batch] | None:
    """A source of random batches of the same form, where inputs and targets are rows of the same tokens."""
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
