"""Objects that are no data, told by what they are, before torch is imported."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

EXPECTED = "Expected a torch.utils.data.Dataset, a DataLoader, a tuple of tensors or arrays, or a TokenFile"
TABLE_LIBRARIES = {"pandas", "polars", "pyarrow"}
NO_NUMBERS = "OUSVMm"  # kinds of NumPy's dtypes that no tensor can hold


def data_faults(name: str, data: Any, *, of_any_kind: bool = False) -> Iterator[str]:
    """Yield a fault for what is no dataset: text, numbers and lists of them, tables, lists of columns, a function.

    Args:
        name: of the key or argument.
        of_any_kind: samples may be text or numbers, because the loss takes the batch as it is.
    """
    items = list(data) if isinstance(data, tuple) else data if isinstance(data, list) else []
    if data is None:
        return
    if _is_scalar(data) or (items and _is_scalar(items[0]) and not of_any_kind):
        yield f"{name}: {reprlib.repr(data)} holds no samples (input, target). {EXPECTED}"
    elif isinstance(data, type | FunctionType):
        yield f"{name}: {data.__name__} is a {type(data).__name__}; pass what it returns. {EXPECTED}"
    elif table := next((_table(part) for part in (data, *items[:2]) if _table(part)), ""):
        yield (
            f"{name}: {'is' if _table(data) else 'holds'} a {table}; write a tuple of arrays, such as "
            "(frame[inputs].to_numpy('float32'), frame[[target]].to_numpy('float32'))"
        )
    elif isinstance(data, dict) and type(data).__module__ == "builtins":
        yield from _dict_faults(name, data)
    elif _is_columns(data, items):
        yield (
            f"{name}: a list of {len(items)} arrays would be as many samples; write a tuple (inputs, targets)"
            if getattr(items[0], "ndim", 0)
            else f"{name}: a {type(data).__name__} of {len(items)} lists would be as many samples; write a tuple of "
            "tensors, (torch.tensor(inputs), torch.tensor(targets))"
        )
    else:
        yield from _array_faults(name, data if isinstance(data, tuple) else (data,))


def _dict_faults(name: str, data: Mapping[Any, Any]) -> Iterator[str]:
    other = next((part for part, value in data.items() if not hasattr(value, "ndim")), None)
    if not data:
        yield f"{name}: is an empty dict; pass at least one sample"
    elif other is not None:
        yield (
            f"{name}: is a dict whose {other!r} is a {type(data[other]).__name__}; its values must be tensors or "
            "arrays of one length, such as torch.tensor(values)"
        )
    else:
        yield from _array_faults(name, tuple(data.values()))


def _array_faults(name: str, arrays: tuple[Any, ...]) -> Iterator[str]:
    for array in arrays:
        dtype = getattr(array, "dtype", None)
        if hasattr(array, "ndim") and getattr(dtype, "kind", "f") in NO_NUMBERS:
            yield f"{name}: holds an array of dtype {dtype}, which no tensor can hold; make it one of numbers"
            return


def _is_columns(data: Any, items: list[Any]) -> bool:
    """Return True for inputs and targets one after the other where samples are meant."""
    arrays = isinstance(data, list) and len(items) > 1 and all(getattr(part, "ndim", 0) for part in items)
    lists = 2 <= len(items) <= 4 and all(type(part) is list for part in items)
    return (arrays or lists) and len({len(part) for part in items}) == 1 and len(items[0]) > len(items)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bytes | int | float | complex | os.PathLike | None)


def _table(value: Any) -> str:
    """Return the name of a table's class; empty for any other object."""
    kind = type(value)
    library = kind.__module__.partition(".")[0]
    return f"{library} {kind.__name__}" if library in TABLE_LIBRARIES and hasattr(value, "__len__") else ""
