"""The page of a spec's keys, from the pydantic models of `flops_fit_ray.spec`."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BeforeValidator, Discriminator, WrapValidator
from pydantic.fields import FieldInfo

from docs.reference._tables import code, page, table
from flops_fit_ray.fit_options import FIT_DEFAULTS
from flops_fit_ray.spec import FitSection, SweepSpec
from flops_fit_ray.spec._values import Section
from flops_fit_ray.spec._vocabulary import HINTS

# Words before the bound of each kind of limit
_BOUNDS = {Gt: ("above", "gt"), Ge: ("at least", "ge"), Lt: ("below", "lt"), Le: ("at most", "le")}
_PLAIN = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", Any: "anything"}


def render() -> str:
    """Return the page."""
    return page(
        "Spec",
        "A sweep is one YAML file, `sweep.yaml` by default. Model and data are needed, and budgets; everything "
        "else has a default. Every fault of a file is named at once, with its key, its value and the way out, "
        "before anything runs: `flops-fit-ray plan sweep.yaml` tries it. `--set a.b=value` overrides a key in any "
        "command that takes a spec. In Python the keys of the sections are arguments of "
        "[`find_optimal`](python.md#find_optimal) by their last name.",
        f"```yaml\n{_EXAMPLE}```",
        *_section(SweepSpec, ""),
        "## Names of other libraries",
        "A key that another library has is refused with the key to write here, and how its value differs. These are "
        "known; so are misspellings of them, camelCase and dashes.",
        table(["key", "for which one may have written", "note"], _vocabulary()),
    )


_EXAMPLE = """\
name: gpt
model: {target: model:GPT, size_param: d_model}   # model.py beside this file
data: {train: data:train}
budgets: [1e15, 3e15, 1e16, 3e16]                 # FLOPs; or {minutes: 30}, and they are chosen
"""


def _section(section: type[Section], path: str) -> Iterator[str]:
    """Yield the heading and the table of a section, and those of the sections in it."""
    hints = get_type_hints(section, include_extras=True)
    inner = [(key, kind) for key in section.model_fields for kind in _sections_in(hints[key])]
    yield f"## {path or 'Top level'}"
    if path:
        yield inspect.cleandoc(section.__doc__ or "")
    yield table(["key", "value", "default", "meaning"], _rows(section, path, hints))
    for key, kind in inner:
        named = _named(section.model_fields[key])
        whole = named and _only(hints[key]) is kind
        heading = f"{path}.{key if named else key.removesuffix('_for')}".lstrip(".")
        yield from _section(kind, heading if whole else f"{heading} as {_title(kind)}")


def _named(field: FieldInfo) -> bool:
    return "written by the program" not in (field.description or "")


def _title(kind: type[Section]) -> str:
    titles = {"Ladder": "a ladder", "LrRule": "a rule", "LrTable": "a table", "SingleRun": "single runs",
              "Budget": "mappings", "BudgetsFor": "a cost", "AxisSection": "mappings"}  # fmt: skip
    return titles[kind.__name__]


def _rows(section: type[Section], path: str, hints: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for key, field in section.model_fields.items():
        if not _named(field):
            continue
        only = _only(hints[key])
        if isinstance(only, type) and issubclass(only, Section):
            heading = f"{path}.{key}".lstrip(".")
            meaning = field.description or (only.__doc__ or "").strip().splitlines()[0]
            yield code(key), f"[section](#{heading.replace('.', '')})", _default(section, key, field), meaning
        else:
            nothing = _default(section, key, field) and section is not FitSection  # can be told from its default
            hint = hints[key] if nothing else _only(hints[key])
            words = ", ".join([_words(hint), *_limits(field.metadata)])
            yield code(key), words, _default(section, key, field), field.description or ""


def _only(hint: Any) -> Any:
    """Return the one type that a hint allows besides None; the hint itself where there are several."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if _is_union(hint) else [hint]
    return kinds[0] if len(kinds) == 1 else hint


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _sections_in(hint: Any) -> Iterator[type[Section]]:
    if isinstance(hint, type) and issubclass(hint, Section):
        yield hint
    for inner in get_args(hint):
        yield from _sections_in(inner)


def _words(hint: Any) -> str:
    """Return what a value may be, in the words in which a wrong one is refused."""
    if get_origin(hint) is Annotated:
        kind, *marks = get_args(hint)
        for mark in marks:
            if isinstance(mark, Discriminator):
                words = str(mark.custom_error_message).removeprefix("must be ")
                return ", ".join([words, *_limits_of_numbers(kind)])
            if isinstance(mark, BeforeValidator) and (words := _refusal(mark.func, str)):
                return words
            if isinstance(mark, AfterValidator | WrapValidator) and (words := _refusal(mark.func, kind)):
                return words
        return ", ".join([_words(kind), *(limit for mark in marks for limit in _limits(getattr(mark, "metadata", [])))])
    if _is_union(hint):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return " or ".join([*map(_words, kinds), *(["`null`"] if type(None) in get_args(hint) else [])])
    if get_origin(hint) is Literal:
        return _choice(get_args(hint))
    if get_origin(hint) is list:
        return f"list of {_plural(*get_args(hint))}"
    if get_origin(hint) is dict:
        name, value = get_args(hint)
        keys = f" of {_choice(get_args(name))}" if get_origin(name) is Literal else ""
        return f"mapping{keys}" if value is Any else f"mapping{keys} to {_words(value)}"
    return _PLAIN[hint]


def _plural(kind: Any) -> str:
    sections = list(_sections_in(kind))
    if get_origin(kind) is Annotated and get_args(kind)[0] is Any:
        return "values"
    return "FLOPs, or mappings" if [s.__name__ for s in sections] == ["Budget"] else "mappings" if sections else "sizes"


def _choice(values: tuple[Any, ...]) -> str:
    shown = [code(value) for value in values]
    return " or ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


def _refusal(check: Callable[..., Any], kind: Any) -> str:
    """Return what a check says a value must be, by giving it one that is nothing."""
    if kind not in (float, str) and get_origin(kind) is not tuple:
        return ""
    wrong = -1.0 if kind is float else "?"
    try:
        check(wrong, lambda value: (-1.0, -1.0)) if get_origin(kind) is tuple else check(wrong)
    except (ValueError, TypeError) as e:
        said, found, _ = str(e).partition(", for example model:")[0].partition("must be ")[::-1]
        return said.removeprefix("written ") if found else ""
    return ""


def _limits_of_numbers(hint: Any) -> list[str]:
    """Return the limits of the numbers among several kinds of values."""
    marks = [get_args(kind) for kind in get_args(hint) if get_origin(kind) is Annotated]
    found = [
        _limits(mark.metadata)
        for kind, *several in marks
        for mark in several
        if kind in (int, float) and isinstance(mark, FieldInfo)
    ]
    return found[0] if found else []


def _limits(marks: Any) -> list[str]:
    found = []
    for mark in marks:
        for kind, (word, name) in _BOUNDS.items():
            if isinstance(mark, kind):
                bound = getattr(mark, name)
                found.append(f"{word} {'2^63' if bound == 2**63 else f'{bound:,}'}")
    return found


def _default(section: type[Section], key: str, field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.default
    if isinstance(value, Section):
        return ""
    if value is None and section is FitSection:
        value = getattr(FIT_DEFAULTS, key)
    if value is None:
        return ""
    if isinstance(value, float) and value == 2**0.5:
        return "`1.41421`"
    return code(yaml.safe_dump(_as_list(value), default_flow_style=True).removesuffix("\n...\n").strip())


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _vocabulary() -> Iterator[tuple[str, str, str]]:
    for hint in HINTS:
        yield code(hint.path), ", ".join(map(code, hint.names.split())), hint.note
