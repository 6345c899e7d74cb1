"""Opening of files that somebody else may have put there: regular ones alone, within a size, and through no link.

Nothing here waits: neither for a pipe nor for a device.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

MAX_BYTES = 2**28  # of a file that is read as a whole; a plan of 10,000 experiments has a twentieth of that

_without_links: set[str] = set()  # directories, with a slash at the end


def follow_no_links_in(directory: Path) -> None:
    """Let this process open no file below a directory through a link: what lies there is not to be trusted."""
    _without_links.add(f"{directory}/")


def open_below(path: Path, root: Path) -> int:
    """Return a descriptor of a file below `root`, for reading, without following any link and without waiting.

    Raises:
        OSError: there is none, or a link is in its path.
    """
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for part in path.relative_to(root).parts[:-1]:
        before = here
        try:
            here = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=before)
        finally:
            os.close(before)
    try:
        return os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
    finally:
        os.close(here)


def regular_file(path: Path, max_bytes: float = MAX_BYTES) -> io.FileIO:
    """Open a regular file, not larger than that, for reading.

    Raises:
        OSError: there is none, it is larger, or something else: a pipe would be waited for, and a device never ends.
    """
    name = str(path)
    root = next((root for root in _without_links if name.startswith(root)), None) if _without_links else None
    # FileIO is faster than `read_bytes`, 10,000 times
    file = io.FileIO(name, opener=without_waiting) if root is None else io.FileIO(open_below(path, Path(root)), "rb")
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_size <= max_bytes:
        return file
    file.close()
    if stat.S_ISREG(found.st_mode):
        raise OSError(errno.EFBIG, f"larger than {max_bytes:g} bytes", str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def without_waiting(path: str, flags: int) -> int:
    """Open as `os.open` does, but never wait, as a pipe would have it."""
    return os.open(path, flags | os.O_NONBLOCK)  # a regular file is read as without it
