"""One training step of a model for its counts: on the meta device, which allocates nothing, or else on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flops_fit_ray.errors import SpecError
from flops_fit_ray.training.data import Batch
from flops_fit_ray.training.preflight._flops import FlopCount, LossError, count_flops
from flops_fit_ray.training.preflight._params import memory_of
from flops_fit_ray.training.preflight._residue import Residue
from flops_fit_ray.training.user.losses import Objective
from flops_fit_ray.training.user.parts import UserParts, build, format_kwargs
from flops_fit_ray.training.user.user_code import describe_error, user_code
from flops_fit_ray.training.user.wrong_samples import MixedTypesError, sample_fault

_T = TypeVar("_T")

META, CPU = torch.device("meta"), torch.device("cpu")
MAX_CPU_PARAMS = 1_000_000_000  # built with real weights where the meta device cannot run a model
MAX_CPU_FLOPS = 3e11  # seconds on a few cores
NO_LOSS = ", without the loss, which cannot run there"
GPU_WORDS = ("cuda", "triton", "gpu")
WAY_OUT = "set model.flops_per_token to a function (model) -> FLOPs per token, and the model is not run to be counted"


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """A model, and what was counted while it ran."""

    model: nn.Module
    memory: Mapping[str, tuple[int, int]]  # of the parameters as they were built
    flops: FlopCount | None  # None: not run, because the user counts them
    source: str


def measured_run(
    user: UserParts, kwargs: Mapping[str, Any], batch: Batch, residue: Residue, *, autocast: bool = True
) -> MeasuredRun:
    """Build a model and train one step of it. With a count of the user's it is built alone: it may need a GPU.

    Args:
        residue: removed where the model is tried again on the CPU.
        autocast: products of floats of 32 and 16 bits may be meant.

    Raises:
        SpecError: the model cannot be built or run.
    """
    model = built_on_meta(lambda: build(user, kwargs))
    memory = memory_of(model)
    to_meta(model)
    if user.flops_per_token is not None or not any(p.requires_grad for p in model.parameters()):
        return MeasuredRun(model=model, memory=memory, flops=None, source="model.flops_per_token")
    found = _on_meta(user, kwargs, batch, model, memory, autocast)
    if found is not None:
        return found
    del model  # what it leaves behind is to be seen
    residue.remove()
    return _on_cpu(user, kwargs, batch)


def _on_meta(
    user: UserParts,
    kwargs: Mapping[str, Any],
    batch: Batch,
    model: nn.Module,
    memory: Mapping[str, tuple[int, int]],
    autocast: bool,
) -> MeasuredRun | None:
    """Count on the meta device; None where that cannot be done, and the model is small enough for the CPU.

    Raises:
        SpecError: it cannot be done, and the model is too large.
    """
    source = "counted on the meta device"
    objective = _with_loss_on_meta(user)
    try:
        with user_code(_fails(kwargs), but=Exception), META:
            flops = count_flops(objective, model, batch.to(META), autocast=autocast)
    except SpecError:
        raise
    except LossError:
        flops = _without_loss(objective, model, batch)
        if flops.total <= MAX_CPU_FLOPS and _size(model) <= MAX_CPU_PARAMS:
            return None
        source += NO_LOSS
    except Exception as e:  # the user's code may raise anything
        if isinstance(e, MixedTypesError) and (fault := sample_fault(e, model, batch)):
            raise SpecError("spec", [fault]) from e
        if _size(model) > MAX_CPU_PARAMS:
            raise _fault(kwargs, e, f"; with {_size(model):,} parameters it is not tried on the CPU: {WAY_OUT}") from e
        return None
    return MeasuredRun(model=model, memory=memory, flops=flops, source=source)


def _on_cpu(user: UserParts, kwargs: Mapping[str, Any], batch: Batch) -> MeasuredRun:
    source = "counted on the CPU"
    model = build(user, kwargs)
    memory = memory_of(model)
    try:
        with user_code(_fails(kwargs), but=Exception):
            flops = count_flops(user.objective, model, batch)
    except SpecError:
        raise
    except LossError:  # the smoke test says what is wrong with it
        flops = _without_loss(user.objective, model, batch)
        source += NO_LOSS
    except Exception as e:  # the user's code may raise anything; the fault names its key
        if fault := sample_fault(e, model, batch):
            raise SpecError("spec", [fault]) from e
        raise _fault(kwargs, e) from e
    return MeasuredRun(model=model, memory=memory, flops=flops, source=source)


def _without_loss(objective: Objective, model: nn.Module, batch: Batch) -> FlopCount:
    for p in model.parameters():
        p.grad = None
    device = next((p.device for p in model.parameters()), CPU)
    with device:
        return count_flops(objective, model, batch.to(device), with_loss=False)


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _fault(kwargs: Mapping[str, Any], error: Exception, way_out: str = "") -> SpecError:
    text = describe_error(error)
    if not way_out and (isinstance(error, NotImplementedError) or any(w in text.lower() for w in GPU_WORDS)):
        way_out = f"; {WAY_OUT}"
    return SpecError("spec", [f"{_fails(kwargs)} {text}{way_out}"])


def _fails(kwargs: Mapping[str, Any]) -> str:
    return f"model.target: {format_kwargs(kwargs)} fails on a first batch:"


def model_on_meta(user: UserParts, kwargs: Mapping[str, Any]) -> nn.Module:
    """Build a model without numbers."""
    model = built_on_meta(lambda: build(user, kwargs))
    to_meta(model)
    return model


def built_on_meta(make: Callable[[], _T]) -> _T:
    """Build on the meta device; on the CPU where a constructor needs numbers."""
    try:
        with META:
            return make()
    except NotImplementedError:
        pass
    except SpecError as e:
        if "meta" not in str(e).lower():
            raise
    return make()


def to_meta(model: nn.Module) -> None:
    """Move to the meta device in place. What modules share they share there too, which `Module.to` does not keep."""
    moved: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.device.type != "meta":
                    if id(tensor) not in moved:
                        moved[id(tensor)] = _meta_like(tensor)
                    tensors[name] = moved[id(tensor)]  # type: ignore[assignment] # a parameter for a parameter


def _meta_like(tensor: Tensor) -> Tensor:
    made = torch.empty_like(tensor, device=META)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def _with_loss_on_meta(user: UserParts) -> Objective:
    """The objective, with the weights of a loss that is a module on the meta device."""
    loss, objective = user.loss, user.objective
    if not isinstance(loss, nn.Module):
        return objective
    weights = {n: _meta_like(t) for n, t in (*loss.named_parameters(), *loss.named_buffers())}
    return Objective(lambda *args: torch.func.functional_call(loss, weights, args), objective.takes_model)
