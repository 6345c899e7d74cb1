"""Feeds: the training batches of one experiment in order, resumable at any batch.

The order of map-style data depends on the seed and the number of samples alone: every size of a sweep sees the same
samples in the same order, and the data of a smaller D are a prefix of those of a larger one. A stream keeps its order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from flops_fit_ray.errors import DataEndedError
from flops_fit_ray.training.data._stream import Stream
from flops_fit_ray.training.data.batch import Batch, num_elements
from flops_fit_ray.training.data.dataset import Data, MapDataset, fetch, is_deterministic, num_samples
from flops_fit_ray.training.rng import RandomState

LOOKED_AT = 32  # batches of a stream whose batches differ in size
EPOCH_STEP = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: seeds of epochs are far apart and never repeat


class Feed(Protocol):
    """A resumable source of batches. Its state holds plain values and tensors only."""

    def next_batch(self) -> Batch:
        """Return the next batch.

        Raises:
            DataEndedError: the data have ended.
        """

    def state(self) -> dict[str, Any]:
        """Return the position after the last batch."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue after a saved position."""


def make_feed(data: Data, batch_size: int, seed: int, max_epochs: float, *, ahead: bool = False) -> Feed:
    """Return the feed of an experiment; `ahead` prefetches where reading draws no random numbers."""
    if isinstance(data, Stream):
        return StreamFeed(data, batch_size, seed, max_epochs)
    feed = IndexedFeed(data, batch_size, seed)
    return PrefetchedFeed(feed) if ahead and is_deterministic(data) else feed


def first_batches(data: Data, batch_size: int) -> list[Batch]:
    """Return a batch to inspect; several of a stream whose batches differ in size."""
    if not isinstance(data, Stream):
        return [first_batch(data, batch_size)]
    feed = StreamFeed(data, data.batch_size or batch_size, 0, 1.0)
    found = [feed.next_batch()]
    with contextlib.suppress(DataEndedError):  # a short stream
        found.append(feed.next_batch())
        if num_elements(found[0].content) == num_elements(found[1].content):
            return found[:1]
        while len(found) < LOOKED_AT:
            found.append(feed.next_batch())
    return found


def first_batch(data: Data, batch_size: int) -> Batch:
    """Return a batch to inspect. The caller's random state is left unchanged."""
    if isinstance(data, Stream):
        return StreamFeed(data, data.batch_size or batch_size, 0, 1.0).next_batch()
    return fetch(data, np.arange(min(batch_size, num_samples(data))))


class IndexedFeed:
    """Shuffled batches of map-style data: a new permutation each epoch; a batch may span two epochs."""

    def __init__(self, dataset: MapDataset, batch_size: int, seed: int) -> None:
        self._dataset, self._batch_size, self._seed = dataset, batch_size, seed
        self._count = num_samples(dataset)
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._drawn = 0  # samples

    def next_batch(self) -> Batch:
        """Return the next batch. There is no end: the plan has checked the number of epochs."""
        return fetch(self._dataset, self.next_indices())

    def next_indices(self) -> NDArray[np.int64]:
        """Return the indices of the next batch."""
        parts = []
        missing = self._batch_size
        while missing:
            epoch, position = divmod(self._drawn, self._count)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, _permutation(self._count, self._seed, epoch)
            part = self._order[position : position + missing]
            parts.append(part)
            missing -= len(part)
            self._drawn += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def state(self) -> dict[str, Any]:
        """Return the number of samples drawn, which determines the order."""
        return {"drawn": self._drawn}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue after the samples drawn."""
        self._drawn = int(state["drawn"])


def _permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    generator = torch.Generator().manual_seed((seed + epoch * EPOCH_STEP) % 2**63)
    order: NDArray[np.int64] = torch.randperm(count, generator=generator).numpy()
    return order


class PrefetchedFeed:
    """Reads one batch ahead in a thread. Only for data that draw no random numbers."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._pool = ThreadPoolExecutor(1)
        self._next: Future[Batch] | None = None
        self._state = feed.state()

    def next_batch(self) -> Batch:
        """Return the prefetched batch and start to read the next one."""
        batch = (self._next or self._read()).result()
        self._state = self._feed.state()
        self._next = self._read()
        return batch

    def _read(self) -> Future[Batch]:
        return self._pool.submit(self._feed.next_batch)

    def state(self) -> dict[str, Any]:
        """Return the position after the last batch returned, not after the one being read."""
        return self._state

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue after a saved position; the prefetched batch is dropped."""
        if self._next is not None:
            self._next.result()
        self._feed.load_state(state)
        self._state, self._next = state, None


class StreamFeed:
    """Batches of a stream, epoch after epoch. An incomplete last batch of an epoch is dropped."""

    def __init__(self, stream: Stream, batch_size: int, seed: int, max_epochs: float) -> None:
        self._stream, self._batch_size, self._seed = stream, batch_size, seed
        self._max_epochs = max_epochs
        self._epoch = 0
        self._batches = 0  # of this epoch
        self._total = 0  # samples
        self._items: Iterator[Any] | None = None
        self._random: dict[str, Any] | None = None

    def next_batch(self) -> Batch:
        """Return the next full batch, from the next epoch if this one has ended."""
        with self._stream_random_state():
            while True:
                if self._items is None:
                    self._items = self._stream.begin_epoch(self._epoch_seed())
                batch = self._stream.next_batch(self._items, self._batch_size)
                if batch is not None and batch.num_samples > self._batch_size:
                    raise ValueError(
                        f"the loader returned {batch.num_samples} samples instead of {self._batch_size}; if the first "
                        "axis of its tensors is not the samples (graphs), return a mapping with num_graphs"
                    )
                if batch is not None and batch.num_samples == self._batch_size:
                    self._batches += 1
                    self._total += batch.num_samples
                    return batch
                if batch is None:
                    self._end_epoch()

    def _end_epoch(self) -> None:
        if self._batches == 0 or self._epoch + 1 >= self._max_epochs:
            raise DataEndedError(
                f"data.train ended after {self._total:,} samples in whole batches of {self._batch_size} "
                f"({self._epoch + 1} of at most {self._max_epochs:g} epochs)"
            )
        self._epoch, self._batches, self._items = self._epoch + 1, 0, None

    def _epoch_seed(self) -> int:
        return (self._seed + self._epoch * EPOCH_STEP) % 2**63

    @contextlib.contextmanager
    def _stream_random_state(self) -> Iterator[None]:
        """Swap in the stream's random state for the block, so that data and model draw independently."""
        outside = RandomState.capture(devices=False)
        if self._random is not None:
            RandomState.restore(self._random)
        try:
            yield
        finally:
            self._random = RandomState.capture(devices=False)
            RandomState.restore(outside)

    def state(self) -> dict[str, Any]:
        """Return epoch, batches read in it, random state; and the source's state if it keeps one."""
        state = {"epoch": self._epoch, "batches": self._batches, "total": self._total, "random": self._random}
        return {**state, "source": self._stream.state()} if self._stream.has_state else state

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue after a saved position: by the source's state, else by reading the epoch again up to there."""
        self._epoch, self._batches, self._total = state["epoch"], state["batches"], state["total"]
        if not self._batches:
            return
        if "source" in state:
            self._random = state["random"]
            with self._stream_random_state():
                self._items = self._stream.resume_epoch(state["source"])
            self._random = state["random"]
            return
        with self._stream_random_state():
            self._items = self._stream.begin_epoch(self._epoch_seed())
            for _ in range(self._batches):
                self._stream.next_batch(self._items, self._batch_size)
