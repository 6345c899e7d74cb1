"""Samples of the data read once for all that a plan needs of them, and the comparison in the processes that train."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flops_fit_ray.errors import DataDiffersError
from flops_fit_ray.planning import DataProbe, SetProbe, ValueProbe
from flops_fit_ray.planning.data_probe import ROUNDING
from flops_fit_ray.training.data._samples import digest_samples, spread_samples
from flops_fit_ray.training.data._stream import Stream
from flops_fit_ray.training.data.batch import Batch
from flops_fit_ray.training.data.dataset import Data, PreparedData, num_samples
from flops_fit_ray.training.rng import RandomState
from flops_fit_ray.training.time_limit import time_limit

NUMBERS = 64  # kept of each floating-point value


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seed all generators for the block, so that every process draws the same augmentation."""
    outside = RandomState.capture()
    RandomState.seed(0)
    try:
        yield
    finally:
        RandomState.restore(outside)


@dataclass(frozen=True)
class SampledData:
    """Spread samples of a dataset, and whether they are the same when they are read again."""

    data: Data
    batches: tuple[Batch, ...]
    is_fixed: bool  # False with random augmentation
    values: tuple[ValueProbe, ...]  # of the samples, read with seeded generators

    @property
    def length(self) -> int | None:
        """Return the number of samples; None for a stream that does not know."""
        return self.data.num_samples if isinstance(self.data, Stream) else num_samples(self.data)


def sample_data(data: Data) -> SampledData:
    """Read spread samples twice; what draws random numbers a third time, seeded like the first."""
    with _seeded():
        once = spread_samples(data)
        again = spread_samples(data)
    values = _probe_values(once)
    is_fixed = digest_samples(once) == digest_samples(again)
    if not is_fixed:
        other = _read_values(data)
        same = len(other) == len(values)
        values = tuple(
            v if same and v.digest == o.digest else ValueProbe(None) for v, o in zip(values, other, strict=same)
        )
    return SampledData(data, tuple(once), is_fixed, values)


def fingerprint(*several: Data | SampledData | None) -> str:
    """Return 16 hex digits of a sha256 over the length and some samples of each dataset.

    A dataset that returns different samples each time (random augmentation) contributes its length alone; else no
    experiment could be recognised.
    """
    digest = hashlib.sha256()
    for one in several:
        if one is not None:
            sampled = one if isinstance(one, SampledData) else sample_data(one)
            digest.update(str(sampled.length).encode())
            digest.update(digest_samples(sampled.batches) if sampled.is_fixed else b"random")
    return digest.hexdigest()[:16]


def probe_of(train: SampledData, held_out: SampledData | None, source: str) -> DataProbe:
    """Return the probe of training and held-out data; `source` names the latter for people."""
    name = source if source == "data.eval" else f"the held-out set ({source})"
    return DataProbe(
        train=SetProbe(name="data.train", length=train.length, values=train.values),
        held_out=None if held_out is None else SetProbe(name=name, length=held_out.length, values=held_out.values),
    )


def compare_data(data: PreparedData, planned: DataProbe, seconds: float) -> None:
    """Compare this process's data with those that the plan was made of.

    Data that do not come within `seconds` are not waited for: the training names them better.

    Raises:
        DataDiffersError: they are not the same.
    """
    try:
        with time_limit(seconds, "no samples to compare"):
            train, held_out = (
                None if one is None else SampledData(one, (), True, _read_values(one))
                for one in (data.train, data.held_out)
            )
    except TimeoutError:
        return
    assert train is not None
    fault = planned.difference(probe_of(train, held_out, data.source))
    if fault is not None:
        raise DataDiffersError("data", [fault])


def _read_values(data: Data) -> tuple[ValueProbe, ...]:
    with _seeded():
        return _probe_values(spread_samples(data))


def _probe_values(samples: Sequence[Batch]) -> tuple[ValueProbe, ...]:
    return tuple(_value(part) for batch in samples for part in _parts(batch.content))


def _parts(value: Any) -> Iterator[Any]:
    """Yield the plain values and tensors of a nested value; the attributes of an object, in the order of names."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield str(name)
            yield from _parts(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _parts(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, Tensor | np.ndarray | str | bytes | int | float | bool | None):
        yield value
    else:
        yield type(value).__qualname__
        for name, part in sorted(vars(value).items()) if hasattr(value, "__dict__") else ():
            if isinstance(part, Tensor | np.ndarray | str | int | float | Mapping):
                yield name
                yield from _parts(part)


def _value(value: Any) -> ValueProbe:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(np.array(value))
    if not isinstance(value, Tensor):
        return ValueProbe(hashlib.sha256(repr(value).encode()).hexdigest()[:16])
    flat = value.detach().cpu().contiguous().view(-1)
    head = f"{value.dtype}{tuple(value.shape)}".encode()
    digest = hashlib.sha256(head + flat.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    if not flat.is_floating_point() or not len(flat):
        return ValueProbe(digest)
    chosen = np.linspace(0, len(flat) - 1, min(NUMBERS, len(flat))).astype(np.int64)
    numbers = flat[torch.from_numpy(chosen)].double().tolist()
    return ValueProbe(digest, tuple(numbers), max(ROUNDING, 4 * torch.finfo(flat.dtype).eps))
