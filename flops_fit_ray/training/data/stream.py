"""Data that comes in an order of its own: iterable datasets, finite or endless, and ready loaders.

A pass over a stream has a random state of its own, which follows from the seed and the number of the pass. So the
order does not depend on the model, every size of a sweep sees the same samples, and what was read can be read again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from flops_fit_ray.training.data.batch import Batch, count_samples
from flops_fit_ray.training.rng import RandomState


class Stream:
    """An iterable of samples, or a loader of ready batches.

    A source with `state_dict` and `load_state_dict` is put back to where it was; any other is read again from the
    start of the pass.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self.source = source
        self.gives_batches = isinstance(source, DataLoader)
        self._owner = _keeper_of_state(source)
        self.has_state = self._owner is not None
        self._pristine = self.state() if self.has_state else None

    @property
    def batch_size(self) -> int | None:
        """Samples per batch of a loader; None where we collate."""
        return loader_batch_size(self.source) if isinstance(self.source, DataLoader) else None

    @property
    def num_samples(self) -> int | None:
        """Samples of one pass, where the source knows its length."""
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

    def state(self) -> Any:
        """Where the source stands, in its own words."""
        return copy.deepcopy(self._owner.state_dict())

    def load_state(self, state: Any) -> None:
        """Put the source where it stood."""
        self._owner.load_state_dict(copy.deepcopy(state))

    def begin_epoch(self, seed: int) -> Iterator[Any]:
        """The samples or batches of one pass, whoever has read from the source before.

        The caller holds the stream's random state, which is seeded here.
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
        """The rest of a pass, from a state that the source gave."""
        self.load_state(state)
        return iter(self.source)

    def next_batch(self, items: Iterator[Any], batch_size: int) -> Batch | None:
        """The next `batch_size` samples, fewer at the end of a pass, None after it."""
        if self.gives_batches:
            content = next(items, None)
            return None if content is None else Batch(content, count_samples(content))
        samples = [sample for _, sample in zip(range(batch_size), items, strict=False)]
        return Batch(default_collate(samples), len(samples)) if samples else None


def _keeper_of_state(source: Iterable[Any]) -> Any:
    """The object whose state says where the source stands; None where it must be read again.

    A loader of torch's keeps none, but one of torchdata's does, and so may the iterable dataset behind a loader without
    worker processes. A map-style dataset does not know its loader's place. Hugging Face's streams keep a state that
    leaves their shuffle buffers out, so going on from it would not give the same samples.
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
    """The batch size of a loader, its own or its batch sampler's."""
    return loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
