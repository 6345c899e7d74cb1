"""The sizes of a sweep, each measured: those that the spec names, else a ladder of what the model accepts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import (
    ModelSize,
    auto_candidates,
    between,
    expected_centre,
    own_range,
    requested_sizes,
    rung_targets,
)
from flops_fit_ray.spec import SizeValue, SweepSpec
from flops_fit_ray.training.user.wrong_parts import argument_faults, arguments_of_spec

MAX_AUTO_SIZE = 1 << 20

Measure = Callable[[SizeValue], ModelSize]


def measured_sizes(
    spec: SweepSpec, measure: Measure, counting: int, model: Callable[..., Any], *, all_needed: bool = True
) -> tuple[list[ModelSize], list[str]]:
    """Measure every size of the sweep. Returns those that the model accepts, and the faults of the others.

    Args:
        counting: rule of N and FLOPs by which `measure` counts.
        model: class or factory that is measured.
        all_needed: every size that the spec names is.

    Raises:
        SpecError: `measure` refused a size that the spec names, or every size.
    """
    wanted = requested_sizes(spec)
    sizes, refused = _measured_ladder(spec, measure, counting) if wanted is None else _measured(wanted, measure)
    if refused and ((all_needed and wanted is not None) or not sizes):
        wrong: list[str] = []
        if any("TypeError" in fault for fault in refused):
            wrong = argument_faults(model, arguments_of_spec(spec), "model.kwargs")
        raise SpecError("spec", wrong or _each_kind_once(refused))
    return sizes, refused


def _each_kind_once(faults: Iterable[str]) -> list[str]:
    """Return one fault of those that differ in numbers alone, as the same fault at every size does."""
    kinds: dict[str, list[str]] = {}
    for fault in faults:
        kinds.setdefault(re.sub(r"[\d.]+", "#", fault), []).append(fault)
    return [some[0] + (f" (and {len(some) - 1} other sizes)" if len(set(some)) > 1 else "") for some in kinds.values()]


def _measured(wanted: Iterable[SizeValue], measure: Measure) -> tuple[list[ModelSize], list[str]]:
    sizes: list[ModelSize] = []
    refused: list[str] = []
    for size in wanted:
        try:
            sizes.append(measure(size))
        except SpecError as e:
            refused += e.faults
    return sizes, refused


def _measured_ladder(spec: SweepSpec, measure: Measure, counting: int) -> tuple[list[ModelSize], list[str]]:
    """Measure sizes where the spec names none: highly divisible candidates, then values between them.

    1) Candidates are divisible by many numbers, because models require that of a size (a number of heads, say).
    2) An adaptive grid gets sizes between the accepted ones for its even steps in log N, as multiples of their greatest
       common divisor (`between`).
    """
    sizes: list[ModelSize] = []
    refused: list[str] = []
    for size in auto_candidates():
        found, faults = _measured([size], measure)
        sizes += found
        refused += faults
        if size >= MAX_AUTO_SIZE or (sizes and sizes[-1].params > own_range(spec, sizes, counting)[1]):
            break
    if spec.is_adaptive and len(sizes) >= 2:
        known = {int(s.size): s.params for s in sizes}
        centre = expected_centre(spec.grid.tokens_per_param, sizes, spec.budgets[0].flops, counting)
        sizes += _measured(between(known, rung_targets(spec, *own_range(spec, sizes, counting), centre)), measure)[0]
    return sizes, refused
