"""Streams: data with an order of their own, which are iterable datasets, finite or endless, and DataLoaders.

Each epoch of a stream has its own random state, seeded from the experiment's seed and the epoch. So the order does not
depend on the model, every size of a sweep sees the same samples, and an epoch can be read again.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from flops_fit_ray.training.data.batch import Batch, loaded_batch
from flops_fit_ray.training.rng import RandomState


class Stream:
    """An iterable of samples, or a DataLoader of batches.

    A source with `state_dict` and `load_state_dict` resumes from its state; any other is read again from the start of
    the epoch.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self.source = source
        self.gives_batches = isinstance(source, DataLoader)
        self._owner = _state_owner(source)
        self.has_state = self._owner is not None
        self._pristine = self.state() if self.has_state else None

    @property
    def batch_size(self) -> int | None:
        """Batch size of a DataLoader; None for an iterable of samples."""
        return loader_batch_size(self.source) if isinstance(self.source, DataLoader) else None

    @property
    def num_samples(self) -> int | None:
        """Samples of one epoch; None where the source does not know its length."""
        try:
            if not isinstance(self.source, DataLoader):
                return len(self.source)  # type: ignore[arg-type] # not every source has one
            if isinstance(self.source.dataset, IterableDataset):
                return len(self.source) * (self.batch_size or 1)
            count = len(self.source.sampler)  # type: ignore[arg-type] # not every sampler has one
        except (TypeError, NotImplementedError):
            return None
        size = self.batch_size or 1
        return count // size * size if self.source.drop_last else count

    @property
    def whole_samples(self) -> int | None:
        """Samples of one epoch that come in whole batches, whatever worker processes leave over; None if unknown."""
        source, count, size = self.source, self._all_samples, self.batch_size or 1
        if count is None or not isinstance(source, DataLoader):
            return count
        if isinstance(source.dataset, IterableDataset) and source.num_workers > 1:
            count -= source.num_workers * (size - 1)  # each process ends with a batch that may be incomplete
        return max(0, count) // size * size

    @property
    def readable_samples(self) -> int | None:
        """Samples of one epoch, incomplete batches included unless the loader drops them; None if unknown."""
        drops = isinstance(self.source, DataLoader) and self.source.drop_last
        return self.whole_samples if drops else self._all_samples

    @property
    def _all_samples(self) -> int | None:
        """Samples in the source. torch's length of a loader over an iterable dataset is rounded to batches."""
        if isinstance(self.source, DataLoader) and isinstance(self.source.dataset, IterableDataset):
            with contextlib.suppress(TypeError, NotImplementedError):
                return len(self.source.dataset)  # type: ignore[arg-type] # not every dataset has one
        return self.num_samples

    def state(self) -> Any:
        """Return the source's own state."""
        return copy.deepcopy(self._owner.state_dict())

    def load_state(self, state: Any) -> None:
        """Restore the source's own state."""
        self._owner.load_state_dict(copy.deepcopy(state))

    def begin_epoch(self, seed: int) -> Iterator[Any]:
        """Start an epoch from the beginning, whatever was read before. Returns its samples or batches.

        Seeds the global random state, which the caller has swapped for the stream's.
        """
        RandomState.seed(seed)
        if self._pristine is not None:
            self.load_state(self._pristine)
        for holder in (self.source, getattr(self.source, "sampler", None)):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
        return iter(self.source)

    def resume_epoch(self, state: Any) -> Iterator[Any]:
        """Continue an epoch from a state of the source."""
        self.load_state(state)
        return iter(self.source)

    def next_batch(self, items: Iterator[Any], batch_size: int) -> Batch | None:
        """Return the next `batch_size` samples, fewer at the end of an epoch, None after it."""
        if self.gives_batches:
            content = next(items, None)
            return None if content is None else loaded_batch(content, self.batch_size)
        samples = [sample for _, sample in zip(range(batch_size), items, strict=False)]
        return Batch(default_collate(samples), len(samples)) if samples else None


def _state_owner(source: Iterable[Any]) -> Any:
    """Return the object that keeps the position of a source; None where an epoch must be read again.

    torchdata's StatefulDataLoader keeps one, torch's DataLoader does not, but the iterable dataset behind a DataLoader
    without worker processes may. A map-style dataset does not know its loader's position. The state of Hugging Face's
    streams omits shuffle buffers, so that other samples would follow.
    """
    candidates: list[Any] = [source]
    if isinstance(source, DataLoader) and isinstance(source.dataset, IterableDataset) and source.num_workers == 0:
        candidates.append(source.dataset)
    for candidate in candidates:
        ours = not type(candidate).__module__.startswith("datasets.")
        if ours and all(callable(getattr(candidate, m, None)) for m in ("state_dict", "load_state_dict")):
            return candidate
    return None


def loader_batch_size(loader: DataLoader[Any]) -> int | None:
    """Return the batch size of a DataLoader, its own or its batch sampler's."""
    return loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
