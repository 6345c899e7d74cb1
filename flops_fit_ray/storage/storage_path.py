"""Paths of sweep directories: of a file system (`pathlib.Path`) or of an object store (`ObjectPath`).

Code that needs a real file (a lock, a file descriptor, a library that opens by name) asks `local_path` for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, Protocol, Self
from urllib.parse import unquote

from flops_fit_ray.errors import DirectoryError, SpecError, first_line
from flops_fit_ray.storage.object_store import SCHEMES, ObjectPath

NAME_BYTES, PATH_BYTES = 255, 3500  # of Linux, with room for what lies in a sweep directory
VARIABLE = re.compile(r"\$([A-Za-z_]\w*|\{[A-Za-z_]\w*\})")
REMOTE_POLL_SECONDS = 2.0  # between looks at an object store


class StoragePath(Protocol):
    """The part of `pathlib.Path` that a sweep directory needs, wherever it is."""

    @property
    def name(self) -> str:
        """Last part."""

    @property
    def stem(self) -> str:
        """Last part without its suffix."""

    @property
    def suffix(self) -> str:
        """Last part from its last dot on."""

    @property
    def parent(self) -> Self:
        """All parts but the last."""

    def __truediv__(self, name: str, /) -> Self: ...

    def with_name(self, name: str, /) -> Self:
        """Replace the last part."""

    def absolute(self) -> Self:
        """Make absolute; paths of an object store always are."""

    def exists(self) -> bool:
        """Look for a file, or for anything below this name."""

    def is_dir(self) -> bool:
        """Look for anything below this name."""

    def iterdir(self) -> Iterator[Self]:
        """List one level below."""

    def glob(self, pattern: str, /) -> Iterator[Self]:
        """List those one level below whose name matches."""

    def read_bytes(self) -> bytes:
        """Read the whole content."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]:
        """Open for reading."""

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory, where there are such things."""

    def touch(self) -> None:
        """Make an empty file."""

    def rename(self, target: Self, /) -> Self:
        """Give it another name; returns that."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file."""


def expanded(text: str, key: str) -> str:
    """Return a path as its user means it: `~`, `$NAME`, `${NAME}` and `file://` resolved, wherever it was written.

    Args:
        key: of the spec or the command line, for the fault.

    Raises:
        SpecError: a variable is not set here, a home is not known, or the file is said to be on another machine.
    """
    unset = sorted({n.strip("{}") for n in VARIABLE.findall(text) if not os.environ.get(n.strip("{}"))})
    if unset:
        raise SpecError(key, [f"{text!r}: {unset[0]} is not set in this environment; set it, or write the path itself"])
    words = VARIABLE.sub(lambda found: os.environ[found[1].strip("{}")], text)
    if words.startswith("file:"):
        host, slash, path = words.removeprefix("file:").removeprefix("//").partition("/")
        if not slash or host not in ("", "localhost"):
            raise SpecError(key, [f"{text!r} is no file of this machine; write file:///PATH or the path itself"])
        return _short_enough(unquote(slash + path), key)
    home = os.path.expanduser(words)  # noqa: PTH111 - Path would lose the slashes of a URI
    if home.startswith("~"):
        raise SpecError(key, [f"{text!r}: no home {home.partition('/')[0]!r} is known here; write the path itself"])
    return home if "://" in home else _short_enough(home, key)


def _short_enough(path: str, key: str) -> str:
    """Return the path. Systems answer every question about a longer one with an error.

    Raises:
        SpecError: it, or a name in it, is too long.
    """
    name = max(path.split("/"), key=lambda one: len(os.fsencode(one)))
    for what, found, most in (("a name", name, NAME_BYTES), ("a path", path, PATH_BYTES)):
        if len(os.fsencode(found)) > most:
            length = len(os.fsencode(found))
            raise SpecError(key, [f"{found[:20]}... is {what} of {length} bytes, and {most} are allowed; shorten it"])
    return path


def storage_path(text: str | Path, base: Path | None = None) -> StoragePath:
    """Return the absolute path that a user names: of files, or the URI of an object store.

    Args:
        base: directory that a relative one starts from; by default the working directory.

    Raises:
        SpecError: it is a URI of another kind, or without a bucket or a name in it; or as `expanded`.
    """
    words = expanded(str(text), "output")
    scheme, is_uri, rest = words.partition("://")
    if not is_uri:
        return (base or Path()).absolute() / words
    rest, _, query = rest.partition("?")
    bucket, _, key = rest.strip("/").partition("/")
    if scheme not in SCHEMES or not bucket or not key:
        raise SpecError("output", [f"{words!r} is no path and not of the form s3://bucket/name or gs://bucket/name"])
    return ObjectPath(f"{scheme}://{bucket}", key, query)


def is_remote(path: StoragePath) -> bool:
    """Tell whether every look costs a request."""
    return not isinstance(path, Path)


def is_taken(path: StoragePath) -> bool:
    """Tell whether anything has this name: a file, or what is none, such as a link to nowhere."""
    return os.path.lexists(path) if isinstance(path, Path) else path.exists()


def check_store_answers(path: StoragePath) -> None:
    """Send the first request to the store of a path; there is none for a path of files.

    Raises:
        DirectoryError: the store does not answer, or refuses.
    """
    if not is_remote(path):
        return
    try:
        path.exists()
    except (OSError, ImportError, ValueError) as e:
        raise DirectoryError(
            f"{path}: cannot be reached: {first_line(e)}; look at the name of the bucket, the network, the credentials "
            "and the options behind '?'"
        ) from e


def local_path(path: StoragePath) -> Path:
    """Return the same path for code that needs a file system.

    Raises:
        DirectoryError: it is in an object store.
    """
    if not isinstance(path, Path):
        raise DirectoryError(f"{path}: lies in an object store, and this needs a file; copy it to this machine first")
    return path


def pyarrow_location(path: StoragePath) -> tuple[Any, str]:
    """Return pyarrow's file system (None: the local one), and the name in it that pyarrow, pandas and Ray take."""
    return path.where if isinstance(path, ObjectPath) else (None, str(path))


def remove_tree(path: StoragePath) -> None:
    """Remove a directory and all in it, as far as that can be done."""
    if isinstance(path, ObjectPath):
        with contextlib.suppress(OSError):
            path.remove_tree()
    else:
        shutil.rmtree(local_path(path), ignore_errors=True)


def names_in(path: StoragePath) -> list[str]:
    """List the names one level below; none where there is no such directory."""
    try:
        if isinstance(path, Path):
            return [entry.name for entry in os.scandir(path)]  # several times faster than iterdir
        return [child.name for child in path.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
