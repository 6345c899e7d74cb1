"""The page of the public names, from signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any

import flops_fit_ray
from docs.reference._tables import cell, code, page

# Classes of what the public names return, and the client of the service, which users import by their modules
RETURNED = (
    "flops_fit_ray.planning:Plan",
    "flops_fit_ray.analysis:Prediction",
    "flops_fit_ray.analysis:Analysis",
    "flops_fit_ray.analysis:SweepFit",
    "flops_fit_ray.analysis:NextRuns",
    "flops_fit_ray.training.preflight.check:CheckReport",
    "flops_fit_ray.service.client:Client",
)
# Where classes are described under the name that users know
_SAME = {"SweepPlan": "Plan"}


def render() -> str:
    """Return the page."""
    names = [name for name in flops_fit_ray.__all__ if name != "__version__" and name not in _SAME]
    found = {name: getattr(flops_fit_ray, name) for name in sorted(names, key=lambda n: (n[0].isupper(), n.lower()))}
    returned = [getattr(importlib.import_module(path.partition(":")[0]), path.partition(":")[2]) for path in RETURNED]
    return page(
        "Python",
        "`import flops_fit_ray` takes milliseconds; the names below are loaded on first use. `SweepPlan` is "
        "flops-fit's name of [Plan](#plan), and `__version__` the installed version.",
        *(part for name, value in found.items() for part in _public(name, value)),
        "## What they return",
        *(part for value in returned for part in _class(value, f"{value.__name__}")),
    )


def _public(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield from _class(value, name)
    else:
        yield f"## {name}"
        yield _signature(name, value)
        yield from _documented(value)


def _class(value: type, name: str) -> Iterator[str]:
    yield f"## {name}"
    yield code(f"{value.__module__.partition('._')[0]}.{name}") if not hasattr(flops_fit_ray, name) else ""
    yield from _documented(value)
    if is_dataclass(value):
        yield "\n".join(_fields(value))
    elif not issubclass(value, Exception) and "__init__" in vars(value) and name != "Result":
        yield _signature(name, value)
    if issubclass(value, Exception):
        yield f"A subclass of `{value.__mro__[1].__name__}`; a command that ends with it has exit code {_exit(value)}."
    properties, methods = [], []
    for attribute in _members(value):
        member = inspect.getattr_static(value, attribute)
        if isinstance(member, property):
            properties.append(f"- {code(attribute)}: {_of_property(member)}")
        elif inspect.isfunction(member):
            methods.append((attribute, member))
    yield "\n".join(properties)
    for attribute, member in methods:
        yield f"### {name}.{attribute}"
        yield _signature(attribute, member)
        yield from _documented(member)


def _exit(value: type) -> int:
    return int(getattr(value, "exit_code", 1))


def _members(value: type) -> list[str]:
    own = [name for kind in value.__mro__[::-1] if kind.__module__.startswith("flops_fit_ray") for name in vars(kind)]
    inherited = {
        name for kind in value.__mro__ if not kind.__module__.startswith("flops_fit_ray") for name in vars(kind)
    }
    return [name for name in dict.fromkeys(own) if not name.startswith("_") and name not in inherited]


def _fields(value: type[Any]) -> Iterator[str]:
    """Yield the fields of a dataclass with their types and the comments beside them."""
    words: dict[str, str] = {}
    for kind in value.__mro__[::-1]:
        words |= comments(kind) if "__dataclass_fields__" in vars(kind) else {}
    for one in fields(value):
        said = f": {words[one.name]}" if words.get(one.name) else ""
        yield f"- {code(f'{one.name}: {plain_type(one.type)}')}{cell(said)}"


def comments(kind: type) -> dict[str, str]:
    """Return the comment that stands beside each field of a class."""
    found = {}
    for line in inspect.getsource(kind).splitlines():
        if field := re.match(r"    (\w+): [^#]*?#\s+(?!type:|noqa)(.*)$", line):
            found[field[1]] = field[2]
    return found


def plain_type(hint: Any) -> str:
    """Return an annotation as it stands in the code, without its marks."""
    text = hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))
    while marked := re.match(r"(.*)Annotated\[(.+?), (?:Column|Field)\(.*?\)\](.*)$", text):
        text = "".join(marked.groups())
    for ours, theirs in (("PositiveInt", "int"), ("PositiveFloat", "float"), ("Count", "int"), ("Amount", "float"),
                         ("Seed", "int"), ("Timestamp", "float")):  # fmt: skip
        text = re.sub(rf"\b{ours}\b", theirs, text)
    return text.replace('"', "'")


def _signature(name: str, value: Any) -> str:
    parameters, star = [], False
    for one in inspect.signature(value).parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and not star:
            parameters.append("*")
        star = star or one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        mark = "*" if one.kind is one.VAR_POSITIONAL else "**" if one.kind is one.VAR_KEYWORD else ""
        hint = "" if one.annotation is one.empty else f": {plain_type(one.annotation)}"
        default = "" if one.default is one.empty else (f" = {one.default!r}" if hint else f"={one.default!r}")
        parameters.append(f"{mark}{one.name}{hint}{default}")
    returns = inspect.signature(value).return_annotation
    back = "" if returns in (inspect.Signature.empty, "None", None) else f" -> {plain_type(returns)}"
    line = f"{name}({', '.join(parameters)}){back}"
    if len(line) > 110:
        line = f"{name}(\n" + "".join(f"    {one},\n" for one in parameters) + f"){back}"
    return f"```text\n{line}\n```"


def _of_property(value: property) -> str:
    """Return the first paragraph of a property's docstring; of another name for an attribute, that attribute."""
    if isinstance(value.fget, attrgetter):
        return f"the same as {code(value.fget.__reduce__()[1][0])}, as flops-fit calls it"
    first = cell((inspect.getdoc(value) or "").split("\n\n")[0]).removeprefix("Return ")
    return first[:1].lower() + first[1:] if first[1:2].islower() else first


def _documented(value: Any) -> Iterator[str]:
    """Yield a docstring: paragraphs, and the entries of its sections as lists."""
    for part in re.split(r"\n\s*\n", inspect.getdoc(value) or ""):
        section = re.match(r"(Args|Returns|Raises|Yields):\n(.*)", part, flags=re.S)
        if section is None:
            yield cell(part)
            continue
        body = textwrap.dedent(section[2])
        entries = (
            [" ".join(entry.split()) for entry in re.split(r"\n(?! )", body)] if section[1] != "Returns" else [body]
        )
        lines = [re.sub(r"^([\w, ]+): ", lambda name: f"{_names(name[1])}: ", cell(entry)) for entry in entries]
        title = {"Args": "Arguments", "Returns": "Returns", "Raises": "Raises", "Yields": "Yields"}[section[1]]
        yield f"**{title}**\n\n" + "\n".join(f"- {line}" for line in lines)


def _names(text: str) -> str:
    return ", ".join(map(code, text.split(", "))) if re.fullmatch(r"\w+(, \w+)*", text) else text
