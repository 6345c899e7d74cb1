"""Paths in an object store (s3://, gs://) through pyarrow, with requests that end in time.

An object is written by one PUT, whole or not at all; there are no directories, no locks, no appending and no renaming,
and every look costs a request.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, TypeVar

SCHEMES = ("s3", "gs", "gcs")
REQUEST_SECONDS = 60.0  # after which a request is given up
SLOWEST_BYTES = 1e6  # per second, that a transfer is given in addition
Answer = TypeVar("Answer")


def in_time(request: Callable[[], Answer], size: int = 0) -> Answer:
    """The answer of a store, which on Linux may otherwise be waited for without end.

    Args:
        size: bytes that travel.

    Raises:
        TimeoutError: it took too long. The request may still go on, and nobody waits for it.
        OSError: it failed.
    """
    found: list[Answer] = []
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            found.append(request())
        except BaseException as e:  # noqa: BLE001 - handed on to whoever waits
            failed.append(e)

    thread = threading.Thread(target=ask, name="object store", daemon=True)
    thread.start()
    thread.join(REQUEST_SECONDS + size / SLOWEST_BYTES)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {REQUEST_SECONDS:g} s")
    return found[0]


@dataclass(frozen=True, order=True)
class ObjectPath:
    """A name in an object store, with as much of `pathlib.Path` as a sweep directory needs. Requests raise OSError."""

    store: str  # scheme://bucket
    key: str  # without a slash at either end
    query: str = ""  # options of pyarrow's file system, such as endpoint_override=localhost:9000&scheme=http

    def __str__(self) -> str:
        return f"{self.store}/{self.key}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.store, str(PurePosixPath(self.key) / name), self.query)

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """What follows the last dot of the last part."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> ObjectPath:
        """All parts but the last."""
        return ObjectPath(self.store, str(PurePosixPath(self.key).parent), self.query)

    def with_name(self, name: str) -> ObjectPath:
        """The same with another last part."""
        return self.parent / name

    def absolute(self) -> ObjectPath:
        """Itself."""
        return self

    @property
    def where(self) -> tuple[Any, str]:
        """pyarrow's file system, and the name in it."""
        filesystem, bucket = _filesystem(self.store, self.query)
        return filesystem, f"{bucket}/{self.key}"

    def _kind(self) -> str:
        from pyarrow.fs import FileType

        filesystem, name = self.where
        found = in_time(lambda: filesystem.get_file_info(name).type)
        return {FileType.File: "file", FileType.Directory: "directory"}.get(found, "")

    def exists(self) -> bool:
        """Whether there is an object of this name, or below it."""
        return bool(self._kind())

    def is_dir(self) -> bool:
        """Whether there are objects below this name."""
        return self._kind() == "directory"

    def iterdir(self) -> Iterator[ObjectPath]:
        """The names one level below."""
        from pyarrow.fs import FileSelector

        filesystem, name = self.where
        for info in in_time(lambda: filesystem.get_file_info(FileSelector(name, allow_not_found=True))):
            yield self / info.base_name

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Those one level below whose name matches."""
        assert "/" not in pattern
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def read_bytes(self) -> bytes:
        """The whole content."""
        filesystem, name = self.where

        def read() -> bytes:
            with filesystem.open_input_stream(name) as stream:
                return bytes(stream.read())

        return in_time(read)

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Open a local copy of the content for reading."""
        filesystem, name = self.where
        copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - whoever asked closes it

        def read() -> None:
            with filesystem.open_input_stream(name) as stream:
                shutil.copyfileobj(stream, copy, 1 << 20)

        in_time(read)
        copy.seek(0)
        return copy

    def put(self, content: Path) -> None:
        """Write the whole content of a local file; nobody sees less than all of it."""
        filesystem, name = self.where

        def write() -> None:  # it may go on after it was given up, so the file is its own
            with content.open("rb") as local, filesystem.open_output_stream(name) as stream:
                shutil.copyfileobj(local, stream, 1 << 20)

        in_time(write, content.stat().st_size)

    def write_bytes(self, content: bytes) -> None:
        """Write the whole content; nobody sees less than all of it."""
        filesystem, name = self.where

        def write() -> None:
            with filesystem.open_output_stream(name) as stream:
                stream.write(content)

        in_time(write, len(content))

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: an object store has no directories."""

    def touch(self) -> None:
        """An empty object."""
        self.write_bytes(b"")

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove it."""
        filesystem, name = self.where
        try:
            in_time(lambda: filesystem.delete_file(name))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: ObjectPath) -> ObjectPath:
        """Copy, then remove: not in one go, and used for nothing that has to be."""
        if not self.exists():
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        filesystem, name = self.where
        in_time(lambda: filesystem.copy_file(name, target.where[1]))
        in_time(lambda: filesystem.delete_file(name))
        return target

    def remove_tree(self) -> None:
        """Remove everything below."""
        filesystem, name = self.where
        in_time(lambda: filesystem.delete_dir(name))


@functools.cache
def _filesystem(store: str, query: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    filesystem, bucket = FileSystem.from_uri(f"{store}?{query}" if query else store)
    return filesystem, str(bucket)
