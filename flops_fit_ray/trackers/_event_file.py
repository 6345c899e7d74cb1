"""TensorBoard's event files: protocol buffers, each between its length and checksums (TFRecord).

    uint64 length | uint32 masked CRC-32C of the length | data | uint32 masked CRC-32C of the data

Written here because tensorboardX takes the checksum byte by byte in Python, and an fsync for every flush.
"""

from __future__ import annotations

import functools
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78  # Castagnoli's, with its bits reversed (RFC 3720)
MASK = 0xA282EAD8  # by TFRecord, because a checksum of data that hold checksums tells little
PIECE = 256  # bytes that are looked up at once


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
    sums = crc32c(records)
    return b"".join(
        part for data, crc in zip(records, sums, strict=True) for part in (_header(len(data)), data, _masked(crc))
    )


@functools.cache
def _header(length: int) -> bytes:
    packed = struct.pack("<Q", length)
    return packed + _masked(crc32c([packed])[0])


def _masked(crc: int) -> bytes:
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + MASK) & 0xFFFFFFFF)


def crc32c(records: Sequence[bytes]) -> list[int]:
    """Return the CRC-32C of each record; those of one length are computed together."""
    found = [0] * len(records)
    by_length: dict[int, list[int]] = {}
    for i, data in enumerate(records):
        by_length.setdefault(len(data), []).append(i)
    for length, places in by_length.items():
        rows = np.frombuffer(b"".join(records[i] for i in places), dtype=np.uint8).reshape(len(places), length)
        state = np.full(len(places), 0xFFFFFFFF, dtype=np.uint32)
        for start in range(0, length, PIECE):
            state = _state_after(rows[:, start : start + PIECE], state)
        for i, crc in zip(places, (state ^ np.uint32(0xFFFFFFFF)).tolist(), strict=True):
            found[i] = crc
    return found


def _state_after(rows: NDArray[np.uint8], state: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the state after the bytes (second axis) of each record.

    A CRC is linear over GF(2): it is the XOR of what each byte adds by its distance from the end, once the state before
    is XORed into the first four bytes.
    """
    table, length = _contributions(), rows.shape[1]
    if length < 4:
        for column in rows.T:
            state = table[0][(state ^ column) & 255] ^ (state >> 8)
        return state
    rows = rows.copy()
    rows[:, :4] ^= state.astype("<u4").view(np.uint8).reshape(-1, 4)
    added: NDArray[np.uint32] = np.bitwise_xor.reduce(table[np.arange(length - 1, -1, -1), rows], axis=1)
    return added


@functools.cache
def _contributions() -> NDArray[np.uint32]:
    """Return the state after a byte (second axis) and so many zero bytes behind it (first axis)."""
    byte = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        byte = np.where(byte & 1, (byte >> 1) ^ np.uint32(POLYNOMIAL), byte >> 1)
    rows = [byte]
    for _ in range(PIECE - 1):
        rows.append((rows[-1] >> 8) ^ byte[rows[-1] & 255])
    return np.array(rows, dtype=np.uint32)
