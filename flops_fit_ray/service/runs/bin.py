"""Bin of deleted sweeps. The service never removes anything from it, and each sweep can be restored.

A sweep directory goes to ROOT/.bin/ID, what the service knows of it to ROOT/.service/bin/ID. A note is written before
either is moved, so that a service that was killed in between finishes what it began.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from flops_fit_ray.service.http import names
from flops_fit_ray.service.http.request_error import conflict, not_found
from flops_fit_ray.service.runs.queue import Runs
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.codec import Record, value_of
from flops_fit_ray.storage.lock import living_owner, refuse_second_writer
from flops_fit_ray.storage.paths import SCHEMA_VERSION
from flops_fit_ray.storage.storage_path import names_in


@dataclass(frozen=True, kw_only=True)
class Deleted(Record):
    """A sweep in the bin; the fields are the keys of its note."""

    id: str
    name: str
    deleted_at: float  # seconds since the epoch
    moving: Literal["in", "out"] | None = None  # what is being done with it


class Bin:
    """The bin of a root.

    Args:
        forget: forgets what is cached of a sweep, whose directory is another one from now on.
    """

    def __init__(self, runs: Runs, forget: Callable[[str], None]) -> None:
        self._runs, self._paths, self._forget = runs, runs.paths, forget
        for deleted in self._noted():
            if deleted.moving is not None:
                self._move(deleted)

    def all(self) -> list[Deleted]:
        """Return the sweeps in the bin, the newest first."""
        there = [one for one in self._noted() if any(os.path.lexists(inside) for _, inside in self._places(one))]
        return sorted(there, key=lambda one: (-one.deleted_at, one.id))

    def named(self, bin_id: str) -> Deleted:
        """Return a sweep in the bin.

        Raises:
            RequestError: there is none with this id.
        """
        found = self._read(bin_id) if re.fullmatch(names.BINNED, bin_id) else None
        if found is None:
            raise not_found("sweep in the bin")
        return found

    def directory(self, deleted: Deleted) -> Path:
        """Return the directory of a sweep in the bin."""
        return self._paths.binned(deleted.id)

    def put(self, name: str) -> Deleted:
        """Move a sweep into the bin.

        Raises:
            RequestError: there is none, it waits or is run, or it cannot be moved.
            DirectoryError: another process writes it.
        """
        with self._runs.lock:
            directory, last = names.sweep_directory(self._paths, name), self._runs.last(name)
            if last is None and not directory.plan.exists():
                raise not_found("sweep")
            if last is not None and last.phase != "ended":
                raise conflict(f"{name} is {last.phase}; stop it first, or wait until it ends", "running")
            if (owner := living_owner(directory)) is not None:
                raise conflict(f"{name} is run by {owner}; stop it there first", "running")
            refuse_second_writer(directory)
            deleted = Deleted(id=f"{name}.{secrets.token_hex(4)}", name=name, deleted_at=time.time(), moving="in")
            return self._moved(deleted)

    def restore(self, bin_id: str) -> str:
        """Move a sweep out of the bin, to where it was, and return its name.

        Raises:
            RequestError: there is none with this id, its name is taken, or it cannot be moved.
        """
        with self._runs.lock:
            deleted = self.named(bin_id)
            if any(os.path.lexists(place) for place, _ in self._places(deleted)):
                raise conflict(
                    f"there is another {deleted.name} now; delete that first, then restore this", "name_taken"
                )
            self._moved(replace(deleted, moving="out"))
            return deleted.name

    def _moved(self, deleted: Deleted) -> Deleted:
        self._write(deleted)
        try:
            self._move(deleted)
        except OSError as e:
            with contextlib.suppress(OSError):  # back, as far as it came
                self._move(replace(deleted, moving="out" if deleted.moving == "in" else "in"))
            raise conflict(f"{deleted.name}: cannot be moved: {e.strerror}; nothing was changed") from e
        finally:
            self._runs.forget(deleted.name)
            self._forget(deleted.name)
        return replace(deleted, moving=None)

    def _move(self, deleted: Deleted) -> None:
        """Move whatever is not moved yet. Nothing is ever overwritten."""
        for outside, inside in self._places(deleted):
            source, target = (outside, inside) if deleted.moving == "in" else (inside, outside)
            if os.path.lexists(source) and not os.path.lexists(target):
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                source.rename(target)
        if deleted.moving == "in" or any(os.path.lexists(inside) for _, inside in self._places(deleted)):
            self._write(replace(deleted, moving=None))
        else:
            self._paths.bin_note(deleted.id).unlink()
            self._paths.bin_note(deleted.id).parent.rmdir()

    def _places(self, deleted: Deleted) -> Iterator[tuple[Path, Path]]:
        yield self._paths.root / deleted.name, self._paths.binned(deleted.id)
        yield self._paths.started / deleted.name, self._paths.binned_runs(deleted.id)

    def _noted(self) -> list[Deleted]:
        found = (self._read(name) for name in names_in(self._paths.bin) if re.fullmatch(names.BINNED, name))
        return [one for one in found if one is not None]

    def _read(self, bin_id: str) -> Deleted | None:
        content = read_json(self._paths.bin_note(bin_id))
        try:
            return None if content is None else value_of(Deleted, content)
        except ValueError:
            return None

    def _write(self, deleted: Deleted) -> None:
        write_json(self._paths.bin_note(deleted.id), {"schema_version": SCHEMA_VERSION, **asdict(deleted)})
