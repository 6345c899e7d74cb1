"""TensorBoard's event files: protocol buffers, each between its length and checksums (TFRecord).

    uint64 length | uint32 masked CRC-32C of the length | data | uint32 masked CRC-32C of the data

Framed here because tensorboardX buffers what it writes, to write it again at the exit of the process where the disk is
full, and asks for an fsync at every flush.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from crc32c import crc32c

MASK = 0xA282EAD8  # by TFRecord, because a checksum of data that hold checksums tells little


class EventFile:
    """An event file of a new name in a directory."""

    def __init__(self, directory: Path) -> None:
        from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped] # it has no types

        directory.mkdir(parents=True, exist_ok=True)
        # To the nanosecond, else a file of the same second would be written over
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        self._file = (directory / name).open("xb", buffering=0)
        self.write([Event(wall_time=time.time(), file_version="brain.Event:2")])

    def write(self, events: Iterable[Any]) -> None:
        """Append events, to be seen at once.

        Raises:
            OSError: they cannot be written.
        """
        left = memoryview(framed([event.SerializeToString() for event in events]))
        while left:  # without a buffer, whose rest would be tried again when the file is closed
            left = left[self._file.write(left) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def framed(records: Sequence[bytes]) -> bytes:
    """Return records, each between its length and the checksums."""
    found = []
    for data in records:
        length = struct.pack("<Q", len(data))
        found += [length, _masked(length), data, _masked(data)]
    return b"".join(found)


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + MASK) & 0xFFFFFFFF)
