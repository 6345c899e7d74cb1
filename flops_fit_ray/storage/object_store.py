"""Where a sweep directory may be: on a file system, or in an object store (s3://, gs://) through pyarrow.

An object is written by one PUT, whole or not at all; there are no directories, no locks, no appending and no renaming,
and every look costs a request. What follows for files is in `files`, for the one writer in `lease`; others ask
`is_remote` where a look is taken again and again.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, TypeAlias, TypeVar, cast

from flops_fit_ray.errors import SpecError

SCHEMES = ("s3", "gs", "gcs")
REMOTE_POLL_SECONDS = 2.0  # between looks at an object store
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
                return cast(bytes, stream.read())

        return in_time(read)

    def open(self, mode: str = "rb") -> BinaryIO:
        """A local copy of the content, to read from."""
        assert mode == "rb"
        filesystem, name = self.where
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - whoever asked closes it

        def read() -> None:
            with filesystem.open_input_stream(name) as stream:
                shutil.copyfileobj(stream, cast(IO[bytes], copy), 1 << 20)

        in_time(read)
        copy.seek(0)
        return cast(BinaryIO, copy)

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

    def rename(self, target: ObjectPath) -> None:
        """Copy, then remove: not in one go, and used for nothing that has to be."""
        if not self.exists():
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        filesystem, name = self.where
        in_time(lambda: filesystem.copy_file(name, target.where[1]))
        in_time(lambda: filesystem.delete_file(name))

    def remove_tree(self) -> None:
        """Remove everything below."""
        filesystem, name = self.where
        in_time(lambda: filesystem.delete_dir(name))


Place: TypeAlias = Path | ObjectPath


def place_of(text: str | Path) -> Path:
    """The place that a person names: a path, or a URI of an object store, absolute.

    An `ObjectPath` goes by the type of `Path` from here on: nearly everybody treats both alike, and whoever asked one
    for more than it has would hear of it at once. What has to tell them apart takes a `Place`.

    Raises:
        SpecError: it is a URI of another kind, or without a bucket.
    """
    words = str(text)
    scheme, is_uri, rest = words.partition("://")
    if not is_uri:
        return Path(words).absolute()
    rest, _, query = rest.partition("?")
    bucket, _, key = rest.strip("/").partition("/")
    if scheme not in SCHEMES or not bucket or not key:
        raise SpecError("output", [f"{words!r} is no path and not of the form s3://bucket/name or gs://bucket/name"])
    return cast(Path, ObjectPath(f"{scheme}://{bucket}", key, query))


def is_remote(place: Place) -> bool:
    """Whether every look costs a request."""
    return isinstance(place, ObjectPath)


def filesystem_of(place: Place) -> Any:
    """pyarrow's file system of an object store; None of files."""
    return place.where[0] if isinstance(place, ObjectPath) else None


def file_name(place: Place) -> str:
    """The place as pyarrow, pandas and Ray name it in its own file system."""
    return place.where[1] if isinstance(place, ObjectPath) else str(place)


@functools.cache
def _filesystem(store: str, query: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    return cast("tuple[Any, str]", FileSystem.from_uri(f"{store}?{query}" if query else store))


def make_directory(place: Place) -> None:
    """Make a directory where there are such things."""
    if isinstance(place, Path):
        place.mkdir(parents=True, exist_ok=True)


def remove_tree(place: Place) -> None:
    """Remove a directory and all in it, as far as that can be done."""
    if isinstance(place, Path):
        shutil.rmtree(place, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        place.remove_tree()


def names_in(place: Place) -> list[str]:
    """The names one level below; none where there is no such place."""
    try:
        if isinstance(place, Path):
            return [entry.name for entry in os.scandir(place)]  # several times faster than iterdir
        return [path.name for path in place.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
