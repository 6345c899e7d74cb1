"""Files of a sweep directory: written whole and durably, and checked when they are read.

Nothing here knows what a file means: that is left to the ledger, the planner and the report.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from flops_fit_ray.errors import StorageError
from flops_fit_ray.storage._claims import claimed
from flops_fit_ray.storage.object_store import ObjectPath, Response
from flops_fit_ray.storage.opening import regular_file, without_waiting
from flops_fit_ray.storage.storage_path import StoragePath, is_remote, local_path

MARK, SEAL = "sealed", "sealed_sha256"  # of a file that is not believed without its seal, and the seal
NO_SEAL = 64 * b"0"  # stands where the digest will, while it is taken
_SEAL = re.compile(rb'"sealed_sha256"\s*:\s*"([^"]*)"')
_MARK = re.compile(rb'"sealed"\s*:\s*true')

# What the system says of a name without a file of ours: there is none, or a directory, a pipe, a circle of links.
# Anything else (a disk that fails, a server that is away, no permission, too many open files) says nothing of the file.
_NO_FILE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EINVAL,
    errno.EFBIG,
    errno.ELOOP,
    errno.ENXIO,
    errno.ENODEV,
    errno.ENAMETOOLONG,
}

RETRY_SECONDS = (0.5, 2.0, 8.0, 30.0)  # between tries of a request to an object store


@contextlib.contextmanager
def whole_file(path: StoragePath, *, once: bool = False, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that becomes `path` when the block ends without an error, durably and as a whole.

    On a file system: temporary file, fsync, rename, fsync of the directory. In an object store: one PUT; with `once`
    after the name was claimed.

    Args:
        once: keep a file that is there already, even if another process writes at the same moment.
        durable: wait for the disk; False for what may be lost with the power, and is made again.

    Raises:
        StorageError: it cannot be written; what was there before is still there.
    """
    try:
        if isinstance(path, ObjectPath):
            with tempfile.NamedTemporaryFile() as file:
                yield file
                file.flush()
                with claimed(path, with_retries) if once else contextlib.nullcontext():
                    if not (once and with_retries(path.exists)):
                        with_retries(lambda: path.put(Path(file.name)))
        else:
            with _whole_file(local_path(path), once, durable) as local:
                yield local
    except OSError as e:
        raise storage_error(path, "written", e) from e


def storage_error(path: StoragePath, action: str, error: OSError) -> StorageError:
    """Return what to raise where `path` cannot be `action`: "written", "renamed" or "read"."""
    reason = error.strerror or error
    return StorageError(f"{path}: cannot be {action}: {reason}; fix that, then run the same command again to resume")


def with_retries(request: Callable[[], Response]) -> Response:
    """Send a request to an object store, again where it fails for another reason than that there is no such object.

    Raises:
        OSError: it failed every time.
    """
    for seconds in RETRY_SECONDS:
        try:
            return request()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(seconds)
    return request()


def remove_strays(directory: StoragePath) -> None:
    """Remove temporary files of a writer that was killed. Only for the one writer of a directory."""
    if is_remote(directory):
        return  # an object is never half-written
    for stray in directory.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            stray.unlink()


def set_aside(path: StoragePath) -> StoragePath | None:
    """Rename a file that cannot be read, and return its new name; None where there is no such file. Nothing is deleted.

    Raises:
        StorageError: it cannot be renamed.
    """
    aside = path.with_name(f"{path.name}.unreadable-{time.time_ns()}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise storage_error(path, "renamed", e) from e
    return aside


def append_line(path: StoragePath, line: str) -> None:
    """Append a line to a log. In an object store all of it is written again.

    Raises:
        OSError: it cannot be written.
    """
    if isinstance(path, ObjectPath):
        before = b""
        with contextlib.suppress(FileNotFoundError):
            before = path.read_bytes()
        path.write_bytes(before + f"{line}\n".encode())
        return
    local_path(path.parent).mkdir(parents=True, exist_ok=True)
    with io.FileIO(local_path(path), "a", opener=without_waiting) as log:
        log.write(f"{line}\n".encode())


def write_bytes(path: StoragePath, content: bytes, *, once: bool = False, durable: bool = True) -> None:
    """Write `path` as `whole_file` does.

    Raises:
        StorageError: as `whole_file`.
    """
    with whole_file(path, once=once, durable=durable) as file:
        file.write(content)


@contextlib.contextmanager
def _whole_file(path: Path, once: bool, durable: bool) -> Iterator[IO[bytes]]:
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if not (once and _linked(temporary, path)):
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        _sync_names(path.parent)


_durable: set[Path] = set()  # directories whose names this process knows to be on the disk


def make_directory(directory: Path) -> None:
    """Make a directory of files unless it is there, and its name durable, as those of the directories above it.

    A file is only as durable as the names that lead to it. Who made them may have been killed before they were.

    Raises:
        OSError: it cannot be made.
    """
    if directory.parent == directory or (directory in _durable and directory.is_dir()):
        return
    make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    with contextlib.suppress(PermissionError):  # where this process can make no name
        _sync_names(directory.parent)
    _durable.add(directory)


def _sync_names(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # there is no such thing there
            raise
    finally:
        os.close(descriptor)


def _linked(temporary: Path, path: Path) -> bool:
    """Link the file to its name unless that is taken; False where the file system has no hard links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as e:
        if e.errno in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK):
            return False
        raise
    temporary.unlink()
    return True


def write_json(
    path: StoragePath, content: Mapping[str, Any], *, once: bool = False, sealed: bool = False, durable: bool = True
) -> None:
    """Write a JSON object as `write_bytes` does.

    Args:
        sealed: add the file's own sha256 as its last field, and a mark before it: any later change is noticed, and
            the loss of the sha256 too.

    Raises:
        ValueError: it holds NaN or infinity, which JSON cannot express.
        StorageError: as `write_bytes`.
    """
    whole = {**content, MARK: True, SEAL: NO_SEAL.decode()} if sealed else content
    raw = (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode()
    if sealed:
        before, _, after = raw.rpartition(NO_SEAL)
        raw = before + hashlib.sha256(raw).hexdigest().encode() + after
    write_bytes(path, raw, once=once, durable=durable)


def sealed_text(text: str) -> bytes:
    """Return a text with its own sha256 in a comment as its last line."""
    raw = text.encode()
    return raw + f"# {SEAL}: {hashlib.sha256(raw).hexdigest()}\n".encode()


def text_seal(raw: bytes) -> bool | None:
    """Tell whether a text is the one that was sealed; None where it has no seal."""
    text, mark, seal = raw.rpartition(f"# {SEAL}: ".encode())
    return seal == f"{hashlib.sha256(text).hexdigest()}\n".encode() if mark else None


def read_file(path: StoragePath) -> bytes:
    """Return the whole content of a regular file or an object.

    Raises:
        OSError: there is none, it is larger than any file of ours, or something else: a pipe would be waited for, and
            a device never ends.
    """
    if isinstance(path, ObjectPath):
        return with_retries(path.read_bytes)
    try:
        with regular_file(local_path(path)) as file:
            return file.readall()
    except OSError as e:
        if e.errno != errno.ESTALE:  # on NFS: replaced by another machine after it was opened
            raise
    with regular_file(local_path(path)) as file:
        return file.readall()


def is_missing(path: StoragePath, error: OSError) -> bool:
    """Return True if an error of reading means that no file of ours is there; False if one may well be."""
    if isinstance(path, ObjectPath):
        return isinstance(error, FileNotFoundError)
    return error.errno in _NO_FILE


@contextlib.contextmanager
def open_file(path: StoragePath) -> Iterator[IO[bytes]]:
    """Open a regular file of any size, or an object, for reading.

    Raises:
        OSError: as `read_file`.
    """
    if isinstance(path, ObjectPath):
        with path.open("rb") as copied:
            yield copied
    else:
        with regular_file(local_path(path), math.inf) as file, io.BufferedReader(file) as buffered:
            yield buffered


def sha256_of(file: IO[bytes]) -> str:
    """Return the digest of what is left of a file, in hex digits."""
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def read_sealed(path: StoragePath, since: str = "") -> bytes | None:
    """Return the content of a JSON file as it was written; None where it is missing, was changed, or lost its seal.

    Args:
        since: a field of which every file has a seal, for kinds that were sealed before files said so of themselves.

    Raises:
        StorageError: it cannot be read now (a disk that fails, a store that does not answer), and may well be whole.
    """
    try:
        raw = read_file(path)
    except MemoryError as e:
        raise storage_error(path, "read", OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))) from e
    except OSError as e:
        if is_missing(path, e):
            return None
        raise storage_error(path, "read", e) from e
    return raw if _is_sealed(raw, since) else None


def has_mark(raw: bytes) -> bool:
    """Tell whether a JSON file is of a version that seals what it writes."""
    return _MARK.search(raw) is not None


def _is_sealed(raw: bytes, since: str) -> bool:
    """Tell whether a file has the content that was sealed, or is of a version that did not seal it."""
    seal = _SEAL.match(raw, max(0, raw.rfind(f'"{SEAL}"'.encode())))
    if seal is None:
        return not (has_mark(raw) or (since and f'"{since}"'.encode() in raw))
    digest = hashlib.sha256(memoryview(raw)[: seal.start(1)])
    digest.update(NO_SEAL)
    digest.update(memoryview(raw)[seal.end(1) :])
    return digest.hexdigest().encode() == seal[1]


def read_json(path: StoragePath) -> dict[str, Any] | None:
    """Return the JSON object in `path`, without its seal; None where it is missing, torn, no object, or was changed.

    Raises:
        StorageError: as `read_sealed`.
    """
    raw = read_sealed(path)
    try:
        content = None if raw is None else json.loads(raw.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    return {name: value for name, value in content.items() if name not in (MARK, SEAL)}
