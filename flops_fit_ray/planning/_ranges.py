"""Searches for the C, the data and the batch that a test accepts: a limit that is said always agrees with the test."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from flops_fit_ray import formatting as fmt
from flops_fit_ray.planning.cells import batch_tokens, max_steps
from flops_fit_ray.planning.experiment import Measurements
from flops_fit_ray.spec import SweepSpec

SCAN = 1.25  # ratio of the C that are tried, before the ends are found between them
DECADES = 9  # of C above one batch of the largest model, beyond which nothing is tried

Accepts = Callable[[float], bool]  # of a C: True if it can be planned


def feasible_range(
    spec: SweepSpec, measurements: Measurements, accepts: Accepts, near: float, least: float = 1.0
) -> tuple[float, float] | None:
    """Return the ends of the range of C, about `near` or nearest to it, that is accepted; None where none is.

    Below one batch of the smallest model, and beyond the data of the largest, nothing is tried.

    Args:
        least: ratio of the ends; a narrower range is taken only where none is so wide.
    """
    batches = [s.flops_per_token * batch_tokens(spec, measurements) for s in measurements.sizes]
    lowest = 0.4 * min(batches)
    most = max(batches) * min(10.0**DECADES, 2 * max_steps(spec, measurements) + 1)
    steps = math.ceil(math.log(most / lowest) / math.log(SCAN))
    tried = [lowest * SCAN**k for k in range(steps + 1)]
    found: tuple[int, int] | None = None
    seen: set[int] = set()
    for inside in sorted(range(steps + 1), key=lambda k: abs(math.log(tried[k] / near))):
        if inside in seen or not accepts(tried[inside]):
            continue
        first = last = inside
        while first > 0 and accepts(tried[first - 1]):
            first -= 1
        while last < steps and accepts(tried[last + 1]):
            last += 1
        seen |= set(range(first, last + 1))
        wide = last == steps or tried[last] >= least * tried[first]
        if found is None or wide:
            found = first, last
        if wide:
            break
    if found is None:
        return None
    first, last = found
    low = tried[0] if first == 0 else _end(accepts, tried[first], tried[first - 1])
    high = math.inf if last == steps else _end(accepts, tried[last], tried[last + 1])
    return low, high


def _end(accepts: Accepts, inside: float, outside: float) -> float:
    """Return the C nearest to `outside` that is accepted, in three digits."""
    while abs(math.log(outside / inside)) > 1e-4:
        middle = math.sqrt(inside * outside)
        inside, outside = (middle, outside) if accepts(middle) else (inside, middle)
    digit = 10.0 ** (math.floor(math.log10(inside)) - 2)
    rounded = (math.floor if outside > inside else math.ceil)(inside / digit) * digit
    return rounded if accepts(rounded) else inside


def largest_budget(accepts: Accepts, outside: float) -> float:
    """Return the largest C below `outside` that is accepted, where every smaller one is."""
    inside = outside
    while not accepts(inside):
        inside /= 2
    return _end(accepts, inside, outside)


def range_words(found: tuple[float, float]) -> str:
    """Return a range of C in words."""
    low, high = found
    if math.isinf(high):
        return f"from {fmt.flops(low)} FLOPs on"
    return f"between {fmt.flops(low)} and {fmt.flops(high)} FLOPs"


def least_samples(measurements: Measurements, feeds: Callable[[Measurements], bool]) -> int | None:
    """Return the least number of training samples that `feeds` accepts, to 0.1 %; None where no number is enough."""

    def enough(samples: int) -> bool:
        return feeds(replace(measurements, data=replace(measurements.data, train_samples=samples)))

    low, high = measurements.data.train_samples or 1, 1 << 60
    if not enough(high):
        return None
    while high - low > max(1, low // 1000):
        middle = math.isqrt(low * high) if high > 4 * low else (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def largest_batch(spec: SweepSpec, steps_enough: Callable[[SweepSpec], bool]) -> int | None:
    """Return the largest train.batch_size below the spec's that `steps_enough` accepts; None where 1 is too large."""

    def enough(batch: int) -> bool:
        return steps_enough(spec.model_copy(update={"train": spec.train.model_copy(update={"batch_size": batch})}))

    low, high = 1, spec.train.batch_size
    if not enough(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low


def remedy_words(
    which: str, possible: tuple[float, float] | None, batch: int | None, samples: int | None, measurements: Measurements
) -> str:
    """Say in which range of C `which` can be planned, and what this C, or where there is no range any, would need.

    Args:
        batch: the largest train.batch_size that would do; None: none would.
        samples: the least number of training samples that would do; None: none would.
    """
    said = "no C can be planned" if possible is None else f"{which} can be planned {range_words(possible)}"
    needs = []
    if batch is not None:
        needs.append(f"train.batch_size of at most {batch:,}")
    if samples is not None and samples != measurements.data.train_samples:
        tokens = samples * measurements.data.tokens_per_sample
        needs.append(f"training data of at least {tokens:,} tokens (or data.max_epochs larger by as much)")
    ways = f"; {'one' if possible is None else 'this C'} needs {' or '.join(needs)}" if needs else ""
    return f"With this data and batch {said}{ways}"
