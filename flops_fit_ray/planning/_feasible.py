"""Budgets that can be planned with the models, the data and the batch of a spec, and what would allow another one.

Every limit in a refusal is searched for with the test that refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.planning._adaptive import MARGIN, MIN_SIZES
from flops_fit_ray.planning._ladder import first_valley, fitting, ideal_first_valley, ladder_of, least_steps
from flops_fit_ray.planning._ranges import feasible_range, largest_batch, largest_budget, least_samples, remedy_words
from flops_fit_ray.planning._sizes import even_window
from flops_fit_ray.planning.cells import batch_tokens, max_steps, steps_of
from flops_fit_ray.planning.experiment import Measurements, ModelSize
from flops_fit_ray.planning.grid import GOOD_SIZES, MIN_STEPS, centre_of, too_much_data, with_budgets_at
from flops_fit_ray.spec import SweepSpec

NEEDS = f"an adaptive grid needs at least {MIN_SIZES}, better {GOOD_SIZES}"


def fed_params(spec: SweepSpec, measurements: Measurements, budget: float) -> float:
    """Smallest N, not rounded to a size, whose D at C the data hold; 0 where they have no end."""
    largest = max_steps(spec, measurements)
    return (
        0.0 if math.isinf(largest) else _params_at(measurements, budget / (largest * batch_tokens(spec, measurements)))
    )


def stepped_params(spec: SweepSpec, measurements: Measurements, budget: float) -> float:
    """Largest N, not rounded to a size, that has the least optimizer steps of a cell at C."""
    return _params_at(measurements, budget / (least_steps(spec, measurements) * batch_tokens(spec, measurements)))


def _params_at(measurements: Measurements, flops_per_token: float) -> float:
    """Return N of a model with these FLOPs per token."""
    log_n, log_cost = _log_costs(measurements)
    return _along(flops_per_token, log_cost, log_n)


def _cost_at(measurements: Measurements, params: float) -> float:
    """Return the FLOPs per token of a model of N = `params`."""
    return _along(params, *_log_costs(measurements))


def _log_costs(measurements: Measurements) -> tuple[Floats, Floats]:
    """Return ln N and ln FLOPs per token of the sizes, both increasing."""

    def logarithms() -> tuple[Floats, Floats]:
        sizes = measurements.by_params
        log_cost = np.maximum.accumulate(np.log([s.flops_per_token for s in sizes]))
        return np.log([s.params for s in sizes]), np.asarray(log_cost)

    return measurements.once("log costs", logarithms)


def _along(value: float, x: Floats, y: Floats) -> float:
    """Return what belongs to `value`: linear between the points (x, y), both logarithms, and proportional beyond."""
    at = math.log(value)
    beyond = min(at - x[0], 0.0) + max(at - x[-1], 0.0)
    return math.exp(float(np.interp(at, x, y)) + beyond)


def near_optimum(spec: SweepSpec, measurements: Measurements, budget: float) -> bool:
    """Return True if model, data and steps allow sizes within the window of the expected optimum."""
    smallest = max(min(s.params for s in measurements.sizes), fed_params(spec, measurements, budget))
    centre, window = centre_of(spec, measurements, budget), even_window(spec.grid)
    return smallest <= window * centre and centre <= window * stepped_params(spec, measurements, budget)


def feasible(spec: SweepSpec, measurements: Measurements, budget: float) -> bool:
    """Return True if C can be a budget of an adaptive grid whose smallest one is the spec's."""
    sizes = fitting(spec, measurements, ladder_of(spec, measurements), budget)
    return len(sizes) >= MIN_SIZES and near_optimum(spec, measurements, budget)


def well_stepped(spec: SweepSpec, measurements: Measurements, budget: float) -> bool:
    """Return True if C can be the smallest budget, and gives its sizes `MIN_STEPS` optimizer steps."""
    alone = with_budgets_at(spec, [budget])
    return feasible(alone, measurements, budget) and least_steps(alone, measurements) == MIN_STEPS


def first_fault(spec: SweepSpec, measurements: Measurements) -> str:
    """Describe why the smallest budget has too few sizes, or none near its optimum; empty where it has them."""
    c, largest = spec.budgets[0].flops, max_steps(spec, measurements)
    if feasible(spec, measurements, c):
        return ""
    steps = [steps_of(spec, measurements, c, s) for s in ideal_first_valley(spec, measurements)]
    have = len(first_valley(spec, measurements))
    short, unfed = sum(n < least_steps(spec, measurements) for n in steps), sum(n > largest for n in steps)
    if not short and not unfed:
        return next(_next_faults(spec, measurements, have, c))
    what = f"C = {fmt.flops(c)}, the smallest budget, has {fmt.counted(have, 'size')} around its expected optimum"
    if unfed > short:
        nearest = _nearest(measurements, centre_of(spec, measurements, c))
        need = too_much_data(spec, measurements, c, nearest)
        what = f"data.train: {what} that the data can feed, and {NEEDS}; there {need}"
    else:
        what = f"budgets: {what} with enough optimizer steps, and {NEEDS}"
    return f"{what}. {_remedies(spec, measurements, c)}"


def next_fault(spec: SweepSpec, measurements: Measurements, budget: float) -> str:
    """Describe why a budget cannot have a valley about its expected optimum; empty where it can."""
    if feasible(spec, measurements, budget):
        return ""
    have = len(fitting(spec, measurements, ladder_of(spec, measurements), budget))
    return next(_next_faults(spec, measurements, have, budget))


def _next_faults(spec: SweepSpec, measurements: Measurements, have: int, budget: float) -> Iterator[str]:
    c, centre = fmt.flops(budget), centre_of(spec, measurements, budget)
    nearest, smallest = _nearest(measurements, centre), min(s.params for s in measurements.sizes)
    fed = steps_of(spec, measurements, budget, nearest) <= max_steps(spec, measurements)
    if not fed or fed_params(spec, measurements, budget) > even_window(spec.grid) * centre:
        yield (
            f"data.train: C = {c} needs more data than there is: around its expected optimum N = {centre:.3g} "
            f"{too_much_data(spec, measurements, budget, nearest)}. {_remedies(spec, measurements, budget)}"
        )
    elif smallest > even_window(spec.grid) * centre:
        yield (
            f"budgets: C = {c} has its expected optimum at N = {centre:.3g}, and the smallest model that is allowed "
            f"has N = {smallest:.3g}: make the model smaller, or set grid.tokens_per_param lower. "
            f"{_remedies(spec, measurements, budget)}"
        )
    else:
        yield (
            f"budgets: C = {c} has {fmt.counted(have, 'size')} around its expected optimum N = {centre:.3g}, and "
            f"{NEEDS}; the model allows no others: widen model.sizes or set grid.tokens_per_param"
        )


def _nearest(measurements: Measurements, params: float) -> ModelSize:
    return min(measurements.sizes, key=lambda s: abs(s.params - params))


def _remedies(spec: SweepSpec, measurements: Measurements, budget: float) -> str:
    """Say which C can be planned as they are, and which batch or data this one, or any, would need."""
    first = budget == spec.budgets[0].flops

    def accepts(spec: SweepSpec, measurements: Measurements, c: float) -> bool:
        return feasible(with_budgets_at(spec, [c]) if first else spec, measurements, c)

    def found(spec: SweepSpec, measurements: Measurements, alone: bool = True) -> tuple[float, float] | None:
        return feasible_range(
            spec,
            measurements,
            lambda c: feasible(with_budgets_at(spec, [c]) if alone else spec, measurements, c),
            budget,
        )

    possible = found(spec, measurements)
    if possible is None:
        batch = largest_batch(spec, lambda other: found(other, measurements) is not None)
        samples = least_samples(measurements, lambda other: found(spec, other) is not None)
        return remedy_words("", None, batch, samples, measurements)
    further = None if first else found(spec, measurements, alone=False)
    if further is not None:
        possible = min(possible[0], spec.budgets[0].flops), further[1]
    batch = largest_batch(spec, lambda other: accepts(other, measurements, budget))
    samples = least_samples(measurements, lambda other: accepts(spec, other, budget))
    return remedy_words("budgets", possible, batch, samples, measurements) + _enough_steps(spec, measurements)


def _enough_steps(spec: SweepSpec, measurements: Measurements) -> str:
    """Say from which smallest budget on its sizes have enough optimizer steps."""

    good = feasible_range(spec, measurements, lambda c: well_stepped(spec, measurements, c), spec.budgets[0].flops)
    if good is None:
        return ""
    return f"; from {fmt.flops(good[0])} FLOPs on the smallest one has {MIN_STEPS} optimizer steps or more"


def unbracketed(spec: SweepSpec, measurements: Measurements, budget: float, predicted: Callable[[float], float]) -> str:
    """Describe why a valley would have sizes on one side of its predicted minimum alone; empty where it would not.

    Args:
        predicted: N_opt over C, of the fit so far.
    """
    n, least = predicted(budget), least_steps(spec, measurements)
    ladder = ladder_of(spec, measurements)
    c = f"C = {fmt.flops(budget)} has its minimum predicted at N = {fmt.count(n)}"

    def fed(other: float) -> bool:
        at, sizes = predicted(other), fitting(spec, measurements, ladder, other)
        return fed_params(spec, measurements, other) <= at / MARGIN and (not sizes or sizes[0].params < at)

    # Where no size of the ladder lies below the minimum, more data would not help
    below = [s.params for s in ladder if s.params < n]
    if below and not fed(budget):
        limit = largest_budget(fed, budget)
        most = batch_tokens(spec, measurements) / 2 + budget / _cost_at(measurements, min(n / MARGIN, below[-1]))
        tokens = math.ceil(most / spec.data.max_epochs)
        have = spec.data.max_epochs * (measurements.data.tokens_per_epoch or 0)
        smallest = fmt.count(fed_params(spec, measurements, budget))
        return (
            f"data.train: {c}, and the smallest model that {have:,.0f} tokens can feed there has N = {smallest}, so "
            f"that its valley would have no minimum: give at least {tokens:,} training tokens (or data.max_epochs "
            f"larger by as much), or a C up to {fmt.flops(limit)} FLOPs"
        )
    if stepped_params(spec, measurements, budget) < n * MARGIN:
        batch = math.floor(budget / (_cost_at(measurements, n * MARGIN) * least * measurements.data.tokens_per_sample))
        return (
            f"budgets: {c}, and models larger than N = {fmt.count(stepped_params(spec, measurements, budget))} have "
            f"fewer than {least} optimizer steps there, so its valley would have no minimum: set train.batch_size of "
            f"at most {batch:,}, which is another sweep (`run` with another --output)"
        )
    return ""
