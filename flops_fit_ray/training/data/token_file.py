"""Token files: flat binary files of token ids, read window by window.

A file is either raw (nanoGPT: `np.uint16` tokens from the first byte) or has a header of 256 int32 (llm.c: magic
number, version, number of tokens). Windows are read with `pread`, so that resident memory does not grow with what was
read, as it does with a memory map.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from flops_fit_ray.errors import SpecError
from flops_fit_ray.storage.storage_path import expanded

HEADER_BYTES = 256 * 4
MAGIC = {20240520: "uint16", 20240801: "uint32"}  # llm.c: files of GPT-2 and of Llama-3 tokens
DTYPES = ("uint8", "uint16", "uint32", "int32", "int64")


class TokenFile(Dataset[Any]):
    """Samples of `context` tokens and, as targets, the token that follows each; windows do not overlap.

    Args:
        paths: one file, or several in order; no window spans two files.
        context: tokens per sample.
        dtype: of the ids on disk; `auto` follows the header, and is uint16 without one.

    Raises:
        SpecError: a file is missing, its size does not fit the dtype, or all are shorter than one window.
    """

    def __init__(self, paths: str | Path | Sequence[str | Path], context: int, dtype: str = "auto") -> None:
        several = [paths] if isinstance(paths, str | Path) else list(paths)
        self.context = context
        self.files = [_examine(Path(expanded(str(path), "data")), dtype) for path in several]
        self._ends = list(accumulate(max(0, (tokens - 1) // context) for _, _, _, tokens in self.files))
        self._open: dict[int, int] = {}  # file descriptors of this process
        if not self._ends or self._ends[-1] == 0:
            longest = max((tokens for *_, tokens in self.files), default=0)
            fault = f"data: {several[0]} has {longest} tokens, but a window of data.context {context} needs"
            raise SpecError("spec", [f"{fault} {context + 1}"])

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batch(np.array([index]))
        return inputs[0], targets[0]

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, each (len(indices), context) of int64."""
        windows = np.empty((len(indices), self.context + 1), dtype=np.int64)
        for row, index in enumerate(indices.tolist()):
            number = bisect_right(self._ends, index)
            first = (index - (self._ends[number - 1] if number else 0)) * self.context
            windows[row] = self._read(number, first)
        tokens = torch.from_numpy(windows)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def all_tokens(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of all windows."""
        return self.batch(np.arange(len(self)))

    def _read(self, number: int, first: int) -> NDArray[Any]:
        path, dtype, start, _ = self.files[number]
        if number not in self._open:
            self._open[number] = os.open(path, os.O_RDONLY)
        size = (self.context + 1) * dtype.itemsize
        content = os.pread(self._open[number], size, start + first * dtype.itemsize)
        if len(content) != size:
            raise EOFError(f"{path} is shorter than when it was opened; a window ends at byte {start + first + size}")
        return np.frombuffer(content, dtype=dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # pickled as paths; each worker opens the files itself

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


def _examine(path: Path, dtype: str) -> tuple[Path, np.dtype[Any], int, int]:
    """Return the absolute path, dtype, offset of the first token in bytes, and number of tokens."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = np.frombuffer(file.read(12).ljust(12, b"\0"), dtype=np.int32)
    except OSError as e:
        raise SpecError("spec", [f"data: {path} cannot be read: {e.strerror}"]) from e
    magic = int(head[0]) if size > HEADER_BYTES else 0
    headed = magic in MAGIC
    kind = np.dtype((MAGIC[magic] if headed else "uint16") if dtype == "auto" else dtype)
    start = HEADER_BYTES if headed else 0
    if (size - start) % kind.itemsize:
        raise SpecError(
            "spec", [f"data: {path} has {size - start} bytes, not a multiple of {kind.name}'s; set data.dtype"]
        )
    tokens = (size - start) // kind.itemsize
    if headed and int(head[2]) != tokens:
        raise SpecError(
            "spec",
            [f"data: {path} has {tokens} tokens of {kind.name}, but its header says {int(head[2])}; copy it again"],
        )
    return path.absolute(), kind, start, tokens


def open_token_files(pattern: str, base: Path, *, context: int | None, dtype: str, key: str) -> TokenFile:
    """Open the token files that match a path or glob pattern relative to `base`, in order of their names.

    Raises:
        SpecError: none matches, or one cannot be used.
    """
    if context is None:
        raise SpecError("spec", [f"data.context: is missing; {key} is a token file, so set the tokens per sample"])
    try:
        path = Path(expanded(pattern, key))
    except SpecError as e:
        raise SpecError("spec", [f"{key}: {e.faults[0]}"]) from e
    anchor, parts = (Path(path.anchor), path.parts[1:]) if path.is_absolute() else (base, path.parts)
    found = sorted(anchor.glob(str(Path(*parts))))
    if not found:
        raise SpecError("spec", [f"{key}: no file {pattern!r} in {anchor}"])
    try:
        return TokenFile(found, context, dtype)
    except SpecError as e:
        raise SpecError(e.source, [fault.replace("data: ", f"{key}: ", 1) for fault in e.faults]) from e
