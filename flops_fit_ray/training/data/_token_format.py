"""Formats of token files: where the ids begin, their type, and how that is known.

1) A header tells it: llm.c's and modded-nanogpt's (256 int32), numpy's (.npy), or Megatron's index beside it (.idx).
2) Else `meta.pkl` beside it, as nanoGPT writes it, has the vocabulary.
3) Else the bytes show it: ids of 4 bytes read as 2 have a small or no number in every second place.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flops_fit_ray.errors import SpecError

HEADER_BYTES = 256 * 4
MAGIC = {20240520: "uint16", 20240801: "uint32"}  # llm.c: files of GPT-2 and of Llama-3 tokens
MEGATRON = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
FOREIGN = (  # first bytes of files that hold no bare ids, what they are, and the way out
    (
        b"PAR1",
        "a parquet file",
        "tokenize its text, or name a function module:attribute",
    ),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with git lfs pull"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it"),
    (b"BZh", "compressed with bzip2", "unpack it"),
    (b"PK\x03\x04", "a zip archive, as torch.save and numpy.savez write them", "save the ids with numpy.save"),
    (b"\x80\x02", "a pickle", "save the ids with numpy.save"),
    (b"\x80\x04", "a pickle", "save the ids with numpy.save"),
    (b"<!DOCTYPE", "an HTML page", "download the file itself"),
    (b"<html", "an HTML page", "download the file itself"),
)
BLOCKS, BLOCK_BYTES = 64, 1 << 16  # of a file that are looked at, evenly spaced
MIN_SEEN = 128  # ids, before the bytes of a file are believed
SMALL = 15  # the upper half of an id of 4 bytes, with a vocabulary of up to a million
MAX_META_BYTES = 64 << 20
SHOWN_IDS = 32
SHOWN_CHARACTERS = 48


@dataclass(frozen=True)
class TokenFormat:
    """One token file."""

    path: Path  # absolute
    dtype: np.dtype[Any]
    start: int  # byte of the first id
    tokens: int
    known_by: str  # how its dtype is known, for people
    doubt: str = ""  # what speaks against the dtype that the user has set


def examine(path: Path, dtype: str) -> TokenFormat:
    """Find out the format of a token file; `dtype` is `auto`, or that of files without a header.

    Raises:
        SpecError: it cannot be read, is of another kind, or contradicts itself.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
        headed = _by_header(path, head, size)
        seen = b"" if headed else _blocks(path, 0, size)
    except OSError as e:
        raise _fault(f"{path} cannot be read: {e.strerror}") from e
    doubt, count, start = "", None, 0
    if headed is not None:
        name, start, count, known_by = headed
        if dtype not in ("auto", np.dtype(name).name):
            raise _fault(f"{path} has ids of {np.dtype(name).name}, {known_by}, not of {dtype}; leave data.dtype out")
    else:
        shown = _by_bytes(seen)
        name, known_by = shown or _by_vocabulary(path) or ("uint16", "assumed: it has no header, data.dtype is auto")
        if dtype != "auto":
            if shown is not None and np.dtype(name).itemsize != np.dtype(dtype).itemsize:
                doubt = f"{path.name} looks like {name} ({known_by}), and data.dtype says {dtype}"
            name, known_by = dtype, "as data.dtype says"
    kind = np.dtype(name)
    if (size - start) % kind.itemsize:
        raise _fault(f"{path} has {size - start} bytes, not a multiple of {kind.name}'s; set data.dtype")
    tokens = (size - start) // kind.itemsize
    if count is not None and count != tokens:
        raise _fault(f"{path} has {tokens} tokens of {kind.name}, but its header says {count}; copy it again")
    return TokenFormat(path.absolute(), kind, start, tokens, known_by, doubt)


def _fault(what: str) -> SpecError:
    return SpecError("spec", [f"data: {what}"])


def _by_header(path: Path, head: bytes, size: int) -> tuple[str, int, int | None, str] | None:
    """Return dtype, first byte and number of the ids by a header, and how they are known; None without one."""
    for magic, what, way_out in FOREIGN:
        if head.startswith(magic):
            raise _fault(f"{path} is {what}, not token ids; {way_out}")
    if head.startswith(b"\x93NUMPY"):
        return _by_numpy(path)
    magic_number = int(np.frombuffer(head[:4].ljust(4, b"\0"), dtype="<i4")[0])
    if size > HEADER_BYTES and magic_number in MAGIC:
        return MAGIC[magic_number], HEADER_BYTES, int(np.frombuffer(head[8:12], dtype="<i4")[0]), "as its header says"
    index = path.with_suffix(".idx")
    if index.is_file():
        with index.open("rb") as file:
            begin = file.read(18)  # 9 bytes of magic, 8 of version, 1 of dtype
        if begin.startswith(b"MMIDIDX\0\0") and len(begin) == 18:
            code = begin[17]
            if code not in MEGATRON:
                raise _fault(f"{index} says dtype {code}, which is none of whole numbers; write the ids as uint16")
            return MEGATRON[code], 0, None, f"as {index.name} says"
    return None


def _by_numpy(path: Path) -> tuple[str, int, int | None, str]:
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = read(file)
        except ValueError as e:
            raise _fault(f"{path} cannot be read as numpy's: {e}; save it again") from e
        start = file.tell()
    if kind.kind not in "iu":
        raise _fault(f"{path} holds {kind}, not whole numbers; save the ids as uint16 or uint32")
    if len(shape) != 1:
        raise _fault(
            f"{path} has the shape {shape}, and token ids have one axis; save them flattened, or give data.train a "
            "function module:attribute that returns (inputs, targets)"
        )
    return kind.str, start, int(shape[0]), "as its header says"


def _by_vocabulary(path: Path) -> tuple[str, str] | None:
    meta = read_meta(path)
    size = meta.get("vocab_size")
    if not isinstance(size, int) or size < 1:
        return None
    return ("uint16" if size <= 1 << 16 else "uint32"), f"as meta.pkl says, with a vocabulary of {size:,}"


class _PlainValues(pickle.Unpickler):
    """Reads numbers, texts, lists and dicts. A pickle that names any class or function is not read."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names {module}.{name}")


def read_meta(path: Path) -> dict[str, Any]:
    """Return what `meta.pkl` beside a token file says, without running code of it; empty without one."""
    meta = path.with_name("meta.pkl")
    try:
        if meta.stat().st_size > MAX_META_BYTES:
            return {}
        content = _PlainValues(io.BytesIO(meta.read_bytes())).load()
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is only a hint
        return {}
    return content if isinstance(content, dict) else {}


def _blocks(path: Path, start: int, size: int, count: int = BLOCKS) -> bytes:
    """Return evenly spaced blocks of a file, each at a multiple of 8 bytes from the first id."""
    whole = (size - start) // 8 * 8
    if whole <= count * BLOCK_BYTES:
        places = [(start, size - start)]
    else:
        places = [(start + i * (whole - BLOCK_BYTES) // max(1, count - 1) // 8 * 8, BLOCK_BYTES) for i in range(count)]
    found = []
    with path.open("rb") as file:
        for place, length in places:
            file.seek(place)
            found.append(file.read(length))
    return b"".join(found)


def _by_bytes(seen: bytes) -> tuple[str, str] | None:
    """Return the dtype that the bytes of a file without a header show, and why; None where they show nothing."""
    numbers = np.frombuffer(seen[: len(seen) // 8 * 8], dtype=np.uint8)
    small = numbers.view("<u2")
    if len(small) < MIN_SEEN:
        return None
    if _is_wide(small):
        if _is_wide(numbers.view("<u4")):
            return "int64", "found: as uint32 every second id would be 0"
        return "uint32", f"found: as uint16 every second id would be 0 to {int(small[1::2].max())}"
    return ("uint8", "found: even and odd bytes are alike") if _are_bytes(numbers) else None


def _is_wide(numbers: NDArray[Any]) -> bool:
    """Return True if every second number is the upper half of an id of twice the width."""
    low, high = numbers[0::2], numbers[1::2]
    if not low.any() or float(np.mean(low > 0)) < 0.1:
        return False
    return not high.any() or bool(high.max() <= SMALL and low.max() > 255)


def _are_bytes(numbers: NDArray[np.uint8]) -> bool:
    """Return True for ids of one byte: the bytes at even and at odd places have the same, uneven distribution."""
    if not numbers.any():
        return False
    even, odd = (np.bincount(numbers[i::2], minlength=256) / (len(numbers) // 2) for i in (0, 1))
    noise = math.sqrt(256 / len(numbers))  # of the distance of two samples of one distribution
    return float(np.abs(even - odd).sum()) / 2 < 0.05 + noise and float(max(even.max(), odd.max())) > 0.02


def range_of(file: TokenFormat, count: int = BLOCKS) -> tuple[int, int, bool]:
    """Return the smallest and the largest id of evenly spaced blocks, and True if these are the whole file."""
    size = file.start + file.tokens * file.dtype.itemsize
    ids = np.frombuffer(_blocks(file.path, file.start, size, count), dtype=file.dtype)
    return (int(ids.min()), int(ids.max()), len(ids) == file.tokens) if len(ids) else (0, 0, True)


def glimpse(file: TokenFormat) -> str:
    """Return how the file begins, decoded, where `meta.pkl` has the texts or each id is a byte; else empty."""
    with file.path.open("rb") as content:
        content.seek(file.start)
        ids = np.frombuffer(content.read(SHOWN_IDS * file.dtype.itemsize), dtype=file.dtype).tolist()
    texts = read_meta(file.path).get("itos")
    if isinstance(texts, list):
        texts = dict(enumerate(texts))
    if isinstance(texts, dict):
        text = "".join(str(texts.get(i, f"<{i}>")) for i in ids)
    elif file.dtype == np.uint8:
        text = bytes(ids).decode("utf-8", "replace")
    else:
        return ""
    return text[:SHOWN_CHARACTERS]


def describe_tokens(files: Sequence[TokenFormat]) -> tuple[str, int]:
    """Return a line on the files (names, type, number and range of the ids, how they begin) and the largest id.

    Raises:
        SpecError: an id is negative, or not in the vocabulary of `meta.pkl`.
    """
    first, last = files[0], files[-1]
    names = first.path.name if len(files) == 1 else f"{len(files)} files, {first.path.name} to {last.path.name}"
    found = [range_of(file, max(1, BLOCKS // len(files))) for file in files]
    smallest, largest = min(low for low, _, _ in found), max(high for _, high, _ in found)
    if smallest < 0:
        raise _fault(f"{names} has the id {smallest}; ids are 0 or more: is data.dtype right?")
    vocabulary = read_meta(first.path).get("vocab_size")
    if isinstance(vocabulary, int) and largest >= vocabulary:
        raise _fault(f"{names} has the id {largest}, and meta.pkl a vocabulary of {vocabulary}; set data.dtype")
    kinds = ", ".join(dict.fromkeys(f"{file.dtype.name} ({file.known_by})" for file in files))
    tokens = sum(file.tokens for file in files)
    looked_at = "" if all(complete for *_, complete in found) else " of those looked at"
    text = glimpse(first)
    begins = f", begins {text!r}" if text else ""
    return f"{names}: {kinds}, {tokens:,} tokens, largest id {largest:,}{looked_at}{begins}", largest
