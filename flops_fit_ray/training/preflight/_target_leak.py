"""Target leak tests: a model beats chance on random tokens, or its outputs change with later ones, only by a leak.

A missing shift, or attention that is not causal, gives low losses that mean nothing. Training finds the first at once.
The second is found without: narrow models take long to learn to copy the next token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
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
AHEAD_DRAWS = 4
AHEAD = 1e-5  # relative; rounding makes up to 2e-7, attention that is not causal 1e-4 and more before training


@dataclass(frozen=True)
class TargetLeak:
    """Loss of a model on random tokens, and how much its outputs change with tokens that come after them."""

    loss: float
    steps: int
    ahead: float  # change of the loss, relative; 0 where the loss is no mean over positions

    @property
    def learns_targets(self) -> bool:
        """True below 97 % of the chance loss; a mean over ten batches errs by much less than 3 %."""
        return self.loss < 0.97 * CHANCE_LOSS

    @property
    def sees_ahead(self) -> bool:
        """True if outputs change with later tokens."""
        return self.ahead > AHEAD


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A batch whose targets are its input tokens, shifted by one or not."""

    batch: Batch
    inputs: Tensor  # (samples, positions)
    target: Tensor | None  # as the inputs; None: they are the target
    shift: int

    def with_tokens(self, inputs: Tensor, target: Tensor) -> Batch:
        """Return the batch with other tokens."""
        content = self.batch.content

        def swapped(value: Any) -> Any:
            return target if value is self.target else inputs if value is self.inputs else value

        if isinstance(content, Tensor):
            return Batch(inputs, self.batch.num_samples)
        if isinstance(content, Mapping):
            return Batch({k: swapped(v) for k, v in content.items()}, self.batch.num_samples)
        return Batch(tuple(swapped(v) for v in content), self.batch.num_samples)

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Draw inputs and targets."""
        if self.target is None:
            rows = torch.randint(LEAK_TOKENS, tuple(self.inputs.shape), dtype=self.inputs.dtype)
            return rows, rows
        samples, length = self.inputs.shape[:2]
        rows = torch.randint(LEAK_TOKENS, (samples, length + self.shift), dtype=self.inputs.dtype)
        return rows[:, :length].contiguous(), rows[:, self.shift :].contiguous().to(self.target.dtype)


def detect_target_leak(model: nn.Module, objective: Objective, batch: Batch, device: torch.device) -> TargetLeak | None:
    """Train a model on random batches shaped like `batch`; None if its targets are not its input tokens."""
    task = _task_of(batch)
    if task is None:
        return None
    ahead = _ahead(model, objective, task, device)
    model.train()
    import_compiler_late()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    recent: list[float] = []
    deadline, steps, mean = time.perf_counter() + LEAK_SECONDS, 0, math.inf
    while steps < LEAK_STEPS and mean > 0.6 * CHANCE_LOSS and time.perf_counter() < deadline:
        optimizer.zero_grad()
        loss = objective(model, task.with_tokens(*task.tokens()).to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-9:], loss.item()]
        mean, steps = sum(recent) / len(recent), steps + 1
    ahead = max(ahead, _ahead(model, objective, task, device))  # heads that begin with zeros tell nothing before
    return TargetLeak(mean, steps, ahead)


@torch.no_grad()
def _ahead(model: nn.Module, objective: Objective, task: _Task, device: torch.device) -> float:
    """Return how much the loss of the first half of the positions depends on the tokens of the second half.

    1) A loss is a mean over positions: L = f(targets of the first half) + g(tokens of the second) where the outputs
       of the first half do not see the second half, so L(a, b) - L(a', b) - L(a, b') + L(a', b') = 0.
    2) The same of targets alone is 0 for any such loss; where it is not (a loss that is no mean, or that draws
       numbers), nothing is told, and the answer is 0.
    """
    if task.target is None or task.inputs.ndim != 2 or task.inputs.shape[1] < 2:
        return 0.0
    model.eval()
    half, found = task.inputs.shape[1] // 2, 0.0
    for _ in range(AHEAD_DRAWS):
        (x, y), (x_new, y_new) = task.tokens(), task.tokens()
        later_x, later_y = (torch.cat([old[:, :half], new[:, half:]], 1) for old, new in ((x, x_new), (y, y_new)))
        first_y = torch.cat([y_new[:, :half], y[:, half:]], 1)

        def loss(inputs: Tensor, target: Tensor) -> float:
            return float(objective(model, task.with_tokens(inputs, target).to(device)).double())

        base, first = loss(x, y), loss(x, first_y)
        if not base or abs(base - first - loss(x, later_y) + loss(x, y_new)) > AHEAD * abs(base):
            return 0.0
        found = max(found, abs(base - first - loss(later_x, y) + loss(later_x, first_y)) / abs(base))
    return found if math.isfinite(found) else 0.0


def _task_of(batch: Batch) -> _Task | None:
    """Return the task of a batch; None unless targets are the (shifted) inputs."""
    content = batch.content
    if isinstance(content, Tensor):
        return _Task(batch=batch, inputs=content, target=None, shift=0) if has_tokens(content) else None
    target = batch.target
    positional, named = batch.arguments
    inputs = next((v for v in (*positional, *named.values()) if has_tokens(v)), None)
    if inputs is None or not has_tokens(target) or inputs.shape != target.shape:
        return None
    shift = 0 if torch.equal(inputs, target) else 1
    if shift and not torch.equal(inputs[:, 1:], target[:, :-1]):
        return None
    return _Task(batch=batch, inputs=inputs, target=target, shift=shift)
