"""Learning rates by the user's rule, evaluated in the driver: per size, or per size and budget."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import Measurements, ModelSize, steps_of, tokens_of
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.training.user.parts import format_kwargs
from flops_fit_ray.training.user.user_code import user_code

BY_NAME = ("tokens", "steps", "batch_size", "budget")  # arguments that are passed by name where a rule requires them
SIGNATURES = f"write rule(params, size), and of {', '.join(BY_NAME)} what it needs by these names"


def with_rates(spec: SweepSpec, rule: Callable[..., float], found: Measurements) -> Measurements:
    """Return the measurements with the rates that a rule gives for every size.

    A rule is called with N and the size's constructor arguments, and by name with `tokens` (D), `steps`, `batch_size`
    (samples) or `budget` (FLOPs) where it requires them.

    Raises:
        SpecError: the rule takes other arguments, raised, or returned no positive number.
    """
    named = _required_names(rule)
    axes = tuple(replace(axis, sizes=_with_rates(spec, rule, named, found, axis.sizes)) for axis in found.axes)
    return replace(found, sizes=_with_rates(spec, rule, named, found, found.sizes), axes=axes)


def _with_rates(
    spec: SweepSpec, rule: Callable[..., float], named: Sequence[str], found: Measurements, every: Sequence[ModelSize]
) -> tuple[ModelSize, ...]:
    sizes = []
    for size in every:
        if not named:
            sizes.append(replace(size, lr=_rate(rule, size, {})))
            continue
        rates = {}
        for budget in sorted({b.flops for b in spec.budgets} | {run.flops for run in spec.grid.runs}):
            values = {
                "tokens": tokens_of(spec, found, budget, size),
                "steps": steps_of(spec, found, budget, size),
                "batch_size": spec.train.batch_size,
                "budget": budget,
            }
            if values["steps"] > 0:  # the others have no experiment
                rates[str(budget)] = _rate(rule, size, {name: values[name] for name in named})
        sizes.append(replace(size, budget_lr=rates))
    return tuple(sizes)


def _required_names(rule: Callable[..., float]) -> list[str]:
    """Return those of `BY_NAME` that a rule requires."""
    try:
        arguments = inspect.signature(rule).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return []
    required = [a for a in arguments if a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
    named = [a.name for a in required if a.name in BY_NAME]
    others = [a.name for a in required if a.name not in BY_NAME]
    taken = sum(a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD) and a.name not in named for a in arguments)
    if len(others) > 2 or (taken < 2 and not any(a.kind is a.VAR_POSITIONAL for a in arguments)):
        listed = ", ".join(a.name for a in arguments)
        raise SpecError("spec", [f"train.lr: a rule of ({listed}) cannot be called; {SIGNATURES}"])
    return named


def _rate(rule: Callable[..., float], size: ModelSize, named: Mapping[str, Any]) -> float:
    where = ", ".join([format_kwargs(size.kwargs), *(f"{name}={value:g}" for name, value in named.items())])
    with user_code(f"train.lr: for {where} raised"):
        lr = float(rule(size.params, size.kwargs, **named))
    if not (math.isfinite(lr) and lr > 0):
        raise SpecError("spec", [f"train.lr: returned {lr} for {where}; it must be a positive number"])
    return lr
