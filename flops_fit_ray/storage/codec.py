"""Frozen values from the JSON that files hold, with every type checked."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter

from flops_fit_ray.storage.atomic import read_sealed
from flops_fit_ray.storage.paths import SCHEMA_VERSION
from flops_fit_ray.storage.storage_path import StoragePath

_MAX_INT, _MAX_FLOAT = 2**63, 1e200  # of tables' integers; sums and products of such floats are finite
Count = Annotated[int, Field(ge=0, lt=_MAX_INT)]
PositiveInt = Annotated[int, Field(gt=0, lt=_MAX_INT)]
Amount = Annotated[float, Field(ge=0, lt=_MAX_FLOAT)]  # finite, as every float of a record
PositiveFloat = Annotated[float, Field(gt=0, lt=_MAX_FLOAT)]
Seed = Annotated[int, Field(ge=-_MAX_INT, lt=_MAX_INT)]
Timestamp = Annotated[float, Field(ge=0, lt=1e11)]  # seconds since the epoch, before the year 5138
NON_EMPTY = Field(min_length=1)  # of a mapping or a sequence, in Annotated

_VERSION = re.compile(rb'"schema_version"\s*:\s*(\d+)\s*[,}]')


class Record:
    """Base of the frozen dataclasses that files hold; dataclasses among their fields are checked as strictly.

    An int stands where a float is asked for; text or a bool never stands for a number; NaN and infinity do not fit.
    Fields that the class does not know are left out, and those with a default may be missing: within a version of the
    files fields are only added, so that older and newer ones can be read.
    """

    sealed_since: ClassVar[str] = ""  # a field of which every file has a seal

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


@dataclass(frozen=True)
class Column:
    """Annotation of a record's field that is a column of the results table."""

    order: int  # among all columns; those of a released version keep theirs
    planned: bool = False  # known before the experiment has run
    tracked: bool = False  # sent to trackers such as W&B


Value = TypeVar("Value", bound=Record)
_adapters: dict[type[Record], TypeAdapter[Any]] = {}  # making one takes milliseconds


def value_of(kind: type[Value], content: bytes | Mapping[str, Any]) -> Value:
    """Return the value that a JSON object holds, as text or parsed.

    Raises:
        ValueError: it is not JSON, or a field is missing or of another type.
    """
    adapter = _adapter(kind)
    if isinstance(content, bytes):
        with contextlib.suppress(ValueError):
            return adapter.validate_json(content)
        content = parse_json(content)
    return adapter.validate_json(json.dumps(content, ensure_ascii=False).encode(errors="replace"))


def read_value(kind: type[Value], path: StoragePath) -> Value | None:
    """Return the value in a file of this schema; None where there is none that can be read.

    Raises:
        StorageError: as `read_sealed`.
    """
    with contextlib.suppress(ValueError):
        return value_of(kind, read_versioned(path, kind.sealed_since))
    return None


def read_versioned(path: StoragePath, since: str = "") -> bytes:
    """Return the text of a file of this schema; none where there is no such file.

    Args:
        since: as in `read_sealed`.

    Raises:
        StorageError: as `read_value`.
    """
    raw = read_sealed(path, since) or b""
    version = _VERSION.search(raw)
    return raw if version is not None and int(version[1]) == SCHEMA_VERSION else b""


def parse_json(content: bytes) -> Any:
    """Parse with Python's parser: it takes half of a surrogate pair too, which a file name in an error may hold.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(content.decode())
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def _adapter(kind: type[Value]) -> TypeAdapter[Value]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


@functools.cache
def columns_of(kind: type[Any]) -> Mapping[str, Column]:
    """Return the columns among the fields of a record, by name."""
    hints = get_type_hints(kind, include_extras=True)
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: mark for name, some in marks.items() for mark in some if isinstance(mark, Column)}


def numbers_of(kind: type[Any]) -> dict[str, type[int | float]]:
    """Return int or float for each field of a record that is one, or None besides."""
    found: dict[str, type[int | float]] = {}
    for name, hint in get_type_hints(kind).items():
        types = set(get_args(hint) or (hint,)) - {type(None)}
        if types in ({int}, {float}):
            found[name] = types.pop()
    return found


def fields_of(kind: type[Any], value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, as a value of it, or of a subclass, holds them."""
    return {f.name: getattr(value, f.name) for f in fields(kind)}


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Stop Python's garbage collector for a block: it would scan values made by the ten thousand again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
