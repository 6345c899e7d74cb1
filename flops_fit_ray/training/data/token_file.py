"""Token files: flat binary files of token ids, read window by window.

Windows are read with `pread`, so that resident memory does not grow with what was read, as it does with a memory map.
`_token_format.py` knows the layouts.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Subset

from flops_fit_ray.errors import SpecError
from flops_fit_ray.storage.storage_path import expanded
from flops_fit_ray.training.data._token_format import examine
from flops_fit_ray.training.fence import judged_files

HELD_OUT = re.compile(r"(?<![a-z])(val|valid|validation|test|eval|heldout)(?![a-z])", re.IGNORECASE)


SUFFIXES = (".bin", ".npy")
WAY_OUT = "tokenize it to uint16 or uint32 ids first, or give a function module:attribute that returns a dataset"


class TokenFile(Dataset[Any]):
    """Samples of `context` tokens and, as targets, the token that follows each; windows do not overlap.

    Args:
        paths: one file, or several in order; no window spans two files.
        context: tokens per sample.
        dtype: of the ids on disk; `auto` follows a header, `meta.pkl` or the bytes; where they say nothing, uint16.

    Raises:
        SpecError: a file is missing, its size does not fit the dtype, or all are shorter than one window.
    """

    def __init__(self, paths: str | Path | Sequence[str | Path], context: int, dtype: str = "auto") -> None:
        several = [paths] if isinstance(paths, str | Path) else list(paths)
        self.context = context
        self.files = [examine(Path(expanded(str(path), "data")), dtype) for path in several]
        self._ends = list(accumulate(max(0, (file.tokens - 1) // context) for file in self.files))
        self._open: dict[int, int] = {}  # file descriptors of this process
        if not self._ends or self._ends[-1] == 0:
            longest = max((file.tokens for file in self.files), default=0)
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
        file = self.files[number]
        if number not in self._open:
            self._open[number] = os.open(file.path, os.O_RDONLY)
        size = (self.context + 1) * file.dtype.itemsize
        begin = file.start + first * file.dtype.itemsize
        content = os.pread(self._open[number], size, begin)
        if len(content) != size:
            raise EOFError(f"{file.path} is shorter than when it was opened; a window ends at byte {begin + size}")
        return np.frombuffer(content, dtype=file.dtype)

    @property
    def doubts(self) -> list[str]:
        """Warnings about the files: another dtype than their bytes show, held-out data among them."""
        named = [file.path.name for file in self.files if HELD_OUT.search(file.path.name)]
        among = (
            [f"{named[0]} is among the files, and its name says held-out"] if 0 < len(named) < len(self.files) else []
        )
        return [*among, *(file.doubt for file in self.files if file.doubt)][:3]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # pickled as paths; each worker opens the files itself

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


def token_file_of(data: Any) -> TokenFile | None:
    """Return the token file that data are read from, or a part of; None for other data."""
    inner = data
    while isinstance(inner, Subset):
        inner = inner.dataset
    return inner if isinstance(inner, TokenFile) else None


def open_token_files(named: str, base: Path, *, context: int | None, dtype: str, key: str) -> TokenFile:
    """Open the token files that a path, a glob pattern or a directory relative to `base` names, in order of names.

    Raises:
        SpecError: there is none, or one cannot be used.
    """
    try:
        path = Path(expanded(named, key))
    except SpecError as e:
        raise SpecError("spec", [f"{key}: {e.faults[0]}"]) from e
    anchor, parts = (Path(path.anchor), path.parts[1:]) if path.is_absolute() else (base, path.parts)
    found = sorted(anchor.glob(str(Path(*parts)))) if parts else [anchor]
    if len(found) == 1 and found[0].is_dir():
        found = _files_of(found[0], named, key)
    odd = next((file for file in found if file.suffix not in SUFFIXES), None)
    if odd is not None:
        raise SpecError("spec", [f"{key}: {odd} is no file of token ids (.bin or .npy); {WAY_OUT}"])
    if context is None:
        raise SpecError("spec", [f"data.context: is missing; {key} is a token file, so set the tokens per sample"])
    if not found:
        way_out = "" if path.suffix in SUFFIXES else "; a dataset of your own is written module:attribute"
        raise SpecError("spec", [f"{key}: no file {named!r} in {anchor}{way_out}"])
    try:
        return TokenFile(judged_files(found, key), context, dtype)
    except SpecError as e:
        raise SpecError(e.source, [fault.replace("data: ", f"{key}: ", 1) for fault in e.faults]) from e


def _files_of(directory: Path, named: str, key: str) -> list[Path]:
    """Return the token files of a directory, if all are of one kind of data."""
    found = sorted(file for file in directory.iterdir() if file.suffix in SUFFIXES)
    if not found:
        others = Counter(file.suffix or "no suffix" for file in directory.iterdir() if file.is_file())
        kinds = ", ".join(f"{count} with {suffix}" for suffix, count in others.most_common(3)) or "none at all"
        raise SpecError("spec", [f"{key}: {directory} has no file of token ids (.bin or .npy), but {kinds}; {WAY_OUT}"])
    held_out = [file for file in found if HELD_OUT.search(file.name)]
    if 0 < len(held_out) < len(found):
        one, other = next(file for file in found if file not in held_out), held_out[0]
        fault = f"{key}: {directory} has training and held-out files ({one.name}, {other.name}); name the ones meant"
        raise SpecError("spec", [f"{fault}, for example {named.rstrip('/')}/train*{found[0].suffix}"])
    return found
