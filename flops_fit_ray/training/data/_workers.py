"""Worker processes of a loader over an iterable dataset: each has a copy of it, and has to take a share of its own."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from flops_fit_ray.errors import DataEndedError
from flops_fit_ray.training.data._feed import StreamFeed
from flops_fit_ray.training.data._samples import digest_samples
from flops_fit_ray.training.data._stream import Stream
from flops_fit_ray.training.data.dataset import Data
from flops_fit_ray.training.rng import RandomState

WAY_OUT = (
    "let __iter__ take its share by torch.utils.data.get_worker_info(), or give the loader no more than one process "
    "(num_workers)"
)


def repeated_samples(data: Data) -> tuple[str, str]:
    """Look at the first batch of each worker process, which a loader gives in turn.

    Returns:
        What is wrong where all of them are the same, and what is doubtful where they are with equal seeds.
    """
    loader = data.source if isinstance(data, Stream) else None
    if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, IterableDataset) or loader.num_workers < 2:
        return "", ""
    workers = loader.num_workers
    alike = copy.copy(loader)
    alike._iterator = None  # persistent processes have begun with other seeds
    object.__setattr__(alike, "worker_init_fn", _EqualSeeds(loader.worker_init_fn))
    if not _all_begin_alike(alike):  # what is alike with other seeds is so with equal ones
        return "", ""
    if _all_begin_alike(loader):
        return (
            f"each of the {workers} processes of the loader gives every sample: each comes {workers} times; {WAY_OUT}",
            "",
        )
    return "", (
        f"with equal seeds each of the {workers} processes of the loader gives the same samples: right for samples "
        f"that are drawn at random; data that are only shuffled come {workers} times, so {WAY_OUT}"
    )


def _all_begin_alike(loader: DataLoader[Any]) -> bool:
    """Return True if the first batches of all processes are the same, and their second ones differ from these."""
    stream = Stream(loader)
    feed = StreamFeed(stream, stream.batch_size or 1, 0, 1.0)
    found: list[bytes] = []
    with contextlib.suppress(DataEndedError):
        while len(found) <= loader.num_workers:
            found.append(digest_samples([feed.next_batch()]))
    first = found[: loader.num_workers]
    return len(first) == loader.num_workers and len(set(first)) == 1 and found[len(first) :] != first[:1]


class _EqualSeeds:
    """A `worker_init_fn` that gives every process the same random numbers."""

    def __init__(self, users: Callable[[int], None] | None) -> None:
        self._users = users

    def __call__(self, worker: int) -> None:
        if self._users is not None:
            self._users(worker)
        RandomState.seed(0)
