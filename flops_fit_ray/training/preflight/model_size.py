"""N and FLOPs per token of every size, measured on the meta device, which allocates no weights."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import (
    Measurements,
    ModelSize,
    size_kwargs,
    size_label,
)
from flops_fit_ray.spec import SizeValue, SweepSpec
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.preflight._data_facts import describe_data, refuse_large_ids
from flops_fit_ray.training.preflight._lr_rule import with_rates
from flops_fit_ray.training.preflight._sweep_sizes import measured_sizes
from flops_fit_ray.training.user.layers import EMBEDDINGS, embedding_only_params
from flops_fit_ray.training.user.losses import Objective, outputs_of
from flops_fit_ray.training.user.parts import UserParts, build, format_kwargs, load_user_parts
from flops_fit_ray.training.user.smoke_test import smoke_test_parts
from flops_fit_ray.training.user.user_code import command_line_of, user_code
from flops_fit_ray.waiting import waiting

_T = TypeVar("_T")

FORWARD_BACKWARD = 3  # backward = 2 × forward (Kaplan et al. 2020, section 2.1)


def measure_spec(spec: SweepSpec, base: Path) -> Measurements:
    """Load the user's parts and measure them.

    Raises:
        SpecError: a part cannot be used.
    """
    with command_line_of(str(base)):
        return measure_sizes(spec, load_user_parts(spec, base))


def measure_sizes(spec: SweepSpec, user: UserParts) -> Measurements:
    """Measure every size of the sweep, and the data.

    Raises:
        SpecError: samples or sizes cannot be used; all such faults at once.
    """
    batch, facts, probe = describe_data(spec, user)
    tokens = user.num_tokens(batch, spec.data.tokens_per_sample)
    with waiting("counting parameters and FLOPs of every size"):
        sizes, refused = measured_sizes(spec, lambda size: measure_size(spec, user, size, batch, tokens))
    refuse_large_ids(user, sizes)
    with waiting("running the smallest model on two samples"):
        loss = smoke_test_parts(user, min(sizes, key=lambda s: s.params_total), batch, spec)
    found = Measurements(sizes=tuple(sizes), data=facts, skipped=tuple(refused), probe=probe, loss=loss)
    return found if user.lr is None else with_rates(spec, user.lr, found)


def measure_size(spec: SweepSpec, user: UserParts, size: SizeValue, batch: Batch, tokens: int) -> ModelSize:
    """Measure N and FLOPs per token of one size; `batch` has `tokens` tokens.

    Raises:
        SpecError: the model cannot be built or run, has no parameters, or no FLOPs were counted.
    """
    kwargs = size_kwargs(spec, size)
    model, per_token, source, uncounted = _model_and_flops(user, kwargs, batch, tokens)
    params, params_source = count_params(model)
    total = sum(p.numel() for p in model.parameters())
    if params <= 0 or total == 0:
        raise SpecError("spec", [f"model.sizes: {format_kwargs(kwargs)} has no parameters"])
    scalars = [name for name, p in model.named_parameters() if p.ndim == 0]
    if spec.shard_model and scalars:
        raise SpecError("spec", [f"shard_model: {scalars[0]} has no dimension to shard; give it the shape (1,)"])
    if not per_token > 0:
        raise SpecError(
            "spec",
            [
                f"model.sizes: {format_kwargs(kwargs)}: no FLOPs were counted; set model.flops_per_token to a "
                "function (model) -> FLOPs per token"
            ],
        )
    return ModelSize(
        size=size_label(size),
        kwargs=kwargs,
        params=params,
        params_total=total,
        params_non_embedding=_non_embedding(model),
        params_source=params_source,
        flops_per_token=per_token,
        flops_source=source,
        uncounted=uncounted,
        modules=_modules(model),
        tables=_tables(model),
    )


def _modules(model: nn.Module) -> dict[str, int]:
    names = [type(m).__name__ for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    return dict(Counter(names).most_common())


def _tables(model: nn.Module) -> tuple[tuple[int, int], ...]:
    tables = {id(m.weight): m for m in model.modules() if isinstance(m, EMBEDDINGS)}
    return tuple((int(m.num_embeddings), int(m.embedding_dim)) for m in tables.values())


def _model_and_flops(
    user: UserParts, kwargs: Mapping[str, Any], batch: Batch, tokens: int
) -> tuple[nn.Module, float, str, tuple[str, ...]]:
    """Build the model. Returns it, its FLOPs per token, their source, and the modules that were not counted.

    FLOPs per token = 3 * forward FLOPs of a batch / tokens of the batch; the backward pass takes twice the forward.
    """
    user_count = user.flops_per_token
    if user_count is not None:  # the model is built, but not run: it may need a GPU
        model = on_meta_device(lambda device: build(user, kwargs).to(device))
        with user_code(f"model.flops_per_token: for {format_kwargs(kwargs)} raised"):
            return model, float(user_count(model)), "model.flops_per_token", ()

    def count(device: torch.device) -> tuple[nn.Module, int, str, tuple[str, ...]]:
        model = build(user, kwargs).to(device)
        # FlopCounterMode does not see the CPU's fused attention kernel, only matmuls
        with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext():
            flops, uncounted = _forward_flops(user.objective, model, kwargs, batch.to(device))
        return model, flops, "counted on the CPU" if device.type == "cpu" else "counted on the meta device", uncounted

    model, flops, source, uncounted = on_meta_device(count)
    return model, FORWARD_BACKWARD * flops / tokens, source, uncounted


def on_meta_device(work: Callable[[torch.device], _T]) -> _T:
    """Run `work` on the meta device; on the CPU where .item(), numpy or data-dependent shapes rule that out."""
    try:
        with torch.device("meta"):
            return work(torch.device("meta"))
    except NotImplementedError:
        pass
    except SpecError as e:
        if "meta" not in str(e).lower():
            raise
    return work(torch.device("cpu"))


def _forward_flops(
    objective: Objective, model: nn.Module, kwargs: Mapping[str, Any], batch: Batch
) -> tuple[int, tuple[str, ...]]:
    model.train()
    with (
        user_code(f"model.target: {format_kwargs(kwargs)} fails on a first batch:"),
        FlopCounterMode(display=False) as counter,
    ):
        if objective.takes_model:  # it may call the model any number of times
            objective(model, batch)
        else:
            outputs_of(model, batch)
    return int(counter.get_total_flops()), uncounted_modules(model, counter)


def uncounted_modules(model: nn.Module, counter: FlopCounterMode) -> tuple[str, ...]:
    """Return the modules with matrices for which no FLOPs were counted, without embeddings.

    A matrix may be used by its parent module (nn.MultiheadAttention does so with its projections): if FLOPs were
    counted in the parent outside of its children, its children are assumed to be counted there.
    """
    root = type(model).__name__
    seen = {str(name): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    counts = {name: seen.get(f"{root}.{name}" if name else root, 0) for name, _ in model.named_modules()}
    tables = embedding_only_params(model)
    found = []
    for name, module in model.named_modules():
        matrices = [p for p in module.parameters(recurse=False) if p.ndim >= 2 and id(p) not in tables]
        if not matrices or counts[name] or isinstance(module, EMBEDDINGS):
            continue
        parent = name.rpartition(".")[0]
        siblings = sum(counts[f"{parent}.{child}" if parent else child] for child, _ in _children(model, parent))
        if counts[parent] <= siblings:
            found.append(name or root)
    return tuple(found)


def _children(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    return list(model.get_submodule(name).named_children())


def count_params(model: nn.Module) -> tuple[int, str]:
    """Count N: the model's own `num_params`, else all parameters without embeddings. Returns it and its definition.

    An embedding table does no arithmetic; an output head does, tied or not. The same runs can give N ~ C^0.37 or C^0.70
    under different definitions, so every plan states its own.
    """
    declared = getattr(model, "num_params", None)
    if declared is not None:
        return int(declared() if callable(declared) else declared), "num_params() of the model"
    tables = embedding_only_params(model)
    if not tables:
        return sum(p.numel() for p in model.parameters()), "all parameters"
    counted = sum(p.numel() for p in model.parameters() if id(p) not in tables)
    return counted, "all parameters but lookup tables (head included)"


def _non_embedding(model: nn.Module) -> int:
    """Count parameters without embeddings and without the head: the last layer with the shape of the largest table."""
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, EMBEDDINGS)}
    rest = [p for p in model.parameters() if id(p) not in tables]
    if tables:
        vocabulary = max(tables.values(), key=lambda weight: weight.shape[0]).shape
        heads = [p for p in rest if p.shape == vocabulary]  # others may have that shape; the head is last
        rest = [p for p in rest if not heads or p is not heads[-1]]
    return sum(p.numel() for p in rest)
