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
SLOWEST_BYTES = 1e6  # per second; slower transfers time out
Response = TypeVar("Response")


def with_timeout(request: Callable[[], Response], size: int = 0) -> Response:
    """Send a request to a store, and wait for the response for a limited time: pyarrow itself may wait for ever.

    Args:
        size: bytes to transfer.

    Raises:
        TimeoutError: it took too long. The request may still be running in its thread.
        OSError: it failed.
    """
    found: list[Response] = []
    failed: list[BaseException] = []

    def send() -> None:
        try:
            found.append(request())
        except BaseException as e:  # noqa: BLE001 - raised again in the thread that waits
            failed.append(e)

    thread = threading.Thread(target=send, name="object store", daemon=True)
    thread.start()
    limit = REQUEST_SECONDS + size / SLOWEST_BYTES
    thread.join(limit)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {limit:g} s")
    return found[0]


@dataclass(frozen=True, order=True)
class ObjectPath:
    """Path in an object store, with the part of `pathlib.Path` that `StoragePath` names. Requests raise OSError."""

    store: str  # scheme://bucket
    key: str  # without a slash at either end
    query: str = ""  # options of pyarrow's file system, such as endpoint_override=localhost:9000&scheme=http

    def __str__(self) -> str:
        return f"{self.store}/{self.key}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.store, str(PurePosixPath(self.key) / name), self.query)

    @property
    def name(self) -> str:
        """Last part."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """Last part without its suffix."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """Last part from its last dot on."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> ObjectPath:
        """All parts but the last."""
        return ObjectPath(self.store, str(PurePosixPath(self.key).parent), self.query)

    def with_name(self, name: str) -> ObjectPath:
        """Replace the last part."""
        return self.parent / name

    def absolute(self) -> ObjectPath:
        """Return it as it is."""
        return self

    @property
    def where(self) -> tuple[Any, str]:
        """pyarrow's file system, and the name in it."""
        filesystem, bucket = _filesystem(self.store, self.query)
        return filesystem, f"{bucket}/{self.key}"

    def _kind(self) -> str:
        from pyarrow.fs import FileType

        filesystem, name = self.where
        found = with_timeout(lambda: filesystem.get_file_info(name).type)
        return {FileType.File: "file", FileType.Directory: "directory"}.get(found, "")

    def exists(self) -> bool:
        """Look for an object of this name, or below it."""
        return bool(self._kind())

    def is_dir(self) -> bool:
        """Look for objects below this name."""
        return self._kind() == "directory"

    def iterdir(self) -> Iterator[ObjectPath]:
        """List one level below."""
        from pyarrow.fs import FileSelector

        filesystem, name = self.where
        for info in with_timeout(lambda: filesystem.get_file_info(FileSelector(name, allow_not_found=True))):
            yield self / info.base_name

    def below(self) -> Iterator[tuple[ObjectPath, float]]:
        """List all objects below, with the time at which each was written, in seconds by the clock of the store."""
        from pyarrow.fs import FileSelector, FileType

        filesystem, name = self.where
        for info in with_timeout(
            lambda: filesystem.get_file_info(FileSelector(name, allow_not_found=True, recursive=True))
        ):
            if info.type == FileType.File:
                yield ObjectPath(self.store, info.path.partition("/")[2], self.query), info.mtime_ns / 1e9

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """List those one level below whose name matches."""
        assert "/" not in pattern
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def read_bytes(self) -> bytes:
        """Read the whole content."""
        filesystem, name = self.where

        def read() -> bytes:
            with filesystem.open_input_stream(name) as stream:
                return bytes(stream.read())

        return with_timeout(read)

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Open a local copy of the content for reading."""
        filesystem, name = self.where
        copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it

        def read() -> None:
            with filesystem.open_input_stream(name) as stream:
                shutil.copyfileobj(stream, copy, 1 << 20)

        with_timeout(read)
        copy.seek(0)
        return copy

    def put(self, content: Path) -> None:
        """Upload a local file; readers see all of it or none."""
        filesystem, name = self.where

        def write() -> None:  # it may still run after a timeout, so it opens the file itself
            with content.open("rb") as local, filesystem.open_output_stream(name) as stream:
                shutil.copyfileobj(local, stream, 1 << 20)

        with_timeout(write, content.stat().st_size)

    def write_bytes(self, content: bytes) -> None:
        """Write the whole content; readers see all of it or none."""
        filesystem, name = self.where

        def write() -> None:
            with filesystem.open_output_stream(name) as stream:
                stream.write(content)

        with_timeout(write, len(content))

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: an object store has no directories."""

    def touch(self) -> None:
        """Write an empty object."""
        self.write_bytes(b"")

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        filesystem, name = self.where
        try:
            with_timeout(lambda: filesystem.delete_file(name))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: ObjectPath) -> ObjectPath:
        """Copy, then delete: not atomic, and used where that is not needed."""
        if not self.exists():
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        filesystem, name = self.where
        with_timeout(lambda: filesystem.copy_file(name, target.where[1]))
        with_timeout(lambda: filesystem.delete_file(name))
        return target

    def remove_tree(self) -> None:
        """Delete everything below."""
        filesystem, name = self.where
        with_timeout(lambda: filesystem.delete_dir(name))


@functools.cache
def _filesystem(store: str, query: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    # It asks a store for the region of a bucket, or a cloud for its credentials
    filesystem, bucket = with_timeout(lambda: FileSystem.from_uri(f"{store}?{query}" if query else store))
    return filesystem, str(bucket)
