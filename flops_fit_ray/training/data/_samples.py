"""Spread samples of a dataset and their digest, so that other data make other experiments."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flops_fit_ray.errors import DataEndedError
from flops_fit_ray.training.data._feed import StreamFeed
from flops_fit_ray.training.data._stream import Stream
from flops_fit_ray.training.data.batch import Batch
from flops_fit_ray.training.data.dataset import Data, fetch, num_samples

SPREAD_SAMPLES = 16  # read per dataset


def spread_samples(data: Data) -> list[Batch]:
    """Return evenly spaced samples of a dataset, first and last included; the first batches of a stream."""
    if isinstance(data, Stream):
        size = data.batch_size or 1
        feed = StreamFeed(data, size, 0, 1.0)
        found: list[Batch] = []
        with contextlib.suppress(DataEndedError):  # a short stream
            while sum(batch.num_samples for batch in found) < SPREAD_SAMPLES:
                found.append(feed.next_batch())
        return found
    return [fetch(data, np.array([index])) for index in _spread(num_samples(data))]


def _spread(count: int) -> list[int]:
    return sorted({i * (count - 1) // (SPREAD_SAMPLES - 1) for i in range(SPREAD_SAMPLES)})


def digest_samples(samples: Sequence[Batch]) -> bytes:
    """Return the sha256 of the samples."""
    digest = hashlib.sha256()
    for sample in samples:
        _update(digest, sample.content)
    return digest.digest()


def _update(digest: hashlib._Hash, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for name in value:
            digest.update(str(name).encode())
            _update(digest, value[name])
    elif isinstance(value, tuple | list):
        for part in value:
            _update(digest, part)
    else:
        digest.update(repr(value).encode())
