"""Rules by which losses average over a batch, learnt by trying them on a few samples and on two parts of them.

1) A loss that is a mean has L = sum_m (w_m / W) * L_m over the parts m of a batch. Each rule for w_m that is known
   (`Average`) is tried on a few samples, with outputs of the model that do not change.
2) The samples are tried again with some targets replaced by values that may be ignored, and with masks set to 0: rules
   that agree on the first samples and would differ on others are told apart.
3) Random numbers that the loss draws are made the same for all samples.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from flops_fit_ray.planning import Average
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.data.batch import AUTO, IGNORE_INDEX, is_integer_tensor, map_tensors
from flops_fit_ray.training.rng import RandomState
from flops_fit_ray.training.user.losses import Objective, mean_of, outputs_of, sum_and_count

SAMPLES = 5  # tried; an odd number is rarely the length of another axis
MAX_VALUES = 12  # that targets are replaced by
EQUAL = 2e-5  # relative: fp32 sums in another order
APART = 1e-3  # relative: parts whose losses differ by less tell nothing
OUTPUTS, CONTENT = "outputs", "content"


@dataclass(frozen=True)
class _Case:
    """A few samples, and the losses of the whole and of its two parts."""

    parts: tuple[Batch, Batch]
    loss: float
    losses: tuple[float, float]

    @property
    def scale(self) -> float:
        return max(abs(self.loss), *map(abs, self.losses))

    @property
    def tells(self) -> bool:
        """True if the parts' losses differ."""
        return abs(self.losses[0] - self.losses[1]) > APART * self.scale

    def fits(self, average: Average) -> bool:
        """Return True if the rule gives the loss of the whole."""
        weights = [float(part.loss_weight(average)) for part in self.parts]
        if average.over == "sum":
            return abs(sum(self.losses) - self.loss) <= EQUAL * self.scale
        if not sum(weights) > 0:
            return False
        mean = sum(w * loss for w, loss in zip(weights, self.losses, strict=True)) / sum(weights)
        return abs(mean - self.loss) <= EQUAL * self.scale


class AverageProbe:
    """Tries a loss or a metric on a few samples.

    Args:
        outputs: of the model for these samples, where they can be split; None to run the model on each part.
    """

    def __init__(self, objective: Objective, model: nn.Module | None, batch: Batch, outputs: Any = None) -> None:
        self._objective, self._model = objective, model
        samples = batch.split(SAMPLES)[0]
        self._content = {OUTPUTS: outputs, CONTENT: samples.content}
        self._count = samples.num_samples
        self._rows = samples.target if samples.has_target else samples.content
        self._all_rows = batch.target if batch.has_target else batch.content

    def learn(self) -> Average | None:
        """Return the rule; None where nothing can be learnt from these samples, as of losses that are all equal."""
        outside = RandomState.capture()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._learn()
        finally:
            RandomState.restore(outside)

    def _learn(self) -> Average | None:
        if sum_and_count(self._value(self._content)) is not None:
            return Average(over="count")
        draws = self._loss(self._content, seed=0) != self._loss(self._content, seed=1)
        if not draws:
            return self._first_that_fits()
        with _SameDraws():  # type: ignore[no-untyped-call] # torch leaves it untyped
            if self._loss(self._content, seed=0) != self._loss(self._content, seed=1):
                return None
            return self._first_that_fits()

    def _first_that_fits(self) -> Average | None:
        base = self._case(self._content)
        if base is None:
            return None
        ignored = self._ignored_values()
        cases = [base, *self._variants()]
        if not any(case.tells for case in cases):
            return None
        rules = [*self._rules(ignored), Average(over="sum"), Average(over="whole")]
        return next(rule for rule in rules if rule.over == "whole" or all(case.fits(rule) for case in cases))

    def _rules(self, ignored: tuple[int, ...]) -> Iterator[Average]:
        yield AUTO
        if is_integer_tensor(self._rows):
            shifts = (False, True) if self._rows.ndim >= 2 else (False,)
            for weights in ((), *_class_weights(self._objective.function)):
                for shift in shifts if ignored or weights else ():  # all targets are as many in each sample
                    yield Average(over="targets", ignored=ignored, skip_first=shift, class_weights=weights)
        elif isinstance(self._rows, Tensor) and self._rows.is_floating_point():
            yield Average(over="present")
        for path, mask in self._masks():
            for shift in (False, True) if mask.ndim >= 2 else (False,):
                yield Average(over="mask", mask=path, skip_first=shift)
        yield Average(over="samples")

    # What is tried

    def _variants(self) -> Iterator[_Case]:
        """Yield the samples with some targets replaced and with masks thinned out."""
        changes: list[tuple[Tensor, float]] = []
        if isinstance(self._rows, Tensor) and self._rows.is_floating_point():
            changes.append((self._rows, math.nan))
        changes += [(self._rows, value) for value in self._values()]
        changes += [(mask, 0) for _, mask in self._masks()]
        for tensor, value in changes:
            case = self._case(self._with(tensor, _thinned(tensor, value)))
            if case is not None:
                yield case

    def _values(self) -> list[int]:
        """Return values that the loss may ignore among integer targets."""
        if not is_integer_tensor(self._rows):
            return []
        counts = torch.unique(self._all_rows, return_counts=True)
        common = counts[0][counts[1].argsort(descending=True)].tolist()[:3]
        ends = [int(self._all_rows.min()), int(self._all_rows.max())]
        values = [IGNORE_INDEX, -1, *common, *ends, 0, *_whole_numbers(self._objective.function)]
        return list(dict.fromkeys(v for v in values if abs(v) < 2**31))[:MAX_VALUES]

    def _ignored_values(self) -> tuple[int, ...]:
        """Return those of `_values` that do not count: a sample of nothing else adds nothing to the others."""
        if self._count < 2:
            return ()
        others, alone = [0, *range(2, self._count)], [1]
        found = []
        for value in self._values():
            rows = self._rows.clone()
            rows[1] = value
            content = self._with(self._rows, rows)
            whole, rest = self._loss(content), self._loss(_take(content, others, self._count))
            nothing = self._loss(_take(content, alone, self._count)) in (None, 0.0)
            if nothing and whole and rest and abs(whole - rest) <= EQUAL * abs(whole):
                found.append(value)
        return tuple(found)

    def _masks(self) -> list[tuple[str, Tensor]]:
        """Return the tensors of the batch that may be masks or weights, with their paths."""
        return [
            (path, tensor)
            for path, tensor in _tensors(self._content[CONTENT])
            if tensor is not self._rows
            and tensor.ndim in (1, 2)
            and len(tensor) == self._count
            and _may_be_mask(tensor)
        ]

    def _with(self, old: Tensor, new: Tensor) -> dict[str, Any]:
        content = map_tensors(self._content[CONTENT], lambda tensor: new if tensor is old else tensor)
        return {**self._content, CONTENT: content}

    # Trying

    def _case(self, content: Mapping[str, Any]) -> _Case | None:
        """Try samples as a whole and in two parts; None where there is no loss of one of them."""
        if self._count < 2:
            return None
        middle = self._count // 2
        halves = [_take(content, half, self._count) for half in (range(middle), range(middle, self._count))]
        losses = [self._loss(part) for part in (content, *halves)]
        if any(loss is None for loss in losses):
            return None
        whole, one, other = (float(loss) for loss in losses if loss is not None)
        parts = Batch(halves[0][CONTENT], middle), Batch(halves[1][CONTENT], self._count - middle)
        return _Case(parts, whole, (one, other))

    def _loss(self, content: Mapping[str, Any], seed: int = 0) -> float | None:
        """Return the loss of samples; None where there is none: it raised, or is not finite."""
        RandomState.seed(seed)
        try:
            found = float(torch.as_tensor(mean_of(self._value(content))).detach())
        except Exception:  # noqa: BLE001 - the user's code may raise anything at targets that it does not expect
            return None
        return found if math.isfinite(found) else None

    def _value(self, content: Mapping[str, Any]) -> Any:
        batch = Batch(content[CONTENT], self._count)
        if self._objective.takes_model:
            return self._objective.function(self._model, batch.content)
        outputs = content[OUTPUTS]
        if outputs is None:
            assert self._model is not None
            outputs = outputs_of(self._model, batch)
        return self._objective.function(outputs, batch.target)


def can_be_split(outputs: Any) -> bool:
    """Return True for outputs made of tensors in plain tuples, lists and dicts, which `map_tensors` keeps."""
    if type(outputs) is dict:
        return all(map(can_be_split, outputs.values()))
    if type(outputs) in (tuple, list):
        return all(map(can_be_split, outputs))
    return isinstance(outputs, Tensor)


def _take(content: Mapping[str, Any], rows: Sequence[int], samples: int) -> dict[str, Any]:
    chosen = torch.tensor(list(rows))
    return {
        name: map_tensors(part, lambda t: t[chosen] if t.ndim and t.shape[0] == samples else t)
        for name, part in content.items()
    }


def _thinned(tensor: Tensor, value: float) -> Tensor:
    """Return the tensor with `value` at different shares of its samples, and no part of the samples without others."""
    changed = tensor.clone()
    if tensor.ndim == 1:
        changed[1 : len(tensor) // 2] = value
        return changed
    flat = changed.view(len(tensor), -1)
    width = flat.shape[1]
    flat[1, : max(1, width - 1)] = value
    flat[-1, : width // 2] = value
    if width > 2:
        flat[0, 0] = value
    return changed


def _tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a nested value with their paths (`Batch.part`)."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping | tuple | list):
        for name, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            if isinstance(name, int) or (isinstance(name, str) and "." not in name):
                yield from _tensors(part, f"{path}.{name}" if path else str(name))


def _may_be_mask(tensor: Tensor) -> bool:
    if tensor.dtype is torch.bool:
        return True
    values = tensor.detach()
    return bool((values >= 0).all()) and (tensor.is_floating_point() or bool((values <= 1).all()))


class _SameDraws(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Replaces random numbers by numbers that are the same for every sample, and permutations by reversals."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return found
        return tree_map(lambda t: _same(t, permutation="randperm" in str(func)), found)


def _same(drawn: Any, *, permutation: bool) -> Any:
    if not isinstance(drawn, Tensor):
        return drawn
    if permutation:
        return torch.arange(len(drawn) - 1, -1, -1, dtype=drawn.dtype, device=drawn.device)
    if drawn.is_floating_point():
        return drawn.fill_(0.5)
    return drawn.fill_(1 if drawn.numel() and int(drawn.max()) >= 1 else 0)


# What a loss holds: candidates only, each of which is tried


def _held(loss: Any, depth: int = 3) -> Iterator[Any]:
    """Yield the values that a loss refers to: attributes, arguments of a partial, closure, globals in its code."""
    yield loss
    if depth == 0 or isinstance(loss, Tensor | int | float | str):
        return
    inner: list[Any] = []
    if isinstance(loss, functools.partial):
        inner = [loss.func, *loss.args, *loss.keywords.values()]
    elif inspect.isfunction(loss):
        names = inspect.getclosurevars(loss)
        inner = [*names.nonlocals.values(), *names.globals.values(), *loss.__code__.co_consts]
        inner = [
            v for v in inner if isinstance(v, Tensor | nn.Module | int | functools.partial) or inspect.isfunction(v)
        ]
    elif inspect.ismethod(loss):
        inner = [loss.__self__]
    elif isinstance(loss, nn.Module):
        inner = [*vars(loss).values(), *loss.buffers(), *loss.children()]
    elif hasattr(loss, "__dict__") and not inspect.ismodule(loss) and not isinstance(loss, type):
        inner = list(vars(loss).values())
    for value in inner:
        yield from _held(value, depth - 1)


def _class_weights(loss: Any) -> list[tuple[float, ...]]:
    tensors = [v for v in _held(loss) if isinstance(v, Tensor) and v.ndim == 1 and v.is_floating_point() and len(v) > 1]
    return list(dict.fromkeys(tuple(tensor.double().tolist()) for tensor in tensors))


def _whole_numbers(loss: Any) -> list[int]:
    return [v for v in _held(loss) if type(v) is int]
