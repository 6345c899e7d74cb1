"""Checkpoints: written atomically with a digest, and loaded without executing anything (`weights_only`).

A checkpoint is two files, `<step>.pt` and then its manifest `<step>.json`. It is valid only if the manifest is there
and the digest matches; a torn or damaged one is skipped, and the previous one is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

import torch

from flops_fit_ray.errors import ExperimentError, first_line
from flops_fit_ray.storage.atomic import (
    is_missing,
    open_file,
    read_json,
    remove_strays,
    sha256_of,
    storage_error,
    whole_file,
    write_json,
)
from flops_fit_ray.storage.paths import CheckpointPaths
from flops_fit_ray.storage.storage_path import StoragePath, remove_tree

FORMAT = 1  # raised whenever a checkpoint of this one cannot be read any more


class _HashingWriter:
    """A file that hashes and counts the bytes written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None  # torch's archive writer raises an unrelated RuntimeError in its place

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.bytes += len(content)
        try:
            return self._file.write(content)
        except OSError as e:
            self.error = e
            raise

    def flush(self) -> None:
        self._file.flush()


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """The manifest of one checkpoint."""

    step: int
    bytes: int
    sha256: str
    eval_loss: float | None


class CheckpointStore:
    """The checkpoints of one experiment: the last `keep`, and with `best` the one of the lowest held-out loss."""

    def __init__(self, directory: StoragePath, *, key: str, keep: int = 2, best: bool = False) -> None:
        self._paths, self._key, self._keep, self._best = CheckpointPaths(directory), key, keep, best

    def save(self, state: Mapping[str, Any], step: int, eval_loss: float | None = None) -> SavedCheckpoint:
        """Write a checkpoint, then delete those that are no longer kept.

        Raises:
            StorageError: it cannot be written; the existing ones are kept.
        """
        with whole_file(self._paths.state(step)) as file:
            hashed = _HashingWriter(file)
            try:
                torch.save(
                    {"format": FORMAT, "key": self._key, **state}, cast(IO[bytes], hashed)
                )  # only write and flush are used
            except RuntimeError as e:
                raise (hashed.error or e) from e
        finite = eval_loss if eval_loss is not None and math.isfinite(eval_loss) else None
        saved = SavedCheckpoint(step=step, bytes=hashed.bytes, sha256=hashed.digest.hexdigest(), eval_loss=finite)
        write_json(self._paths.note(step), {"format": FORMAT, **vars(saved)}, sealed=True)
        self._rotate(step)
        return saved

    def newest(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Return the newest valid state, None if there is none, and a warning per damaged checkpoint.

        Raises:
            StorageError: one cannot be read now, and may well be whole.
        """
        remove_strays(self._paths.directory)
        warnings: list[str] = []
        for step in sorted(self.steps(), reverse=True):
            try:
                return self._load(step), warnings
            except _DamagedError as e:
                warnings.append(f"checkpoint of step {step} is damaged ({e}); skipped, using the previous checkpoint")
        return None, warnings

    def verify(self, step: int) -> None:
        """Check that the checkpoint just written can be read back.

        Raises:
            ExperimentError: it holds something else than tensors and plain values.
        """
        try:
            self._load(step)
        except _DamagedError as e:
            raise ExperimentError(f"a checkpoint of this experiment cannot be read back: {e}") from e

    def steps(self) -> list[int]:
        """Return the steps with a manifest. A checkpoint without one was interrupted while it was written."""
        return self._paths.finished()

    def clear(self) -> None:
        """Delete the checkpoints of an experiment that is done, but for the best one if that is kept."""
        if self._best and (best := self._best_step()) is not None:
            self._drop({*self._paths.started()} - {best})
            return
        remove_tree(self._paths.directory)

    def _load(self, step: int) -> dict[str, Any]:
        path, note = self._paths.state(step), read_json(self._paths.note(step))
        if note is None:
            raise _DamagedError("its manifest is incomplete")
        try:
            with open_file(path) as file:
                if sha256_of(file) != note.get("sha256"):
                    raise _DamagedError("its sha256 differs")
                file.seek(0)
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except _DamagedError:
            raise
        except OSError as e:
            if not is_missing(path, e):  # it may well be whole, and the next one saved would remove it
                raise storage_error(path, "read", e) from e
            raise _DamagedError(first_line(e)) from e
        except Exception as e:  # a torn archive may raise anything
            raise _DamagedError(f"{type(e).__name__}: {first_line(e)}") from e
        if (state.get("format"), state.get("key")) != (FORMAT, self._key):
            raise _DamagedError("another format or experiment")
        return state

    def _rotate(self, now: int) -> None:
        # A step later than this one can only be a damaged checkpoint that was skipped.
        kept = {step for step in self.steps() if step <= now}
        kept = set(sorted(kept)[-self._keep :])
        if self._best and (best := self._best_step()) is not None:
            kept.add(best)
        self._drop({*self._paths.started()} - kept)

    def _best_step(self) -> int | None:
        losses = {step: (read_json(self._paths.note(step)) or {}).get("eval_loss") for step in self.steps()}
        known = {step: loss for step, loss in losses.items() if isinstance(loss, float)}
        return min(known, key=lambda step: known[step]) if known else None

    def _drop(self, steps: set[int]) -> None:
        for step in steps:
            with contextlib.suppress(OSError):
                self._paths.state(step).unlink()
                self._paths.note(step).unlink(missing_ok=True)


class _DamagedError(Exception):
    """The reason why a checkpoint is skipped."""


@contextlib.contextmanager
def preserve_mode(model: torch.nn.Module) -> Iterator[None]:
    """Restore the train or eval mode of every module after the block."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def write_weights(state: Mapping[str, torch.Tensor], path: StoragePath) -> None:
    """Write a model state as safetensors, a tied weight once.

    Raises:
        StorageError: the file cannot be written.
    """
    from safetensors.torch import save

    seen: dict[tuple[int, int, tuple[int, ...]], str] = {}
    tensors = {}
    aliases = {}
    for name, tensor in state.items():
        identity = (tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tuple(tensor.shape))
        first = seen.setdefault(identity, name)
        if first == name:
            tensors[name] = tensor.detach().cpu().contiguous()
        else:
            aliases[name] = first
    with whole_file(path) as file:
        file.write(save(tensors, metadata={"format": "pt", **aliases}))
