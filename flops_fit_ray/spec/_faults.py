"""Validation errors of pydantic as lines: key path, what is wrong, the value, the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Discriminator, Tag
from pydantic_core import ErrorDetails

from flops_fit_ray.spec._hints import meant_key, meant_paths, way_out
from flops_fit_ray.spec._sweep_spec import SweepSpec
from flops_fit_ray.spec._values import Section

MAX_FAULTS = 100  # that are looked into and listed
MAX_SHOWN = 80  # characters of a wrong value
PLAIN_KEY = re.compile(r"[\w-]+")
SUBJECT = re.compile("^(Input|String|List|Tuple|Dictionary) should ")
TYPE_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid list": "a list",
    "a valid tuple": "a list",
    "a valid dictionary": "a mapping",
}
KEY_MARK = "[key]"  # pydantic's, behind a mapping's key that is wrong itself


@dataclass(frozen=True, kw_only=True)
class Location:
    """Place of an error in a spec."""

    path: tuple[int | str, ...]
    annotation: Any  # of what stands there; None where the key is unknown
    beside: tuple[str, ...]  # the known keys of its section

    @property
    def key(self) -> str:
        """Last key of the path."""
        return str(self.path[-1])

    @property
    def section(self) -> tuple[int | str, ...]:
        """Path of the section that holds the key."""
        return self.path[:-1]

    def __str__(self) -> str:
        """Path with dots; a key that holds dots, spaces or brackets itself is quoted."""
        return ".".join(_shortened(str(p) if PLAIN_KEY.fullmatch(str(p)) else repr(p)) for p in self.path) or "spec"


def fault_lines(errors: Sequence[ErrorDetails]) -> list[str]:
    """Return one line per fault.

    Keys that one section lacks share a line, and a key is not called missing where a misspelling of it stands.
    """
    found = [(error, locate(error["loc"])) for error in errors[:MAX_FAULTS]]
    unknown = [at for error, at in found if error["type"] == "extra_forbidden"]
    meant = {path for at in unknown for path in _meant(at)}
    missing = [at for error, at in found if error["type"] == "missing" and str(at) not in meant]
    lines = []
    for error, at in found:
        if error["type"] == "missing":
            keys = [other.key for other in missing if other.section == at.section]
            lines += [_missing(at, keys)] if at in missing else []
        elif error["type"] == "extra_forbidden":
            lines.append(f"{at}: unknown key; {way_out(at.key, at.section, at.beside)}")
        else:
            lines.append(f"{at}: {_wrong_value(error, at.annotation)}")
    if len(errors) > MAX_FAULTS:
        lines.append(f"and {len(errors) - MAX_FAULTS} more faults; the first {MAX_FAULTS} are shown")
    return list(dict.fromkeys(lines))


def locate(loc: Sequence[int | str]) -> Location:
    """Return the key that an error's location names.

    A location holds more than keys: the tag of a kind behind a key that takes several kinds, and `KEY_MARK`.
    """
    path: tuple[int | str, ...] = ()
    annotation: Any = SweepSpec
    beside: tuple[str, ...] = ()
    keys: Any = None  # annotation of the keys, directly behind a key of a mapping
    for part in loc:
        if keys is not None and part == KEY_MARK:
            annotation = keys
        elif kinds := _kinds_of(annotation):
            annotation = kinds[str(part)]
        else:
            holder = _without_none(annotation)
            path, beside = (*path, part), tuple(holder.model_fields) if _is_section(holder) else ()
            keys, annotation = _inside(holder, part)
    return Location(path=path, annotation=annotation, beside=beside)


def _meant(at: Location) -> Iterator[str]:
    """Paths that an unknown key stands for, each with the sections that hold it."""
    near = meant_key(at.key, at.beside)
    paths = [".".join(map(str, (*at.section, near)))] if near else meant_paths(at.key)[0]
    for path in paths:
        parts = path.split(".")
        yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _inside(holder: Any, part: int | str) -> tuple[Any, Any]:
    """Annotations of the keys (of a mapping alone) and of the value under a key of a section, mapping or list."""
    if _is_section(holder):
        field = holder.model_fields.get(part)
        return None, field.rebuild_annotation() if field else None
    arguments = get_args(holder)
    if get_origin(holder) is dict:
        return arguments
    return None, arguments[0] if arguments else None


def _kinds_of(annotation: Any) -> dict[str, Any]:
    """Annotations by tag of a key that takes several kinds of values; empty for any other."""
    if not any(isinstance(a, Discriminator) for a in getattr(annotation, "__metadata__", ())):
        return {}
    kinds = get_args(get_args(annotation)[0])
    return {tag.tag: kind for kind in kinds for tag in kind.__metadata__ if isinstance(tag, Tag)}


def _without_none(annotation: Any) -> Any:
    """Return `X` of `X | None`, and the type of an annotated one."""
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    kinds = get_args(annotation)
    return _without_none(next(k for k in kinds if k is not NoneType)) if NoneType in kinds else annotation


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _missing(at: Location, keys: Sequence[str]) -> str:
    if len(keys) == 1 or not at.section:
        return f"{at}: is missing"
    section = str(Location(path=at.section, annotation=None, beside=()))
    return f"{section}: {', '.join(keys[:-1])} and {keys[-1]} are missing"


def _wrong_value(error: ErrorDetails, annotation: Any) -> str:
    value, kind = error["input"], error["type"]
    if kind == "invalid_key":
        return "a key must be text; put it in quotes, or remove it"
    if kind == "model_type":
        return _no_mapping(value, _without_none(annotation))
    words = _plain(error["msg"])
    unshown = kind == "secret" or (kind != "no_such_kind" and isinstance(value, dict | list | BaseModel))
    return words if unshown else f"{words} (got {_shown(value)})"


def _no_mapping(value: Any, section: type[Section]) -> str:
    optional = not any(field.is_required() for field in section.model_fields.values())
    keys = f"keys such as {', '.join(list(section.model_fields)[:3])}"
    if value is None:
        return f"is empty; give {keys} below it" + (", or remove it" if optional else "")
    words = f"must be a mapping with {keys}" + ("; {} takes every default" if optional else "")
    return words if isinstance(value, list) else f"{words} (got {_shown(value)})"


def _plain(message: str) -> str:
    """Return a message of pydantic without what names its types instead of a spec's values."""
    words = message.removeprefix("Value error, ").partition(", unable to ")[0].partition(", got a number")[0]
    words = SUBJECT.sub("must ", words)
    for theirs, ours in TYPE_WORDS.items():
        words = words.replace(theirs, ours)
    return words


def _shown(value: Any) -> str:
    try:
        return _shortened(repr(value))
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
