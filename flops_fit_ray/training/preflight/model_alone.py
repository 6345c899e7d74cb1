"""N of every size where there are no data to run a model on: C = 6·N·D (Kaplan et al. 2020), unless the user counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import COUNTING, DataFacts, Measurements, ModelSize, size_kwargs, size_label
from flops_fit_ray.spec import NO_DATA, SizeValue, SweepSpec
from flops_fit_ray.training.preflight._axis_sizes import measured_axes
from flops_fit_ray.training.preflight._lr_rule import with_rates
from flops_fit_ray.training.preflight._measured_run import built_on_meta
from flops_fit_ray.training.preflight._params import count_params, declared_params, default_dtype
from flops_fit_ray.training.preflight._sweep_sizes import measured_sizes
from flops_fit_ray.training.user.parts import UserParts, format_kwargs
from flops_fit_ray.training.user.user_code import user_code
from flops_fit_ray.training.user.wrong_parts import argument_faults, model_kind_faults

TRIED_SIZES = (64, 128, 256, 8)  # of a model whose sweep is not known yet


def measure_alone(spec: SweepSpec, user: UserParts, counting: int = COUNTING) -> Measurements:
    """Measure every size of the sweep without data. A model need not be an nn.Module if it has `num_params()`.

    Raises:
        SpecError: the model cannot be built, or its N is not known.
    """
    sizes, refused = measured_sizes(spec, lambda size: _measure(spec, user, size), counting, user.model)
    per_sample = spec.data.tokens_per_sample or 1
    data = DataFacts(
        train_samples=None,
        eval_samples=0,
        tokens_per_sample=per_sample,
        token_unit="one token",  # noqa: S106 - no password
        eval_source="none",
        fingerprint=NO_DATA,
    )
    axes = measured_axes(spec, lambda size: _measure(spec, user, size), counting, user.model)
    found = Measurements(
        sizes=tuple(sizes),
        data=data,
        skipped=tuple(refused),
        counting=counting,
        default_dtype=default_dtype(),
        axes=axes,
    )
    return found if user.lr is None else with_rates(spec, user.lr, found)


def model_faults(model_cls: Any, size_param: str | None, model_kwargs: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a model at whatever size it can be built; empty where nothing can be told."""
    if not callable(model_cls) or not isinstance(size_param, str):
        return []
    if wrong := model_kind_faults(model_cls):
        return wrong
    faults: list[str] = []
    for size in TRIED_SIZES:
        kwargs = {size_param: size}
        try:
            _counted(_built(lambda: model_cls(**{**model_kwargs, **kwargs}), kwargs), kwargs)  # noqa: B023 - called at once
        except SpecError as e:
            faults += e.faults
        else:
            return []
    if "TypeError" in faults[0]:
        given = [*(("model.kwargs", name) for name in model_kwargs), ("model.size_param", size_param)]
        faults = argument_faults(model_cls, given, "model.kwargs") or faults
    return faults[:1]


def _measure(spec: SweepSpec, user: UserParts, size: SizeValue) -> ModelSize:
    kwargs = size_kwargs(spec, size)
    model = _built(lambda: user.model(**kwargs), kwargs)
    params, source = _counted(model, kwargs)
    known = isinstance(model, nn.Module)
    per_token = 6.0 * params
    if user.flops_per_token is not None:
        with user_code(f"model.flops_per_token: for {format_kwargs(kwargs)} raised"):
            per_token = float(user.flops_per_token(model))
    return ModelSize(
        size=size_label(size),
        kwargs=kwargs,
        params=params,
        params_total=sum(p.numel() for p in model.parameters()) if known else params,
        params_non_embedding=params,
        params_source=source,
        flops_per_token=per_token,
        flops_source="6·N, without data" if user.flops_per_token is None else "model.flops_per_token",
    )


def _built(make: Callable[[], Any], kwargs: Mapping[str, Any]) -> Any:
    """Build on the meta device, which allocates no weights; on the CPU what cannot be built there."""

    def build() -> Any:
        with user_code(f"model.target: {format_kwargs(kwargs)} raised", but=NotImplementedError):
            return make()

    return built_on_meta(build)


def _counted(model: Any, kwargs: Mapping[str, Any]) -> tuple[int, str]:
    if not (isinstance(model, nn.Module) or hasattr(model, "num_params")):
        raise SpecError(
            "spec",
            [
                f"model.target: {format_kwargs(kwargs)} made a {type(model).__name__}, no nn.Module, and it has no "
                "num_params()"
            ],
        )
    if isinstance(model, nn.Module):
        counted = count_params(model)
        params, source = counted.params, counted.source
    else:
        params, source = declared_params(model) or 0, "num_params() of the model"
    if params <= 0:
        raise SpecError("spec", [f"model.target: {format_kwargs(kwargs)} has N = {params}, by {source}"])
    return params, source
