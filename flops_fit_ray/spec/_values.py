"""Types of a spec's values: checked numbers and names, and unions of several kinds.

A key of several kinds is a union with a discriminator: the kind is chosen first, and only that kind's faults are
reported. A value of no kind is one fault, which lists the kinds.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    model_validator,
)

from flops_fit_ray import formatting as fmt
from flops_fit_ray.errors import SpecError
from flops_fit_ray.formatting import did_you_mean

ALMOST = 0.75  # likeness of two keys (difflib) from which one is taken for a misspelling of the other


def is_data_path(named: str) -> bool:
    """Return True for a file, a directory or a glob pattern of token files; else `named` is module:attribute."""
    return named.endswith((".bin", ".npy")) or (":" not in named and any(mark in named for mark in "/.*?[~"))


class Section(BaseModel):
    """Frozen; an unknown key is an error. The text under a key is its description, in the schema and in the docs."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)


def _positive(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError("must be a positive, finite number")
    return value


def _is_target(value: str) -> str:
    module, _, attribute = value.partition(":")
    if not (module and attribute):
        raise ValueError("must be written module:attribute, for example model:GPT")
    return value


def _word_or_target(*words: str, also: str = "") -> Callable[[str], str]:
    def check(value: str) -> str:
        if value in words or ":" in value:
            return value if value in words else _is_target(value)
        hint = did_you_mean(value, words)
        raise ValueError(
            f"must be {also}{', '.join(words)} or your own as module:attribute{'; ' + hint if hint else ''}"
        )

    return check


def _are_betas(value: Any, read: Callable[[Any], tuple[float, float]]) -> tuple[float, float]:
    try:
        betas = read(value)
    except ValidationError:
        betas = (math.nan, math.nan)
    if not all(0 <= b < 1 for b in betas):
        raise ValueError("must be two numbers in [0, 1), for example [0.9, 0.95]")
    return betas


Positive = Annotated[float, AfterValidator(_positive)]
Target = Annotated[str, AfterValidator(_is_target)]
Betas = Annotated[tuple[float, float], WrapValidator(_are_betas)]
OptimizerName = Annotated[str, AfterValidator(_word_or_target("adamw", "sgd"))]
ScheduleName = Annotated[str, AfterValidator(_word_or_target("wsd", "cosine", "linear", "constant"))]


class Ladder(Section):
    """Sizes from `start` to `stop`, each about `ratio` times the one before, rounded to `multiple_of`."""

    start: int = Field(gt=0)
    """Smallest size."""
    stop: int = Field(gt=0)
    """Size that none exceeds before it is rounded."""
    ratio: float = Field(default=math.sqrt(2), gt=1)
    """A size over the one before."""
    multiple_of: int = Field(default=1, gt=0)
    """What sizes are rounded to multiples of."""

    def sizes(self) -> list[int]:
        """Return the steps of the ladder, increasing."""
        count = math.floor(math.log(self.stop / self.start) / math.log(self.ratio) + 1e-9) + 1
        raw = (self.start * self.ratio**i for i in range(count))
        return sorted({max(self.multiple_of, round(x / self.multiple_of) * self.multiple_of) for x in raw})

    @model_validator(mode="after")
    def _climbs(self) -> Ladder:
        if self.stop <= self.start:
            raise ValueError(f"stop ({self.stop}) must be larger than start ({self.start})")
        return self


# Kinds of values ------------------------------------------------------------------------------------------------------


def choose_kind(expected: str, **accepts: Callable[[Any], bool]) -> Discriminator:
    """Choose the first kind, by its tag, that accepts a value; a value of no kind must be `expected`."""

    def tag_of(value: Any) -> str | None:
        return next((tag for tag, accept in accepts.items() if accept(value)), None)

    return Discriminator(tag_of, custom_error_type="no_such_kind", custom_error_message=f"must be {expected}")


def _number(kind: type[int] | type[float]) -> Callable[[Any], bool]:
    """Accept what pydantic reads as a number of this kind, such as 8.0 or "8"; but not true and false."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def accepts(value: Any) -> bool:
        try:
            adapter.validate_python(value)
        except ValidationError:
            return False
        return not isinstance(value, bool)

    return accepts


def _like(section: type[Section]) -> Callable[[Any], bool]:
    """Accept the section itself, and a mapping with one of its keys, misspelt or not."""

    def accepts(value: Any) -> bool:
        if isinstance(value, section):
            return True
        keys = [str(key) for key in value] if isinstance(value, Mapping) else []
        return any(difflib.get_close_matches(key, section.model_fields, 1, ALMOST) for key in keys)

    return accepts


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | BaseModel)


def _is_switch(value: Any) -> bool:
    try:
        _SWITCH.validate_python(value)
    except ValidationError:
        return False
    return True


_SWITCH = TypeAdapter(bool)
_whole, _real = _number(int), _number(float)

Auto = Annotated[Literal["auto"], Tag("auto")]

BoolOrAuto = Annotated[
    Annotated[bool, Tag("bool")] | Auto, choose_kind("true, false or auto", auto=_is_auto, bool=_is_switch)
]
_AUTO_OR_WHOLE = choose_kind("a whole number or auto", auto=_is_auto, whole=_whole)
TokensOrAuto = Annotated[Annotated[int, Field(ge=0), Tag("whole")] | Auto, _AUTO_OR_WHOLE]
SeedsOrAuto = Annotated[Annotated[int, Field(ge=0, le=20), Tag("whole")] | Auto, _AUTO_OR_WHOLE]
NumberOfSizes = Annotated[Annotated[int, Field(ge=3, le=25), Tag("whole")] | Auto, _AUTO_OR_WHOLE]
Window = Annotated[
    Annotated[float, Field(gt=1.2, le=64), Tag("number")] | Auto,
    choose_kind("a number or auto", auto=_is_auto, number=_real),
]

SizeValue: TypeAlias = Annotated[
    Annotated[int, Tag("whole")] | Annotated[dict[str, Any], Tag("arguments")],
    choose_kind(
        "a whole number, or a mapping of the constructor's arguments such as {d_model: 64, n_layer: 2}",
        whole=_whole,
        arguments=_is_mapping,
    ),
]


def _are_sizes(sizes: list[int | dict[str, Any]]) -> list[int | dict[str, Any]]:
    if not sizes:
        raise ValueError("is empty; give at least 3 sizes, a ladder, or 'auto'")
    bad = [s for s in sizes if isinstance(s, int) and s <= 0]
    if bad:
        raise ValueError(f"{few(bad)} are not positive whole numbers")
    seen: set[Any] = set()
    twice = []
    for s in sizes:
        mark = _hashable(s)
        if mark in seen:
            twice.append(s)
        seen.add(mark)
    if twice:
        raise ValueError(f"{few(twice)} are given twice")
    return sizes


def _hashable(value: int | dict[str, Any]) -> Any:
    """Return what is equal for equal sizes."""
    try:
        return value if isinstance(value, int) else frozenset(value.items())
    except TypeError:  # a list or a mapping among the arguments
        return repr(sorted(value.items())) if isinstance(value, dict) else value


def few(values: Sequence[Any], most: int = 10) -> str:
    """Return a list as text, the first values of a long one."""
    return f"{list(values[:most])}" + (f" and {len(values) - most} more" if len(values) > most else "")


Sizes = Annotated[list[SizeValue], AfterValidator(_are_sizes)]
SizesOrLadder = Annotated[
    Annotated[Sizes, Tag("list")] | Annotated[Ladder, Tag("ladder")] | Auto,
    choose_kind(
        "a list of sizes, a ladder such as {start: 64, stop: 1024}, or auto",
        auto=_is_auto,
        ladder=_like(Ladder),
        list=_is_list,
    ),
]


class LrRule(Section):
    """lr = base · (x / at) ^ exponent, where x is the size value or the parameter count."""

    base: Positive
    """Rate at x = at."""
    at: Positive
    """The x that has the rate base."""
    exponent: float
    """Of x / at; negative where larger models want smaller rates."""
    of: Literal["params", "size"] = "params"
    """What x is: N, or the value of model.size_param."""


SizeName = Annotated[
    Annotated[int, Tag("whole")] | Annotated[str, Tag("text")],
    choose_kind("a size: a whole number, or its name such as d_model=64,n_layer=2", text=_is_text, whole=_whole),
]


class SingleRun(Section):
    """One run beside the grid, as `--until` chooses them."""

    flops: Positive
    """C in FLOPs."""
    size: SizeName
    """Its size, as a number or by its name in the plan."""
    seed: int = Field(default=0, ge=0, le=1000)
    """0: that of the sweep; others are repeats."""


class LrTable(Section):
    """One learning rate per size, by the size's name in the plan: a number, or `d_model=64,n_layer=2`."""

    table: dict[SizeName, Positive]
    """Rates by size."""


_LrWord = Annotated[str, AfterValidator(_word_or_target("auto", also="a number, a rule, a table, "))]
LearningRate = Annotated[
    Annotated[Positive, Tag("number")]
    | Annotated[LrTable, Tag("table")]
    | Annotated[LrRule, Tag("rule")]
    | Annotated[_LrWord, Tag("word")],
    choose_kind(
        "a number, a rule {base: 3e-4, at: 1e8, exponent: -0.3}, a table {table: {64: 3e-3}}, auto, or your own as "
        "module:attribute",
        number=_real,
        table=_like(LrTable),
        rule=_like(LrRule),
        word=_is_text,
    ),
]

Resources = Annotated[
    Annotated[dict[str, Annotated[float, Field(ge=0)]], Tag("mapping")] | Auto,
    choose_kind("a mapping such as {gpu: 1} or {cpu: 4}, or auto", auto=_is_auto, mapping=_is_mapping),
]


class Budget(Section):
    """One compute budget C in FLOPs; `sizes` narrows the sweep's sizes for this budget."""

    flops: Positive
    """C in FLOPs."""
    sizes: Sizes | None = None
    """Sizes of this budget; left out: those of the sweep."""


def _as_budget(value: Any) -> Any:
    if isinstance(value, Mapping | Budget):
        return value
    if not _real(value):
        raise ValueError("must be a number of FLOPs, or a mapping such as {flops: 1e18, sizes: [64, 128, 256]}")
    return {"flops": _positive(float(value))}


BudgetValue = Annotated[Budget, BeforeValidator(_as_budget, json_schema_input_type=float | Budget)]


class BudgetsFor(Section):
    """Limit of what a sweep may cost, by which its budgets are chosen: one of minutes, hours and FLOPs."""

    minutes: Positive | None = None
    """Minutes of wall time."""
    hours: Positive | None = None
    """Hours of wall time."""
    flops: Positive | None = None
    """FLOPs in all."""
    why: str | None = None
    """How the budgets that stand in this spec were chosen; written by the program."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> BudgetsFor:
        given = [name for name in ("minutes", "hours", "flops") if getattr(self, name) is not None]
        if len(given) != 1:
            have = " and ".join(given) or "none"
            raise ValueError(f"must have one of minutes, hours and flops (got {have}), for example {{minutes: 30}}")
        return self

    @classmethod
    def of(
        cls, minutes: float | None, hours: float | None, flops: float | None, *, source: str, flag: str = ""
    ) -> BudgetsFor | None:
        """Return the limit that options give; None without one.

        Args:
            source: of the options, as faults are introduced.
            flag: what stands before an option's name where it is given.

        Raises:
            SpecError: there is more than one.
        """
        options = {"minutes": minutes, "hours": hours, "flops": flops}
        given = {name: value for name, value in options.items() if value is not None}
        if len(given) > 1:
            first, second = list(given)[:2]
            raise SpecError(source, [f"{flag}{second} says what {flag}{first} says; give one of them"])
        return cls.model_validate(given) if given else None

    @property
    def seconds(self) -> float | None:
        """Wall time in seconds; None where FLOPs are the limit."""
        if self.flops is not None:
            return None
        return 3600 * self.hours if self.hours is not None else 60 * (self.minutes or 0.0)

    def options(self) -> list[str]:
        """Return the limit as command-line options."""
        given = {"--minutes": self.minutes, "--hours": self.hours, "--flops": self.flops}
        return [word for name, value in given.items() if value is not None for word in (name, f"{value:.12g}")]

    def __str__(self) -> str:
        """Return the limit with its unit."""
        return f"{fmt.flops(self.flops)} FLOPs" if self.flops is not None else fmt.duration(self.seconds or 0.0)
