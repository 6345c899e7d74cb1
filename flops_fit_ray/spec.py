"""The question: a sweep as a typed value, and its YAML file.

Every fault of a spec is found at once, with its key path and the way out. Nothing here imports the user's code; the
targets stay names until `training.guest` loads them.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from flops_fit_ray.errors import SpecError

MAX_SPEC_BYTES = 1 << 20
MAX_ALIASES = 64  # more than any honest spec has; stops an alias bomb before it is expanded

SizeValue: TypeAlias = int | dict[str, Any]


def _positive(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError("must be a positive, finite number")
    return value


def _is_target(value: str) -> str:
    module, _, attribute = value.partition(":")
    if not (module and attribute):
        raise ValueError("must be written module:attribute, for example model:GPT")
    return value


Positive = Annotated[float, AfterValidator(_positive)]
Target = Annotated[str, AfterValidator(_is_target)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Ladder(_Section):
    """Sizes from `start` to `stop`, each about `ratio` times the one before, rounded to `multiple_of`."""

    start: int = Field(gt=0)
    stop: int = Field(gt=0)
    ratio: float = Field(default=math.sqrt(2), gt=1)
    multiple_of: int = Field(default=1, gt=0)

    def sizes(self) -> list[int]:
        """The steps of the ladder, increasing."""
        count = math.floor(math.log(self.stop / self.start) / math.log(self.ratio) + 1e-9) + 1
        raw = (self.start * self.ratio**i for i in range(count))
        return sorted({max(self.multiple_of, round(x / self.multiple_of) * self.multiple_of) for x in raw})

    @model_validator(mode="after")
    def _climbs(self) -> Ladder:
        if self.stop <= self.start:
            raise ValueError(f"stop ({self.stop}) must be larger than start ({self.start})")
        return self


class ModelSection(_Section):
    """The user's model: what builds it, and which argument makes it larger."""

    target: str
    size_param: str | None = None
    kwargs: dict[str, Any] = {}
    sizes: list[SizeValue] | Ladder | Literal["auto"] = "auto"
    flops_per_token: Target | None = None

    @field_validator("sizes")
    @classmethod
    def _usable(cls, sizes: list[SizeValue] | Ladder | str) -> list[SizeValue] | Ladder | str:
        if not isinstance(sizes, list):
            return sizes
        if not sizes:
            raise ValueError("is empty; give at least 3 sizes, a ladder, or 'auto'")
        bad = [s for s in sizes if isinstance(s, bool) or (isinstance(s, int) and s <= 0)]
        if bad:
            raise ValueError(f"{bad} are not positive whole numbers")
        twice = [s for i, s in enumerate(sizes) if s in sizes[:i]]
        if twice:
            raise ValueError(f"{twice} are given twice")
        return sizes

    @model_validator(mode="after")
    def _names_its_size(self) -> ModelSection:
        numbers = not isinstance(self.sizes, list) or any(isinstance(s, int) for s in self.sizes)
        if numbers and self.size_param is None:
            raise ValueError("size_param is missing: name the constructor argument that sizes stand for")
        if self.size_param is not None and self.size_param in self.kwargs:
            raise ValueError(f"kwargs.{self.size_param} is the size parameter; remove it from kwargs")
        return self


class DataSection(_Section):
    """The user's data: the training set, the held-out set, and what one token is."""

    train: str
    eval: str | None = None
    kwargs: dict[str, Any] = {}
    eval_fraction: float = Field(default=0.05, gt=0, lt=1)
    eval_samples: int | None = Field(default=None, gt=0)
    tokens_per_sample: int | None = Field(default=None, gt=0)
    max_epochs: Positive = 1.0


class LrRule(_Section):
    """lr = base · (x / at) ^ exponent, where x is the size value or the parameter count."""

    base: Positive
    at: Positive
    exponent: float
    of: Literal["params", "size"] = "params"


class TrainSection(_Section):
    """How every experiment is trained. What depends on its own D is worked out by the plan."""

    batch_size: int = Field(default=32, gt=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive | LrRule | Literal["auto"] = "auto"
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: Positive | None = 1.0
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    decay_fraction: float = Field(default=0.2, gt=0, lt=1)
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    warmup_tokens: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("betas")
    @classmethod
    def _in_range(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= b < 1 for b in betas):
            raise ValueError("must both lie in [0, 1)")
        return betas

    @model_validator(mode="after")
    def _lr_known(self) -> TrainSection:
        if self.optimizer == "sgd" and self.lr == "auto":
            raise ValueError("lr is missing: sgd has no rule for it")
        return self


class Budget(_Section):
    """One compute budget C in FLOPs; `sizes` narrows the sweep's sizes for this budget."""

    flops: Positive
    sizes: list[SizeValue] | None = None


class FitSection(_Section):
    """How intervals are made."""

    draws: int = Field(default=2000, ge=200, le=1_000_000)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    seed: int = Field(default=0, ge=0)


class SweepSpec(_Section):
    """A whole sweep. `SweepSpec.model_json_schema()` is the published schema of the file."""

    schema_version: Literal[1] = 1
    name: str = Field(default="sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    model: ModelSection
    data: DataSection
    loss: str = "cross_entropy"
    budgets: list[Budget]
    train: TrainSection = TrainSection()
    resources_per_trial: dict[str, Annotated[float, Field(ge=0)]] = {"gpu": 1}
    fit: FitSection = FitSection()
    output: str | None = None

    @field_validator("budgets", mode="before")
    @classmethod
    def _numbers_are_budgets(cls, budgets: Any) -> Any:
        if not isinstance(budgets, Sequence) or isinstance(budgets, str):
            return budgets
        return [b if isinstance(b, Mapping | Budget) else {"flops": b} for b in budgets]

    @field_validator("budgets")
    @classmethod
    def _enough(cls, budgets: list[Budget]) -> list[Budget]:
        flops = [b.flops for b in budgets]
        if len(flops) < 2:
            raise ValueError(f"has {len(flops)} budget(s); a law needs at least 2, better 4 or 5 over a range of 32x")
        twice = sorted({f for f in flops if flops.count(f) > 1})
        if twice:
            raise ValueError(f"{twice} are given twice")
        return sorted(budgets, key=lambda b: b.flops)

    @field_validator("resources_per_trial")
    @classmethod
    def _asks_for_something(cls, resources: dict[str, float]) -> dict[str, float]:
        if not any(resources.values()):
            raise ValueError("asks for nothing; give {gpu: 1} or {cpu: 1}")
        return resources


class _Loader(yaml.SafeLoader):
    """Safe YAML with the number words of YAML 1.2, no duplicate keys, and no alias bombs."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise yaml.MarkedYAMLError(problem=f"more than {MAX_ALIASES} aliases", problem_mark=self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML speaks, reads 1e18 as text; YAML 1.2 reads a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, source: str) -> Any:
    """YAML text as plain values.

    Raises:
        SpecError: the text is not YAML; line and column are named.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SpecError(source, [f"{where}{e.problem or e.context}"]) from e
    except yaml.YAMLError as e:
        raise SpecError(source, [f"is not YAML: {e}"]) from e


def read_spec(path: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """The spec in a YAML file, with `a.b=c` overrides applied before it is checked.

    Raises:
        SpecError: the file cannot be read, or anything in it is wrong; all faults at once.
    """
    source = str(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError as e:
        raise SpecError(source, ["no such file; `flops-fit-ray init` writes a starter"]) from e
    except OSError as e:
        raise SpecError(source, [f"cannot be read: {e.strerror}"]) from e
    if len(raw) > MAX_SPEC_BYTES:
        raise SpecError(source, [f"has {len(raw)} bytes; a spec is at most {MAX_SPEC_BYTES}"])
    try:
        text = raw.decode()
    except UnicodeDecodeError as e:
        raise SpecError(source, [f"is not UTF-8 text (byte {e.start})"]) from e
    content = parse_yaml(text, source)
    if content is None:
        raise SpecError(source, ["is empty; `flops-fit-ray init` writes a starter"])
    if not isinstance(content, dict):
        raise SpecError(source, [f"holds a {type(content).__name__}, not keys and values"])
    for override in overrides:
        _apply_override(content, override)
    return make_spec(content, source)


def make_spec(content: Mapping[str, Any], source: str) -> SweepSpec:
    """A checked spec from plain values.

    Raises:
        SpecError: anything is wrong; all faults at once.
    """
    try:
        return SweepSpec.model_validate(content)
    except ValidationError as e:
        raise SpecError(source, _faults(e.errors())) from e


def dump_spec(spec: SweepSpec) -> str:
    """The resolved spec as YAML, every default written out."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(content: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not (path and equals):
        raise SpecError("--set", [f"{override!r} is not of the form a.b=c, for example train.batch_size=16"])
    *parents, last = path.split(".")
    here = content
    for name in parents:
        here = here.setdefault(name, {})
        if not isinstance(here, dict):
            raise SpecError("--set", [f"{path}: {name!r} holds {here!r}, which has no keys"])
    here[last] = parse_yaml(value, f"--set {path}")


_UNION_TAGS = {"float", "int", "str", "dict", "Ladder", "LrRule", "list", "none"}
_WRONG_KIND = ("_type", "_parsing", "literal_error", "_from_float", "_required")  # ends of pydantic's names for it


def _faults(errors: Sequence[ErrorDetails]) -> list[str]:
    """One line per fault. Where a value may be of several kinds, only the kind that was meant is spoken of."""
    groups: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for error in errors:
        groups.setdefault(_before_union(error["loc"]), []).append(error)
    lines: list[str] = []
    for prefix, group in groups.items():
        meant = [e for e in group if not (len(e["loc"]) <= len(prefix) + 1 and e["type"].endswith(_WRONG_KIND))]
        if meant or len(group) == 1:
            lines += [_fault(e) for e in meant or group]
        else:
            lines.append(_no_kind_fits(prefix, group))
    return list(dict.fromkeys(lines))


def _before_union(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    tag = next((i for i, part in enumerate(loc) if _is_union_tag(part)), len(loc))
    return loc[:tag]


def _no_kind_fits(prefix: Sequence[int | str], group: Sequence[ErrorDetails]) -> str:
    wishes = dict.fromkeys(e["msg"].removeprefix("Input should be ").split(", ")[0] for e in group)
    kinds = [w.replace("a valid dictionary or instance of ", "a mapping for ") for w in wishes]
    return f"{'.'.join(map(str, prefix))}: must be {' or '.join(kinds)} (got {group[0]['input']!r})"


def _fault(error: ErrorDetails) -> str:
    """One validation error as `key.path: what is wrong, the value, the way out`."""
    parts = [p for p in error["loc"] if not _is_union_tag(p)]
    path = ".".join(str(p) for p in parts) or "spec"
    value = error["input"]
    if error["type"] == "extra_forbidden":
        known = list(_fields_at(parts[:-1]))
        near = difflib.get_close_matches(str(parts[-1]), known, n=1)
        way_out = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{path}: unknown key; {way_out}"
    if error["type"] == "missing":
        return f"{path}: is missing"
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(value, dict | list | BaseModel) else f" (got {value!r})"
    return f"{path}: {message[:1].lower()}{message[1:]}{shown}"


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and (part in _UNION_TAGS or "[" in part or "(" in part or "-" in part)


def _fields_at(parts: Sequence[int | str]) -> Iterator[str]:
    section: Any = SweepSpec
    for part in parts:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        section = next((s for s in _sections_in(field.annotation if field else None)), None)
        if section is None:
            return
    yield from section.model_fields


def _sections_in(annotation: Any) -> Iterator[type[_Section]]:
    if isinstance(annotation, type) and issubclass(annotation, _Section):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _sections_in(inner)
