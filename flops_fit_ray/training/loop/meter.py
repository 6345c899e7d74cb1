"""Measurements along an experiment. Losses are summed on the device and read only now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flops_fit_ray.errors import EXPLODED_HINT, DivergedError
from flops_fit_ray.training.loop._divergence import LossLevels
from flops_fit_ray.training.step.device import DeviceTimer

CURVE_POINTS = 250  # at most about so many per experiment
TAIL_SHARE = 0.05  # of the steps: what the smoothed training loss is a mean of


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One row of an experiment's curve."""

    step: int  # optimizer steps done
    tokens: int
    train_loss: float | None  # mean since the point before
    lr: float  # of the step
    grad_norm: float | None  # of the step, before clipping
    eval_loss: float | None
    seconds: float  # of training, without evaluation and saving


class Meter:
    """Sums over the steps of one experiment; `state` and `load_state` carry them through an interruption."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.every = max(1, math.ceil(steps / CURVE_POINTS))
        self._tail_begins = steps - max(1, round(TAIL_SHARE * steps))
        self._sum = torch.zeros((), dtype=torch.float64, device=device)
        self._count = 0
        self._tail = torch.zeros((), dtype=torch.float64, device=device)
        self._tail_count = 0
        self._pending: list[tuple[CurvePoint, Tensor, Tensor | None]] = []
        self._levels = LossLevels()
        self.stop_exploded = True  # False: only a loss that is NaN or infinite is a divergence
        self.curve: list[CurvePoint] = []
        self.train_seconds = 0.0
        self.wait_seconds = 0.0
        self.all_reduces = DeviceTimer(device)  # of gradients
        self._lap = (0, 0.0)  # tokens and seconds of training

    @contextmanager
    def training(self) -> Iterator[None]:
        """Counts as training."""
        started = time.perf_counter()
        yield
        self.train_seconds += time.perf_counter() - started

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts as waiting for data."""
        started = time.perf_counter()
        yield
        self.wait_seconds += time.perf_counter() - started

    def add(self, loss: Tensor, step: int) -> None:
        """Count the loss of one step, counted from 0."""
        self._sum += loss
        self._count += 1
        if step >= self._tail_begins:
            self._tail += loss
            self._tail_count += 1

    def mark(self, step: int, tokens: int, lr: float, grad_norm: Tensor | None) -> None:
        """Make a point of the curve; its losses are read from the device later."""
        norm = None if grad_norm is None else grad_norm.clone()  # a CUDA graph writes the next one over it
        self._pending.append((self._point(step, tokens, lr), self._sum / self._count, norm))
        self._sum.zero_()
        self._count = 0

    def read(self) -> float | None:
        """Wait for the device and read the points made since. Returns the last mean training loss.

        Raises:
            DivergedError: one of them is NaN or infinite, or they are far above all that were before.
        """
        for point, mean, norm in self._pending:
            loss = mean.item()
            self.curve.append(replace(point, train_loss=loss, grad_norm=None if norm is None else norm.item()))
            self._check(loss, point.tokens)
        self._pending.clear()
        self.all_reduces.read()
        losses = [p.train_loss for p in self.curve if p.train_loss is not None]
        return losses[-1] if losses else None

    def _check(self, loss: float, tokens: int) -> None:
        if not math.isfinite(loss):
            raise DivergedError(f"the training loss is {loss} after {tokens} tokens")
        self._levels.add(loss)
        if self.stop_exploded and (words := self._levels.exploded()):
            raise DivergedError(f"the training loss is {loss:.4g} after {tokens} tokens: {words} ({EXPLODED_HINT})")

    def evaluated(self, step: int, tokens: int, lr: float, eval_loss: float) -> None:
        """Add a point with a held-out loss."""
        self.read()
        self.curve.append(self._point(step, tokens, lr, eval_loss))

    def _point(self, step: int, tokens: int, lr: float, eval_loss: float | None = None) -> CurvePoint:
        return CurvePoint(
            step=step,
            tokens=tokens,
            train_loss=None,
            lr=lr,
            grad_norm=None,
            eval_loss=eval_loss,
            seconds=self.train_seconds,
        )

    def lap(self, tokens: int) -> float | None:
        """Tokens per second of training since the call before; None where there was none."""
        (before, began), self._lap = self._lap, (tokens, self.train_seconds)
        spent = self.train_seconds - began
        return (tokens - before) / spent if spent > 0 else None

    def smoothed_loss(self) -> float:
        """The mean training loss of the last 5 % of the steps."""
        return (self._tail / self._tail_count).item() if self._tail_count else math.nan

    def state(self) -> dict[str, Any]:
        """Plain values and tensors."""
        self.read()
        return {
            "sum": self._sum.cpu(),
            "count": self._count,
            "tail": self._tail.cpu(),
            "tail_count": self._tail_count,
            "first": None,  # read by earlier versions
            "curve": [dict(vars(p)) for p in self.curve],
            "train_seconds": self.train_seconds,
            "wait_seconds": self.wait_seconds,
            "all_reduce_seconds": self.all_reduces.read(),
        }

    def inherit(self, state: dict[str, Any]) -> None:
        """Begin on the trunk of another run: its curve thinned to this run's, the sum over the last steps begun anew.

        Points that fall together become one, with the mean of their losses by the steps that each stands for.
        """
        self.load_state(state)
        self._tail.zero_()
        self._tail_count = 0
        self.curve = _thinned(self.curve, self.every)
        self._levels = LossLevels(p.train_loss for p in self.curve if p.train_loss is not None)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._sum.copy_(state["sum"])
        self._tail.copy_(state["tail"])
        self._count, self._tail_count = state["count"], state["tail_count"]
        self.curve = [CurvePoint(**row) for row in state["curve"]]
        self._levels = LossLevels(p.train_loss for p in self.curve if p.train_loss is not None)
        self.train_seconds, self.wait_seconds = state["train_seconds"], state["wait_seconds"]
        self.all_reduces.begin(state.get("all_reduce_seconds", 0.0))


def _thinned(curve: Sequence[CurvePoint], every: int) -> list[CurvePoint]:
    """One point with a training loss for each `every` steps; those with a held-out loss stay as they are."""
    kept: list[CurvePoint] = []
    before, summed, begun = 0, 0.0, 0
    for point in curve:
        if point.train_loss is None:
            kept.append(point)
            continue
        summed += point.train_loss * (point.step - before)
        before = point.step
        if point.step // every > begun // every or point.step == 1:
            kept.append(replace(point, train_loss=summed / (point.step - begun)))
            summed, begun = 0.0, point.step
    return kept
