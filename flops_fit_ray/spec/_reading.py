"""Reading and writing of specs in YAML. All faults of a file are reported at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import yaml
from pydantic import ValidationError

from flops_fit_ray.errors import SpecError
from flops_fit_ray.spec._faults import fault_lines
from flops_fit_ray.spec._sweep_spec import ONE_BUDGET, SweepSpec
from flops_fit_ray.spec._values import BudgetsFor

MAX_SPEC_BYTES = 1 << 20
MAX_ALIASES = 64
MAX_VALUES = 20_000  # keys and values, those behind aliases counted each time; reading takes a second for so many
MAX_DEPTH = 64  # of values in values


class _Loader(yaml.SafeLoader):
    """Safe YAML with the number words of YAML 1.2, no duplicate keys, and bounds on what it grows to."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._aliases = self._depth = self._values = 0
        self._sizes: dict[int, int] = {}  # values in each node that is complete, itself among them, by its id()

    def compose_node(self, parent: Any, index: Any) -> Any:
        before, mark = self._values, self.get_mark()
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            self._refuse(self._aliases > MAX_ALIASES, f"more than {MAX_ALIASES} aliases", mark)
            node = super().compose_node(parent, index)
            self._refuse(id(node) not in self._sizes, "a value that holds itself", mark)
            self._values += self._sizes[id(node)]
        else:
            self._depth += 1
            self._values += 1
            self._refuse(self._depth > MAX_DEPTH, "nested too deeply to be a spec", mark)
            node = super().compose_node(parent, index)
            self._depth -= 1
            self._sizes[id(node)] = self._values - before
        self._refuse(self._values > MAX_VALUES, f"more than {MAX_VALUES} values, too many for a spec", mark)
        return node

    def _refuse(self, wrong: bool, problem: str, mark: yaml.Mark) -> None:
        if wrong:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key!r}", problem_mark=key_node.start_mark)
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML speaks, reads 1e18 as text; YAML 1.2 reads a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text to plain values.

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
    except RecursionError as e:
        raise SpecError(source, ["is nested too deeply to be a spec"]) from e
    except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as e:  # a tag or a date of nonsense
        raise SpecError(source, [f"holds a value that cannot be read: {e}; put quotes around text"]) from e


class SpecFile(Protocol):
    """Path of a file, or of an object in a store; `str` of it appears in messages."""

    def read_bytes(self) -> bytes:
        """Read the whole content."""


def read_spec(path: SpecFile, overrides: Sequence[str] = (), *, open_budgets: bool = False) -> SweepSpec:
    """Read the spec in a YAML file, with `a.b=c` overrides applied before it is checked.

    Args:
        open_budgets: take `budgets: auto`, as no budgets.

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
    return spec_from_bytes(raw, source, overrides, open_budgets=open_budgets)


def spec_from_bytes(raw: bytes, source: str, overrides: Sequence[str] = (), *, open_budgets: bool = False) -> SweepSpec:
    """Read the spec in the bytes of a YAML file; arguments as `read_spec`.

    Raises:
        SpecError: anything in it is wrong; all faults at once.
    """
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
    return make_spec(content, source, open_budgets=open_budgets)


def make_spec(
    content: Mapping[str, Any], source: str, *, one_budget: bool = False, open_budgets: bool = False
) -> SweepSpec:
    """Check plain values and return them as a spec.

    Args:
        one_budget: take one budget with many sizes, which can be planned and gives no law.
        open_budgets: take `budgets: auto`, as no budgets.

    Raises:
        SpecError: anything is wrong; all faults at once.
    """
    try:
        spec = SweepSpec.model_validate(content, context={ONE_BUDGET: one_budget})
    except ValidationError as e:
        faults = fault_lines(e.errors())
        if isinstance(content.get("budgets"), Mapping):
            faults = [fault.replace("budgets_for", "budgets", 1) for fault in faults]
        raise SpecError(source, faults) from e
    if not (spec.budgets or open_budgets):
        fault = "budgets: auto are chosen by `plan` and `run` with --minutes, --hours or --flops; list them here"
        raise SpecError(source, [fault])
    return spec


def limit_of_budgets(spec: SweepSpec, limit: BudgetsFor | None, source: str, example: str) -> BudgetsFor | None:
    """Return what the budgets of a spec are to be chosen by; None where they are listed.

    Args:
        limit: as it was asked for beside the spec; None: as the spec says.
        example: how it is asked for, in words.

    Raises:
        SpecError: a limit and budgets are given, or neither.
    """
    if spec.budgets:
        if limit is not None:
            fault = f"budgets: are listed, so a limit of {limit} chooses none; leave it out, or write budgets: auto"
            raise SpecError(source, [fault])
        return None
    if limit is None and spec.budgets_for is None:
        fault = f"budgets: auto needs to know what the sweep may cost, in minutes, hours or flops: give {example}"
        raise SpecError(source, [fault])
    return limit or spec.budgets_for


def dump_spec(spec: SweepSpec) -> str:
    """Return the spec as YAML, with every default written out."""
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
