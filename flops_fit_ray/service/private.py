"""Directories of the service that nobody else may change, and the seal of what it starts."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flops_fit_ray.errors import DirectoryError
from flops_fit_ray.service.paths import ServicePaths

SEAL = "seal"  # field of a sealed file
OTHERS_WRITE, OTHERS = 0o022, 0o077  # bits of a mode


@contextlib.contextmanager
def private_umask() -> Iterator[None]:
    """Make all files of this process 0600 and all directories 0700, and those of what it starts, during the block."""
    before = os.umask(OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def check_directories(paths: ServicePaths) -> None:
    """Make the root and the directory of the service, unless they are there, and check that they are the owner's alone.

    Raises:
        DirectoryError: one cannot be made, is a link, belongs to somebody else, or others can write it.
    """
    try:
        paths.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owned(paths.root, "choose another --root")
        paths.home.mkdir(exist_ok=True, mode=0o700)
        _check_owned(paths.home, f"look what is in it, and move it away: mv {paths.home} {paths.home}.untrusted")
        if paths.home.stat().st_mode & OTHERS:  # they could read it
            paths.home.chmod(0o700)
        for directory, below, files in os.walk(paths.home):
            for name in (*below, *files):
                _check_kept(Path(directory, name))
    except OSError as e:
        raise DirectoryError(f"{paths.root}: cannot be written: {e.strerror}; choose another --root") from e


def _check_owned(directory: Path, way_out: str) -> None:
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise DirectoryError(f"{directory}: is a link or no directory; {way_out}")
    if found.st_uid != os.geteuid():
        raise DirectoryError(f"{directory}: belongs to another user, who could start processes here; {way_out}")
    if found.st_mode & OTHERS_WRITE:
        way_out = f"chmod go-w {directory}, once you know that all in it is yours; or {way_out}"
        mode = stat.filemode(found.st_mode)
        raise DirectoryError(f"{directory}: others can write it ({mode}), and so start processes here; {way_out}")


def _check_kept(place: Path) -> None:
    """Check what an earlier service has left, or somebody who could write there for a while."""
    found = place.lstat()
    plain = stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)
    if not plain or found.st_uid != os.geteuid() or found.st_mode & OTHERS_WRITE:
        mode = stat.filemode(found.st_mode)
        raise DirectoryError(
            f"{place}: is no file or directory of this user alone ({mode}, user {found.st_uid}), so no service of "
            "theirs made it; look what it is, and delete it"
        )


def token_content(place: Path) -> str:
    """Return what the token's file holds.

    Raises:
        DirectoryError: it is a link or no file, has further names, or others can read or own it.
        OSError: it cannot be read.
    """
    file = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(file, "rb") as opened:
        found = os.fstat(file)
        alone = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
        if not alone or found.st_mode & OTHERS or found.st_uid != os.geteuid():
            raise DirectoryError(f"{place}: others can read this token, or own it; delete the file and start again")
        return opened.read(1024).decode(errors="replace").strip()


class Seal:
    """Seal of files that the service writes and acts on later. Only who knows the token can make one."""

    def __init__(self, token: str) -> None:
        self._key = hmac.digest(token.encode(), b"asked.json", "sha256")

    def sealed(self, content: Mapping[str, Any], spec: Path) -> dict[str, Any]:
        """Return the content with its seal; `spec` is a file that is sealed with it, if it is there."""
        return {**content, SEAL: self._of(content, spec)}

    def holds(self, content: Mapping[str, Any], spec: Path) -> bool:
        """Return True if the content and the spec are those that were sealed."""
        return hmac.compare_digest(str(content.get(SEAL)).encode(), self._of(content, spec).encode())

    def _of(self, content: Mapping[str, Any], spec: Path) -> str:
        try:
            text = spec.read_bytes()
        except OSError:
            text = b""
        plain = json.dumps({k: v for k, v in content.items() if k != SEAL}, sort_keys=True)
        return hmac.new(self._key, plain.encode() + b"\0" + text, hashlib.sha256).hexdigest()
