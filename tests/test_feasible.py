"""Refusals of budgets name the side that binds, and a range of C, a batch and data that are exactly enough."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import Measurements, make_plan
from flops_fit_ray.planning._feasible import unbracketed
from flops_fit_ray.planning._ladder import ladder_of, least_steps
from flops_fit_ray.planning.experiment import ModelSize
from tests.worlds import DATA, SIZES, adaptive_spec, size

RANGE = re.compile(r"can be planned between ([\d.e+]+) and ([\d.e+]+) FLOPs")
ENDLESS = re.compile(r"can be planned from ([\d.e+]+) FLOPs on")


def refusal(spec: Any, measured: Measurements) -> str:
    """The refusal of a plan; empty where there is none."""
    try:
        make_plan(spec, measured)
    except SpecError as e:
        return str(e)
    return ""


def about(c: float, **changes: Any) -> Any:
    """A spec whose budgets are C twice, as nearly as a spec takes them; none is above C."""
    return adaptive_spec([c * (1 - 1e-9), c], **changes)


def changed_data(measured: Measurements, tokens: float) -> Measurements:
    return replace(measured, data=replace(measured.data, train_samples=int(tokens)))


def random_case(seed: int) -> tuple[dict[str, Any], Measurements]:
    """A model with any cost of a token, some batch, some data."""
    rng = np.random.default_rng(seed)
    ratio, slope = np.exp(rng.uniform(np.log(0.3), np.log(30))), rng.uniform(-0.2, 0.1)
    sizes: tuple[ModelSize, ...] = tuple(
        replace(s, flops_per_token=ratio * 6 * s.params * (s.params / 1e6) ** slope)
        for s in SIZES[:: rng.integers(1, 3)]
    )
    samples = int(np.exp(rng.uniform(np.log(1e7), np.log(1e10))))
    grid = {"seeds": 0, "tokens_per_param": float(np.exp(rng.uniform(np.log(2), np.log(200))))}
    train = {"batch_size": int(np.exp(rng.uniform(np.log(8), np.log(4000)))), "lr": 1e-3}
    return {"grid": grid, "train": train}, Measurements(sizes=sizes, data=replace(DATA, train_samples=samples))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("side", ["steps", "data"])
def test_the_smallest_budget_can_be_anything_between_the_ends_that_are_said(seed: int, side: str) -> None:
    changes, measured = random_case(seed)
    said = refusal(about(1e6 if side == "steps" else 1e26, **changes), measured)
    assert ("with enough optimizer steps" if side == "steps" else "that the data can feed") in said, said
    found = RANGE.search(said)
    assert found is not None, said
    low, high = map(float, found.groups())
    assert low < high
    for c in (low * 1.0001, high, *np.geomspace(low, high, 7)[1:-1]):
        assert refusal(about(float(c), **changes), measured) == "", c
    for c in (low / 1.05, high * 1.05):
        assert refusal(about(c, **changes), measured), c
    assert refusal(adaptive_spec([low, high], **changes), measured) == ""
    assert refusal(adaptive_spec([low, 1.05 * high], **changes), measured)


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_budget_can_be_what_is_said_or_have_the_data_that_are_said(seed: int) -> None:
    changes, measured = random_case(seed)
    found = RANGE.search(refusal(about(1e6, **changes), measured))
    assert found is not None
    smallest = math.sqrt(float(found[1]) * float(found[2]))
    too_large = 3 * float(found[2])
    said = refusal(adaptive_spec([smallest, too_large], **changes), measured)
    assert "needs more data than there is" in said and "train.batch_size" not in said
    found = RANGE.search(said)
    assert found is not None, said
    high = float(found[2])
    assert refusal(adaptive_spec([smallest, high], **changes), measured) == ""
    assert refusal(adaptive_spec([smallest, 1.05 * high], **changes), measured)
    enough = re.search(r"training data of at least ([\d,]+) tokens", said)
    assert enough is not None, said
    tokens = int(enough[1].replace(",", ""))
    for more, planned in ((tokens, True), (tokens / 1.05, False)):
        assert (refusal(adaptive_spec([smallest, too_large], **changes), changed_data(measured, more)) == "") is planned


def test_a_batch_that_is_small_enough_is_named() -> None:
    spec = adaptive_spec([1e10, 1e13], train={"batch_size": 100_000, "lr": 1e-3})
    said = refusal(spec, Measurements(sizes=SIZES, data=DATA))
    assert said.startswith("spec: budgets: C = 1e10, the smallest budget, has 2 sizes around its expected optimum")
    found = re.search(r"this C needs train.batch_size of at most ([\d,]+)", said)
    assert found is not None, said
    batch = int(found[1].replace(",", ""))
    for size_of_batch, planned in ((batch, True), (batch + 1, False)):
        changed = adaptive_spec([1e10, 1e13], train={"batch_size": size_of_batch, "lr": 1e-3})
        assert (refusal(changed, Measurements(sizes=SIZES, data=DATA)) == "") is planned
    steps = re.search(r"from ([\d.e]+) FLOPs on the smallest one has 300", said)
    assert steps is not None, said
    plan = make_plan(adaptive_spec([float(steps[1]), 1e17], train={"batch_size": 100_000, "lr": 1e-3}),
                     Measurements(sizes=SIZES, data=DATA))  # fmt: skip
    assert min(e.steps for e in plan.experiments) >= 300


@pytest.mark.parametrize("budget", [1e18, 1e20])
def test_a_valley_that_the_sweeps_own_law_puts_beyond_the_data_is_refused_with_what_would_do(budget: float) -> None:
    """N_opt = sqrt(C / 240) needs C / 6N tokens at N = N_opt / 1.5, the least margin of a minimum in its valley."""
    tokens = 10**10
    spec = adaptive_spec([1e17, 3e17], grid={"sizes": 9})  # sqrt(2) apart, so that one lies within any margin of 1.5
    measured = Measurements(sizes=SIZES, data=replace(DATA, train_samples=tokens))

    def law(c: float) -> float:
        return math.sqrt(c / 240)

    largest = (6 * tokens / 1.5) ** 2 / 240  # C / (6·tokens) = N_opt / 1.5
    said = unbracketed(spec, measured, budget, law)
    assert (said == "") is (budget <= largest)
    assert unbracketed(spec, measured, 0.999 * largest, law) == ""
    said = said or unbracketed(spec, measured, 1.001 * largest, law)
    c = budget if budget > largest else 1.001 * largest
    need = c / 6 / (law(c) / 1.5)
    assert "a C up to 6.66e18 FLOPs" in said and largest == pytest.approx(6.667e18, rel=1e-3)
    found = re.search(r"at least ([\d,]+) training tokens", said)
    assert found is not None and float(found[1].replace(",", "")) == pytest.approx(need, rel=1e-3)
    assert unbracketed(spec, changed_data(measured, 1.001 * need), c, law) == ""


def test_one_size_of_the_ladder_at_least_lies_below_the_predicted_minimum() -> None:
    """Sizes are a factor of 2 apart: where the data end within the margin, none of them may be left below it."""
    spec, measured = adaptive_spec([2e17, 3e17]), Measurements(sizes=SIZES, data=replace(DATA, train_samples=10**10))
    ladder, refused = ladder_of(spec, measured), 0
    for c in np.geomspace(1e18, 6.6e18, 40):
        n = math.sqrt(c / 240)
        left = [s.params for s in ladder if c / (6 * s.params) <= 10**10 and s.params < n]
        said = unbracketed(spec, measured, float(c), lambda c: math.sqrt(c / 240))
        assert (said == "") is bool(left)
        refused += not left
    assert 3 <= refused <= 30


def test_a_valley_without_the_steps_is_refused_with_the_batch_that_would_do() -> None:
    spec = adaptive_spec([1e17, 3e17], train={"batch_size": 10**6, "lr": 1e-3})
    measured = Measurements(sizes=SIZES, data=DATA)

    def law(c: float) -> float:
        return math.sqrt(c)  # far larger than anything that was expected

    least = least_steps(spec, measured)
    said = unbracketed(spec, measured, 1e17, law)
    found = re.search(r"train.batch_size of at most ([\d,]+)", said)
    assert found is not None, said
    batch = int(found[1].replace(",", ""))
    assert batch == math.floor(1e17 / (6 * 1.5 * law(1e17) * least))
    for size_of_batch, fits in ((batch, True), (1.01 * batch + 1, False)):
        changed = adaptive_spec([1e17, 3e17], train={"batch_size": int(size_of_batch), "lr": 1e-3})
        assert least_steps(changed, measured) != least or (unbracketed(changed, measured, 1e17, law) == "") is fits


def test_where_no_budget_can_be_planned_the_batch_and_the_data_that_would_do_are_named() -> None:
    measured = Measurements(sizes=SIZES, data=replace(DATA, train_samples=3_000))
    changes: dict[str, Any] = {"train": {"batch_size": 2_000, "lr": 1e-3}, "grid": {"seeds": 0}}
    said = refusal(adaptive_spec([1e12, 1e13], **changes), measured)
    assert "With this data and batch no C can be planned; one needs " in said, said
    enough = re.search(r"training data of at least ([\d,]+) tokens", said)
    assert enough is not None
    again = refusal(adaptive_spec([1e12, 1e13], **changes), changed_data(measured, int(enough[1].replace(",", ""))))
    found = RANGE.search(again)
    assert found is not None, again
    assert (
        refusal(about(float(found[1]) * 1.0001, **changes), changed_data(measured, int(enough[1].replace(",", ""))))
        == ""
    )


def test_the_ends_of_a_static_grid_are_counted_by_hand() -> None:
    """One batch of 500 of the largest size, 8·N FLOPs a token, is the low end; 10,000 samples of the smallest the high.

    Steps are rounded: half of a batch is none, and more than half is one. 10,000 samples are 20 steps and no more.
    """
    sizes = tuple(size(n, 8.0 * n) for n in (1_000, 2_000, 4_000))
    measured = Measurements(sizes=sizes, data=replace(DATA, train_samples=10_000))

    def static(c: float) -> Any:
        model = {"target": "m:G", "size_param": "width", "sizes": [1_000, 2_000, 4_000]}
        return adaptive_spec([c, 1.001 * c], model=model, train={"batch_size": 500, "lr": 1e-3})

    for c in (1e3, 1e12):
        said = refusal(static(c), measured)
        found = RANGE.search(said)
        assert found is not None, said
        assert [float(end) for end in found.groups()] == pytest.approx([0.5 * 500 * 32e3, 20.5 * 500 * 8e3], rel=0.006)
        assert refusal(static(float(found[1]) * 1.0001), measured) == ""
        assert refusal(static(float(found[2]) / 1.002), measured) == ""
        assert refusal(static(float(found[1]) / 1.05), measured) and refusal(static(float(found[2]) * 1.05), measured)
    assert ENDLESS.search(refusal(static(1e3), replace(measured, data=replace(DATA, train_samples=None))))
