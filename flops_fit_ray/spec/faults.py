"""What pydantic finds, in words: key path, what is wrong, the value, the way out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from flops_fit_ray.formatting import did_you_mean
from flops_fit_ray.spec.sections import Section, SweepSpec

_UNION_TAGS = {"float", "int", "str", "dict", "Ladder", "LrRule", "LrTable", "list", "none"}
_WRONG_KIND = ("_type", "_parsing", "literal_error", "_from_float", "_required")  # ends of pydantic's names for it


def fault_lines(errors: Sequence[ErrorDetails]) -> list[str]:
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
        way_out = did_you_mean(str(parts[-1]), known) or f"known keys: {', '.join(known)}"
        return f"{path}: unknown key; {way_out}"
    if error["type"] == "missing":
        return f"{path}: is missing"
    message = error["msg"].removeprefix("Value error, ")
    unshown = isinstance(value, dict | list | BaseModel) or error["type"] == "secret"
    shown = "" if unshown else f" (got {value!r})"
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


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _sections_in(inner)
