"""Optimizers of the user's: one, or a list of them as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers as one: Muon for matrices with AdamW for the rest, say.

    Its groups are theirs, in order. Its state has the layout of one optimizer over all groups, so that checkpoints,
    sharding, clipping and the schedule see no difference.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = tuple(parts)
        # The base class refuses a parameter that stands in two groups
        super().__init__([{"params": group["params"]} for part in parts for group in part.param_groups], {})
        self._collect()

    def _collect(self) -> None:
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parts."""
        for part in self._parts:
            part.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        """Take a step with each part, in order."""
        for part in self._parts:
            part.step(closure)

    def train(self) -> None:
        """Put the parts that have a train and an eval mode into train mode."""
        for part in filter(has_modes, self._parts):
            part.train()  # type: ignore[attr-defined] # torch's own have none

    def eval(self) -> None:
        """Put the parts that have a train and an eval mode into eval mode."""
        for part in filter(has_modes, self._parts):
            part.eval()  # type: ignore[attr-defined] # torch's own have none

    def state_dict(self) -> dict[str, Any]:
        """Return the states with the parameters of all parts numbered through."""
        found: dict[str, Any] = {"state": {}, "param_groups": [], "parts": []}
        for part, first in self._numbered():
            own = part.state_dict()
            found["state"] |= {first + number: value for number, value in own.pop("state").items()}
            found["param_groups"] += _renumbered(own.pop("param_groups"), first)
            found["parts"].append(own)  # what an optimizer adds to its state
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state of the same parts."""
        groups, more = list(state_dict["param_groups"]), list(state_dict["parts"])
        if (len(groups), len(more)) != (len(self.param_groups), len(self._parts)):
            raise ValueError(f"saved state has {len(groups)} parameter groups, and these optimizers {len(self)}")
        for (part, first), own in zip(self._numbered(), more, strict=True):
            mine, groups = groups[: len(part.param_groups)], groups[len(part.param_groups) :]
            numbers = range(first, first + _num_params(part))
            states = {n - first: value for n, value in state_dict["state"].items() if n in numbers}
            part.load_state_dict({**own, "state": states, "param_groups": _renumbered(mine, -first)})
        self._collect()

    def __len__(self) -> int:
        return len(self.param_groups)

    def _numbered(self) -> Iterator[tuple[torch.optim.Optimizer, int]]:
        """Yield the parts, each with the number of its first parameter."""
        first = 0
        for part in self._parts:
            yield part, first
            first += _num_params(part)


def _num_params(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _renumbered(groups: Sequence[Mapping[str, Any]], by: int) -> list[dict[str, Any]]:
    return [{**group, "params": [number + by for number in group["params"]]} for group in groups]


def has_modes(optimizer: torch.optim.Optimizer) -> bool:
    """Return True for an optimizer that evaluates with other weights than it trains with (schedule-free ones)."""
    if isinstance(optimizer, CombinedOptimizer):
        return any(map(has_modes, optimizer._parts))
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))


def user_optimizer(factory: Callable[[nn.Module, float], Any], model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Create the optimizer of a user's factory; a list of them becomes one.

    Raises:
        TypeError: the factory returned something else.
        ValueError: two of its optimizers have the same parameter.
    """
    made = factory(model, lr)
    parts = made if isinstance(made, list | tuple) else [made]
    wrong = [type(part).__name__ for part in parts if not isinstance(part, torch.optim.Optimizer)]
    if wrong or not parts:
        what = f"a {type(made).__name__}" if parts is not made else f"a {type(made).__name__} of {wrong or 'nothing'}"
        raise TypeError(f"train.optimizer returned {what}, not a torch.optim.Optimizer or a list of them")
    return parts[0] if len(parts) == 1 else CombinedOptimizer(parts)
