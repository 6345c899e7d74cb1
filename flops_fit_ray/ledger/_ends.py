"""Notes of how experiments were seen to end, so that a result or a failure that is deleted is missed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Literal, cast

from flops_fit_ray.errors import StorageError
from flops_fit_ray.storage.atomic import append_line, read_file, write_bytes
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, is_remote

End = Literal["completed", "failed"]
_OPEN = "open"  # again: what is recorded was put aside to try it once more
_LINE = re.compile("([0-9a-f]{8,64})(?: (completed|failed|open))?")


def read_ends(paths: SweepPaths) -> dict[str, End]:
    """Return how experiments of this plan or another were seen to end, by key; a line that is torn is left out."""
    found: dict[str, str] = {}
    for line in (*_lines(paths.completed), *_lines(paths.ends)):
        if said := _LINE.fullmatch(line):
            found[said[1]] = said[2] or "completed"  # as earlier versions wrote it
    return {key: cast(End, end) for key, end in found.items() if end != _OPEN}


def note_ends(paths: SweepPaths, known: dict[str, End], ends: Mapping[str, End | None]) -> None:
    """Note ends, None for an experiment that is open again, and take them into `known`, what is noted so far.

    A line each; in an object store all are written again. A note that cannot be written is no reason to stop.
    """
    new = {key: end for key, end in ends.items() if known.get(key) != end}
    if not new:
        return
    for key, end in new.items():
        if end is None:
            del known[key]
        else:
            known[key] = end
    noted: Mapping[str, End | None] = known if is_remote(paths.root) else new
    lines = "\n".join(f"{key} {end or _OPEN}" for key, end in noted.items())
    with contextlib.suppress(OSError, StorageError):
        if is_remote(paths.root):
            write_bytes(paths.ends, f"{lines}\n".encode())
        else:
            append_line(paths.ends, lines)


def _lines(path: StoragePath) -> list[str]:
    try:
        return read_file(path).decode(errors="replace").splitlines()
    except (OSError, MemoryError):
        return []
