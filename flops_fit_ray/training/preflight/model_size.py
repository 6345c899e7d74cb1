"""N and FLOPs per token of every size, measured on the meta device, which allocates no weights."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import (
    COUNTING,
    FIRST_RULE,
    FirstCount,
    FirstLoss,
    Measurements,
    ModelSize,
    size_kwargs,
    size_label,
)
from flops_fit_ray.spec import SizeValue, SweepSpec
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.lazy_compiler import import_compiler_late
from flops_fit_ray.training.preflight._axis_sizes import measured_axes
from flops_fit_ray.training.preflight._data_facts import describe_data, refuse_large_ids
from flops_fit_ray.training.preflight._lr_rule import with_rates
from flops_fit_ray.training.preflight._measured_run import measured_run, model_on_meta
from flops_fit_ray.training.preflight._params import ParamCount, count_params, default_dtype
from flops_fit_ray.training.preflight._residue import Residue
from flops_fit_ray.training.preflight._sweep_sizes import measured_sizes
from flops_fit_ray.training.user.first_loss import first_loss
from flops_fit_ray.training.user.layers import EMBEDDINGS, blocks_of
from flops_fit_ray.training.user.parts import UserParts, format_kwargs, load_user_parts
from flops_fit_ray.training.user.smoke_test import is_large, smoke_test_parts
from flops_fit_ray.training.user.source_code import watch_sources
from flops_fit_ray.training.user.user_code import command_line_of, user_code
from flops_fit_ray.training.user.wrong_samples import may_be_cast
from flops_fit_ray.waiting import waiting

KEPT_BYTES = 2**28  # of the user's data, between two measurements
FORWARD_BACKWARD = 3  # of the first rule of counting


class SpecMeasurer:
    """Measures one spec with other budgets again and again, as the choice of budgets does.

    Sizes are measured once. So are data made of tensors read once, unless they are many: those of other kinds may have
    a state, and no process should hold much that it does not train on.

    Args:
        base: the directory of the user's code.
    """

    def __init__(self, base: Path) -> None:
        watch_sources(base)
        self._base = base
        self._known = Known()
        self._parts: tuple[dict[str, Any], UserParts] | None = None

    def measure(self, spec: SweepSpec, counting: int = COUNTING) -> Measurements:
        """Load the user's parts and measure them, with N and FLOPs by the rule `counting`.

        Raises:
            SpecError: a part cannot be used.
        """
        rest = spec.model_dump(exclude={"budgets", "budgets_for", "grid"})
        with command_line_of(str(self._base)):
            before = self._parts
            user = before[1] if before is not None and before[0] == rest else load_user_parts(spec, self._base)
            found = measure_sizes(spec, user, counting, self._known)
        self._parts = (rest, user) if 0 < found.data.tensor_bytes <= KEPT_BYTES else None
        return found


@contextlib.contextmanager
def removing_residue(user: UserParts) -> Iterator[Residue]:
    """Remove what models on the meta device leave behind in the block."""
    residue = Residue(getattr(user.model, "func", user.model), user.loss)
    try:
        yield residue
    finally:
        residue.close()


@dataclass
class Known:
    """Measurements of a spec that hold for any budgets, by precision and the constructor's arguments."""

    sizes: dict[str, ModelSize] = field(default_factory=dict)
    first_losses: dict[str, FirstLoss | None] = field(default_factory=dict)


def measure_sizes(
    spec: SweepSpec, user: UserParts, counting: int = COUNTING, known: Known | None = None
) -> Measurements:
    """Measure every size of the sweep, and the data.

    Args:
        counting: rule of N and FLOPs, that of the sweep that is continued.
        known: what was measured for other budgets of the same spec; new sizes are added.

    Raises:
        SpecError: samples or sizes cannot be used; all such faults at once.
    """
    import_compiler_late()
    batch, facts, probe = describe_data(spec, user)
    tokens = user.num_tokens(batch, spec.data.tokens_per_sample)
    known = Known() if known is None else known

    def measure(size: SizeValue) -> ModelSize:
        name = f"{spec.train.precision} {size_kwargs(spec, size)!r}"  # the precision decides how a model is run
        if name not in known.sizes:
            known.sizes[name] = measure_size(spec, user, size, batch, tokens, residue)
        return known.sizes[name].counted_by(counting)

    # Budgets that are chosen ask for more sizes, again and again
    so_far = f", {len(known.sizes)} so far" if known.sizes else ""
    with waiting(f"counting parameters and FLOPs of every size{so_far}"), removing_residue(user) as residue:
        sizes, refused = measured_sizes(spec, measure, counting, user.model)
        axes = measured_axes(spec, measure, counting, user.model)
    refuse_large_ids(user, [*sizes, *(size for axis in axes for size in axis.sizes)])
    with waiting("running the smallest model on two samples"):
        smallest = min(sizes, key=lambda s: s.params_total)
        with removing_residue(user) if is_large(smallest) else contextlib.nullcontext():
            loss = smoke_test_parts(user, smallest, batch, spec, lambda: model_on_meta(user, smallest.kwargs))
            name = repr(smallest.kwargs)
            if name not in known.first_losses:
                runs = not is_large(smallest) and user.flops_per_token is None
                found = first_loss(replace(user, loss_facts=loss), smallest, batch) if runs else None
                known.first_losses[name] = found
    measured = Measurements(
        sizes=tuple(sizes), data=facts, skipped=tuple(refused), probe=probe, loss=loss, counting=counting,
        default_dtype=default_dtype(), first_loss=known.first_losses[name], axes=axes,
    )  # fmt: skip
    return measured if user.lr is None else with_rates(spec, user.lr, measured)


def measure_size(
    spec: SweepSpec, user: UserParts, size: SizeValue, batch: Batch, tokens: int, residue: Residue
) -> ModelSize:
    """Measure N and FLOPs per token of one size; `batch` has `tokens` tokens.

    Raises:
        SpecError: the model cannot be built or run, has no parameters, or no FLOPs were counted.
    """
    kwargs = size_kwargs(spec, size)
    run = measured_run(user, kwargs, batch, residue, autocast=may_be_cast(batch, spec.train.precision))
    model, flops = run.model, run.flops
    counted = count_params(model, () if flops is None else flops.matrices, run.memory)
    if counted.params <= 0:
        frozen = f" that train; all {counted.frozen} are frozen" if counted.frozen else ""
        raise SpecError("spec", [f"model.sizes: {format_kwargs(kwargs)} has no parameters{frozen}"])
    scalars = [name for name, p in model.named_parameters() if p.ndim == 0]
    if spec.shard_model and scalars:
        raise SpecError("spec", [f"shard_model: {scalars[0]} has no dimension to shard; give it the shape (1,)"])
    if spec.train.activation_checkpointing and not blocks_of(model):
        raise SpecError(
            "spec",
            [
                f"train.activation_checkpointing: {type(model).__name__} has no blocks, modules with weights in a "
                "ModuleList, ModuleDict or Sequential, that could run again; set it to false, or keep its blocks in one"
            ],
        )
    per_token = _user_flops(user, model, kwargs) if flops is None else flops.total / tokens
    if not per_token > 0:
        raise SpecError(
            "spec",
            [
                f"model.sizes: {format_kwargs(kwargs)}: no FLOPs were counted; set model.flops_per_token to a "
                "function (model) -> FLOPs per token"
            ],
        )
    forward = per_token / FORWARD_BACKWARD if flops is None else flops.forward / tokens
    return ModelSize(
        size=size_label(size),
        kwargs=kwargs,
        params=counted.params,
        params_total=counted.total,
        params_frozen=counted.frozen,
        params_non_embedding=counted.non_embedding,
        params_source=counted.source,
        flops_per_token=per_token,
        flops_source=run.source,
        first_count=_first_count(counted, per_token, forward, run.source),
        uncounted=() if flops is None else flops.uncounted,
        without_gradient=() if flops is None else flops.without_gradient,
        modules=_modules(model),
        tables=_tables(model),
    )


def _first_count(counted: ParamCount, per_token: float, forward: float, source: str) -> FirstCount | None:
    """Return N and FLOPs as earlier versions counted them; None where they are the same."""
    first = FORWARD_BACKWARD * forward
    if (counted.first_params, first) == (counted.params, per_token) or first <= 0 or counted.first_params <= 0:
        return None
    return FirstCount(
        params=counted.first_params,
        params_source=counted.first_source,
        flops_per_token=first,
        flops_source=f"{source}, {FIRST_RULE}",
    )


def _user_flops(user: UserParts, model: nn.Module, kwargs: Mapping[str, Any]) -> float:
    assert user.flops_per_token is not None
    with user_code(f"model.flops_per_token: for {format_kwargs(kwargs)} raised"):
        return float(user.flops_per_token(model))


def _modules(model: nn.Module) -> dict[str, int]:
    names = [type(m).__name__ for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    return dict(Counter(names).most_common())


def _tables(model: nn.Module) -> tuple[tuple[int, int], ...]:
    tables = {id(m.weight): m for m in model.modules() if isinstance(m, EMBEDDINGS)}
    return tuple((int(m.num_embeddings), int(m.embedding_dim)) for m in tables.values())
