"""Notes on a sweep, a line each in a file of its directory, so that they go where the directory goes."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
import time
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

from flops_fit_ray.service.http.names import opened
from flops_fit_ray.service.http.redact import redacted_values
from flops_fit_ray.service.http.request_error import RequestError, conflict, not_found
from flops_fit_ray.storage.codec import Record, Timestamp, value_of
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path

MAX_NOTE = 4000  # characters
MAX_AUTHOR = 80
MAX_BYTES = 1 << 20  # of all notes of a sweep

_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Note(Record):
    """Words that somebody wrote about a sweep. Everybody has the same token, so `author` is as they call themselves."""

    at: Timestamp
    author: str
    text: str


def notes_of(paths: SweepPaths) -> list[dict[str, Any]]:
    """Return the notes, oldest first, with secrets redacted; a line that is none is left out."""
    try:
        with opened(paths.notes, paths.root, "note") as file:
            content = file.read(MAX_BYTES)
    except RequestError:
        return []
    found = []
    for line in content.splitlines():
        with contextlib.suppress(ValueError):
            found.append(dict(redacted_values(asdict(value_of(Note, line)))))
    return found


def keep_note(paths: SweepPaths, author: str, text: str) -> None:
    """Add a note.

    Raises:
        RequestError: it is empty or too long, there are too many, or the directory cannot be written.
    """
    author, text = author.strip(), text.strip().replace("\r\n", "\n")
    if not text or not author or len(text) > MAX_NOTE or len(author) > MAX_AUTHOR:
        message = f"a note has 1 to {MAX_NOTE} characters, and its author's name 1 to {MAX_AUTHOR}"
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, message)
    if not local_path(paths.root).is_dir():
        raise not_found("sweep")
    line = json.dumps({"at": time.time(), "author": author, "text": text}).encode() + b"\n"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with _lock, os.fdopen(os.open(local_path(paths.notes), flags, 0o600), "ab") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise conflict(f"{paths.notes.name} in the sweep directory is no file; delete it")
            if found.st_size + len(line) > MAX_BYTES:
                raise conflict(f"the notes of this sweep have {MAX_BYTES // 1024} KiB, which is all that is kept")
            file.write(line)
    except OSError as e:
        raise conflict(f"the note cannot be kept in the sweep directory: {e.strerror}") from e
