"""The models at other values on a second axis, each measured as the sizes of the sweep are."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import AxisSizes, ModelSize, size_kwargs, size_label
from flops_fit_ray.spec import AxisSection, SizeValue, SweepSpec, same_value
from flops_fit_ray.training.preflight._sweep_sizes import Measure, measured_sizes
from flops_fit_ray.training.user.wrong_parts import argument_faults, arguments_of_spec

DEFAULT = "the constructor's default"


def measured_axes(spec: SweepSpec, measure: Measure, counting: int, model: Callable[..., Any]) -> tuple[AxisSizes, ...]:
    """Measure every axis of a spec.

    Args:
        measure: measures a size that is a mapping of arguments.
        counting: rule of N and FLOPs by which `measure` counts.
        model: class or factory that is measured.

    Raises:
        SpecError: the model does not take an axis, or at a value no size can be built; all at once.
    """
    faults: list[str] = []
    given = arguments_of_spec(spec)
    for name in spec.model.axes:
        wrong = argument_faults(model, [*given, ("model.axes", name)], "model.kwargs")
        faults += [fault for fault in wrong if fault.startswith("model.axes:")]
    if faults:
        raise SpecError("spec", faults)
    found = []
    for name, axis in spec.model.axes.items():
        try:
            found.append(_measured(spec, name, axis, measure, counting, model))
        except SpecError as e:
            faults += e.faults
    if faults:
        raise SpecError("spec", faults)
    return tuple(found)


def _measured(
    spec: SweepSpec, name: str, axis: AxisSection, measure: Measure, counting: int, model: Callable[..., Any]
) -> AxisSizes:
    base, source = base_value(model, spec.model.kwargs, name)
    values = [value for value in axis.values if not same_value(value, base)]
    if not values:
        fault = f"model.axes.{name}: {base!r} is the sweep's own value ({source}); give others to compare"
        raise SpecError("spec", [fault])
    sizes = [size for value in values for size in _at(spec, name, value, measure, counting, model)]
    return AxisSizes(name=name, base=base, base_source=source, sizes=tuple(sizes))


def base_value(model: Callable[..., Any], kwargs: Mapping[str, Any], name: str) -> tuple[Any, str]:
    """Return the value that the sweep itself has on an axis, and where it is from.

    Raises:
        SpecError: it is not known, or it is no plain value.
    """
    found, source = kwargs.get(name, inspect.Parameter.empty), "model.kwargs"
    while found is inspect.Parameter.empty and isinstance(model, functools.partial):
        found, model = model.keywords.get(name, found), model.func
        source = "the target's own keywords" if found is not inspect.Parameter.empty else source
    if found is inspect.Parameter.empty:
        source = DEFAULT
        try:
            parameter = inspect.signature(model).parameters.get(name)
        except (TypeError, ValueError):  # some builtins have none
            parameter = None
        found = inspect.Parameter.empty if parameter is None else parameter.default
    if found is inspect.Parameter.empty:
        fault = f"model.axes.{name}: the sweep itself has no value of it; give one in model.kwargs"
        raise SpecError("spec", [fault])
    if not (found is None or isinstance(found, bool | int | float | str)):
        fault = (
            f"model.axes.{name}: the sweep's own value is a {type(found).__name__} ({source}); an axis has plain values"
        )
        raise SpecError("spec", [fault])
    return found, source


def _at(
    spec: SweepSpec, name: str, value: Any, measure: Measure, counting: int, model: Callable[..., Any]
) -> list[ModelSize]:
    """Measure the sizes of the sweep at a value, each under the name that it has in the sweep.

    Raises:
        SpecError: none of them can be built.
    """
    mapped: dict[int | str, ModelSize] = {}

    def of_value(size: SizeValue) -> ModelSize:
        plain = size_label(size)
        found = measure({**size_kwargs(spec, size), name: value})
        mapped[plain] = replace(found, axis={name: value}, without_axis=plain)
        return replace(found, size=plain)  # a ladder asks for the number

    shown = f"model.axes.{name}: at {name} = {value}"
    try:
        measured_sizes(spec, of_value, counting, model, all_needed=False)
    except SpecError as e:
        raise SpecError("spec", [f"{shown} no size can be built: {fault}" for fault in e.faults[:3]]) from e
    return list(mapped.values())
