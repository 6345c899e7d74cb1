"""The user's code in short, so that other processes and later runs can tell whether theirs is the same.

Source files count by what Python reads in them: comments, blank lines, layout and docstrings change nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from flops_fit_ray import formatting as fmt
from flops_fit_ray.storage.codec import Record

SHOWN = 4  # names in a line


@dataclass(frozen=True, kw_only=True)
class CodeFacts(Record):
    """The files, packages and objects that the user's model, data, loss and hooks are made of."""

    files: Mapping[str, str] = field(default_factory=dict)  # hash of each source file, by its path
    packages: Mapping[str, str] = field(default_factory=dict)  # version and hash of those installed from a directory
    objects: Mapping[str, str] = field(default_factory=dict)  # hash of each object that is sent by value, by name
    python: str = ""  # whose byte code `objects` are
    libraries: tuple[str, ...] = ()  # other packages that the files import: their versions are compared
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # module of each file outside of the spec's directory
    written: tuple[str, ...] = ()  # files that the code writes itself while it is loaded: they are not compared

    @cached_property
    def digest(self) -> str:
        """16 hex digits that are the same for the same code."""
        parts = {"files": dict(self.files), "packages": dict(self.packages), "objects": dict(self.objects)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def changes_to(self, now: CodeFacts) -> list[str]:
        """Describe how the code of `now` differs: `parts.py was edited`, `helpers.py is new`."""
        return [
            *_changes(self.files, now.files),
            *_changes(self.packages, now.packages),
            *(_changes(self.objects, now.objects) if self.python == now.python else ()),
        ]


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            yield f"{name} is not used any more"
        elif name not in before:
            yield f"{name} is new"
        elif before[name] != now[name]:
            yield f"{name} was edited"


def named(changes: list[str]) -> str:
    """Join changes for a line, the first of them where there are many."""
    return fmt.listed(changes, SHOWN)
