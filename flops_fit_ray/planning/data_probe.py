"""Probes of data: some samples in short, so that another process can tell if it has the same ones.

The plan is made from the data of one process, and others train on theirs. A fingerprint would do where all compute the
same bits. Processors round differently, so a probe also keeps some numbers of each value.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from flops_fit_ray.flags import Flag, warning

USUAL_CAUSES = (
    "usual causes: np.random, random or default_rng() without a seed when the module is imported, the order of a set "
    "or of hash(), os.listdir or glob without sorted(), the time, files that differ between nodes"
)
WAY_OUT = "seed with a number, sort, or store the split in a file, so that every process has the same samples"
ROUNDING = 1e-5  # of a float32, relative to the other numbers of its value


@dataclass(frozen=True)
class ValueProbe:
    """One value of a sample, such as its input."""

    digest: str | None  # None: it differs from reading to reading
    numbers: tuple[float, ...] = ()  # some of them, of floating-point values
    rounding: float = ROUNDING

    def is_like(self, other: ValueProbe) -> bool:
        """Return True for the same value up to rounding, and where it differs from reading to reading."""
        if self.digest is None or other.digest is None or self.digest == other.digest:
            return True
        if not self.numbers or len(self.numbers) != len(other.numbers):
            return False
        import numpy as np

        ours, theirs = np.array(self.numbers), np.array(other.numbers)
        finite = ours[np.isfinite(ours)]
        scale = math.sqrt(float(np.mean(finite**2))) if len(finite) else 0.0
        return np.allclose(ours, theirs, rtol=0.0, atol=self.rounding * scale, equal_nan=True)


@dataclass(frozen=True, kw_only=True)
class SetProbe:
    """One set of samples. `name` is for people."""

    name: str
    length: int | None  # None: a stream that does not know
    values: tuple[ValueProbe, ...]

    @property
    def is_random(self) -> bool:
        """Return True if nothing of the samples can be compared."""
        return bool(self.values) and all(value.digest is None for value in self.values)

    def difference(self, there: SetProbe) -> str | None:
        """Describe how the samples of another process differ from these; None if they do not."""
        if self.length != there.length:
            return f"{self.name} ({_count(there.length)} samples for {_count(self.length)})"
        if len(self.values) != len(there.values):
            return f"{self.name} (samples of another form)"
        if all(ours.is_like(theirs) for ours, theirs in zip(self.values, there.values, strict=True)):
            return None
        return f"{self.name} (other samples, or the same in another order)"


def _count(length: int | None) -> str:
    return "an unknown number of" if length is None else f"{length:,}"


@dataclass(frozen=True, kw_only=True)
class DataProbe:
    """Training and held-out data."""

    train: SetProbe
    held_out: SetProbe | None

    def difference(self, there: DataProbe) -> str | None:
        """Describe how the data of this process, whose probe is `there`, differ from these; None if they do not."""
        pairs = [(self.train, there.train)]
        if self.held_out is not None and there.held_out is not None:
            pairs.append((self.held_out, there.held_out))
        found = [words for ours, theirs in pairs if (words := ours.difference(theirs)) is not None]
        if not found:
            return None
        return (
            f"a worker's process on {socket.gethostname()} has other data than the plan: {' and '.join(found)}; "
            f"{USUAL_CAUSES}. The way out: {WAY_OUT}"
        )

    def warnings(self) -> Iterator[Flag]:
        """Yield what cannot be compared."""
        for one in (self.train, self.held_out):
            if one is not None and one.is_random:
                yield warning(
                    "other_samples",
                    f"{one.name} gives other samples each time it is read, whatever torch, numpy and random are seeded "
                    "with: experiments see other samples each, one that resumes sees some twice, and of a worker's "
                    "samples only the number is compared with the plan's; seed its own generator in __iter__ or "
                    "__getitem__",
                )
