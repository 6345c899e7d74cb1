"""The held-out set: how much of it is evaluated, what that costs, and how finely it tells losses apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from flops_fit_ray.flags import Flag, warning
from flops_fit_ray.planning.experiment import Experiment, Measurements, ModelSize
from flops_fit_ray.spec import SweepSpec

MAX_SHARE = 0.1  # of the training FLOPs that evaluation takes by default
MIN_SAMPLES = 1000  # evaluated in any case, where there are as many; fewer where these hold MIN_TARGETS
MIN_TARGETS = 10_000  # an error of about 1 % of the loss
FEW_TARGETS = 1000  # below, an error of more than 3 % of the loss is to be expected
FIRST_RULE, FORWARD_SHARE = 1, 1 / 3  # the first rule of counting takes a training step for three forward passes


def limit_samples(spec: SweepSpec, measurements: Measurements, expected: Callable[[], Sequence[Experiment]]) -> int:
    """Return the number of held-out samples that a new sweep evaluates.

    1) Evaluating S samples of T tokens takes S * T * F, with F forward FLOPs per token.
    2) Over all evaluations of the sweep, sum of S * T * F <= MAX_SHARE * FLOPs of training that it executes.

    Args:
        expected: makes the experiments of the whole sweep, those included that results will decide.
    """
    available = measurements.data.eval_samples
    least = min(MIN_SAMPLES, math.ceil(MIN_TARGETS / measurements.data.tokens_per_sample))
    if spec.data.eval_samples is not None or available <= least:
        return available
    experiments = expected()
    total = sum(e.flops_executed for e in experiments)
    cost = sum(map(evaluation_cost(measurements, spec.data.eval_every_tokens), experiments))
    return min(available, max(least, int(MAX_SHARE * total * available / cost)))


def with_limit(measurements: Measurements, limit: int | None) -> Measurements:
    """Return the measurements with at most `limit` held-out samples, and a note where these are not all."""
    data = measurements.data
    if limit is None or limit >= data.eval_samples:
        return measurements
    note = (
        f"held-out: {limit:,} of {data.eval_samples:,} samples, evenly spaced, because all of them would cost more "
        f"than {100 * MAX_SHARE:g} % of the training; data.eval_samples sets another number"
    )
    return replace(measurements, data=replace(data, eval_samples=limit, notes=(*data.notes, note)))


def _forward_flops(size: ModelSize) -> float:
    """Return the forward FLOPs per token."""
    return FORWARD_SHARE * size.counted_by(FIRST_RULE).flops_per_token


def evaluation_cost(measurements: Measurements, every: int | None) -> Callable[[Experiment], float]:
    """Return the function that gives the FLOPs of an experiment's evaluations: at its end, and every `every` tokens."""
    tokens = measurements.data.eval_samples * measurements.data.tokens_per_sample
    forward = {size.size: _forward_flops(size) for size in measurements.every_size}

    def cost(e: Experiment) -> float:
        # A view's plan may have lost a size
        return _evaluations(e, every) * tokens * forward.get(e.size, FORWARD_SHARE * e.flops_per_token)

    return cost


def _evaluations(e: Experiment, every: int | None) -> int:
    """Return the number of evaluations: at the end, and after each earlier step that passes a multiple of `every`.

    The steps taken over from a parent are not evaluated again.
    """
    if not every:
        return 1
    per_step = e.tokens // e.steps
    begin, end = e.start_step * per_step, e.tokens - per_step
    return 1 + min(e.steps - 1 - e.start_step, end // every - begin // every)


def evaluation_warnings(
    spec: SweepSpec, measurements: Measurements, experiments: Sequence[Experiment], cost: float
) -> Iterator[Flag]:
    """Yield warnings about a held-out set that costs much, or tells little.

    Args:
        cost: FLOPs of all evaluations of the experiments.
    """
    data, trained = measurements.data, sum(e.flops_executed for e in experiments)
    limit = MAX_SHARE if spec.data.eval_samples is not None else 2 * MAX_SHARE  # by default chosen before the sizes are
    if trained and cost > limit * trained and data.eval_samples > MIN_SAMPLES:
        way_out = " or raise data.eval_every_tokens" if spec.data.eval_every_tokens else ""
        yield warning(
            "dear_evaluation",
            f"evaluating {data.eval_samples:,} held-out samples costs {cost / trained:.2g} times the training: lower "
            f"data.eval_samples{way_out}",
        )
    targets = data.eval_samples * data.tokens_per_sample
    if 0 < targets < FEW_TARGETS:
        yield warning(
            "held_out_small",
            f"the held-out set has {targets:,} targets: losses have an error of about {100 / math.sqrt(targets):.0f} % "
            f"where single ones scatter as widely as they are large, and 1 % is not told apart: hold out "
            f"{FEW_TARGETS:,} or more",
        )
