"""Suggestions for unknown keys: misspelt, in another section, or named as in another library."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import get_args, get_origin

from flops_fit_ray.spec._sweep_spec import SweepSpec
from flops_fit_ray.spec._values import Section
from flops_fit_ray.spec._vocabulary import HINTS, NO_KEYS

ALIKE, NEARLY_ALIKE = 0.6, 0.85  # likeness (difflib) of a misspelling: where one key is likely, and where several are

MAX_KEY = 200  # characters; likeness takes their square

WITHOUT_KEY = {name: note for note, names in NO_KEYS.items() for name in names.split()}
BY_NAME = {name: hint for hint in HINTS for name in hint.names.split()}
EXTRA_KEYS = {"model": "arguments of the constructor belong in model.kwargs",
              "data": "arguments of the dataset's factory belong in data.kwargs"}  # fmt: skip


def meant_key(key: str, known: Sequence[str]) -> str:
    """Return the known key of the same section that an unknown one stands for; empty where none is likely."""
    plain = _snake(key[:MAX_KEY])
    if plain in known or _is_path(key):
        return plain if plain in known else ""
    elsewhere = any(plain in names for names in (BY_NAME, WITHOUT_KEY, _paths_by_key(), _joined_paths()))
    near = difflib.get_close_matches(plain, known, 1, NEARLY_ALIKE if elsewhere else ALIKE)
    return near[0] if near else ""


def meant_paths(key: str) -> tuple[tuple[str, ...], str]:
    """Return the paths that an unknown key of any section may stand for, and a note on how the value differs.

    Without paths the note says why there is no such key; it is empty where the key is not known at all.
    """
    if _is_path(key):
        return (key,), ""
    plain = _snake(key[:MAX_KEY])
    if path := _joined_paths().get(plain):  # train_lr, train/lr
        return (path,), ""
    if plain in WITHOUT_KEY:
        return (), WITHOUT_KEY[plain]
    names = [*BY_NAME, *_paths_by_key()]
    near = difflib.get_close_matches(plain, names, 1, NEARLY_ALIKE)
    if plain not in names and near:
        plain = near[0]
    hint, paths = BY_NAME.get(plain), _paths_by_key().get(plain, ())
    if hint is None:
        return paths, ""
    return tuple(dict.fromkeys([hint.path, *paths])), hint.note


def way_out(key: str, section: Sequence[int | str], known: Sequence[str]) -> str:
    """Return what to write instead of an unknown key.

    Args:
        section: path of the section in which it stands.
        known: the keys of that section.
    """
    if near := meant_key(key, known):
        return f"did you mean {near!r}?"
    if _is_path(key):
        *sections, last = key.split(".")
        return f"a key holds no dots; write {': {'.join(sections)}: {{{last}: ...{'}' * len(sections)}"
    paths, note = meant_paths(key)
    if paths:
        return f"write {' or '.join(paths)}" + (f" ({note})" if note else "")
    if note:
        return f"remove it: {note}"
    extra = EXTRA_KEYS.get(".".join(map(str, section)))
    return f"known keys: {', '.join(known)}" + (f"; {extra}" if extra else "")


def _is_path(key: str) -> bool:
    first, dot, _ = key.partition(".")
    return bool(dot) and first in SweepSpec.model_fields


def _snake(key: str) -> str:
    """Return a key as a spec writes it: learning-rate, learningRate and "learning rate" are learning_rate."""
    return re.sub(r"[\s./:-]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)).strip("_").lower()


@cache
def _paths_by_key() -> dict[str, tuple[str, ...]]:
    """Paths of a spec by their last key."""
    paths: dict[str, tuple[str, ...]] = {}
    for path in all_paths(SweepSpec):
        section, _, key = path.rpartition(".")
        if section == "budgets_for":  # which nobody writes
            continue
        paths[key] = (*paths.get(key, ()), path)
    return paths


@cache
def _joined_paths() -> dict[str, str]:
    """Paths of a spec by their keys joined as one word, except those that are names of keys themselves."""
    joined = {path.replace(".", "_"): path for path in all_paths(SweepSpec) if "." in path}
    return {word: path for word, path in joined.items() if word not in BY_NAME and word not in _paths_by_key()}


def all_paths(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Paths of all keys of a section and of the sections within it; those in lists have none."""
    for key, field in section.model_fields.items():
        yield f"{prefix}{key}"
        several = () if get_origin(field.annotation) is list else get_args(field.annotation)
        for kind in (field.annotation, *several):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from all_paths(kind, f"{prefix}{key}.")
