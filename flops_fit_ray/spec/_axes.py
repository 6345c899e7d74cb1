"""A second axis of a sweep: an argument of the model, and the values that are compared at equal C."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, Tag

from flops_fit_ray.spec._values import Positive, Section, choose_kind, few

MOST_AXES = 2
EXAMPLE = "a list of values such as [2, 8], or a mapping {values: [2, 8], budgets: all}"


def _plain(value: Any) -> Any:
    if isinstance(value, bool | str) or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    raise ValueError(f"must be a finite number, a word, true or false (got {value!r})")


AxisPoint: TypeAlias = Annotated[Any, BeforeValidator(_plain, json_schema_input_type=bool | int | float | str)]


def same_value(one: Any, other: Any) -> bool:
    """Return True if two values are one to a constructor; true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _are_values(values: list[Any]) -> list[Any]:
    twice = [v for i, v in enumerate(values) if any(same_value(v, other) for other in values[:i])]
    if twice:
        raise ValueError(f"{few(twice)} are given twice")
    words = {str(v) for v in values}
    if len(words) < len(values):
        raise ValueError(f"{few(values)} are not told apart as text")
    return values


AxisBudgets = Annotated[
    Annotated[Literal["auto", "all"], Tag("word")] | Annotated[list[Positive], Field(min_length=1), Tag("list")],
    choose_kind(
        "auto, all, or a list of C that are budgets of the sweep",
        word=lambda value: isinstance(value, str) and value in ("auto", "all"),
        list=lambda value: isinstance(value, Sequence) and not isinstance(value, str | bytes),
    ),
]


class AxisSection(Section):
    """Values of an argument of the model that are compared with the sweep's own, each run beside its minima alone."""

    values: Annotated[list[AxisPoint], Field(min_length=1, max_length=20), AfterValidator(_are_values)]
    """Values to compare; the sweep's own may be among them."""
    budgets: AxisBudgets = "auto"
    """C at which they are run; auto: the smallest, and one about 10 times as large, at most a tenth of the largest."""
    sizes: int = Field(default=3, ge=2, le=7)
    """Sizes of each value at each of these budgets, a factor of about 2 apart in FLOPs per token."""


def _as_axis(value: Any) -> Any:
    if isinstance(value, Mapping | AxisSection):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return {"values": list(value)}
    raise ValueError(f"must be {EXAMPLE}")


AxisValues = Annotated[AxisSection, BeforeValidator(_as_axis, json_schema_input_type=list[Any] | AxisSection)]
