"""The held-out set: as much of it as is worth its cost, evenly spaced, and recorded for the sweep."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from flops_fit_ray.planning import Measurements, Plan, Planner, plan_from_json, priced, stated_rate
from flops_fit_ray.planning._evaluation import evaluation_cost
from flops_fit_ray.training.data import eval_batches
from flops_fit_ray.training.loop._evaluate import evaluate
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.save_policy import SavePolicy
from flops_fit_ray.training.preflight.model_size import measure_sizes
from tests.parts import Mlp, planned, regression, spec_of, user_parts_of
from tests.worlds import DATA, SIZES, adaptive_spec

SAMPLES = 100_000  # 5,000 of them held out


def plan_of(samples: int = SAMPLES, budgets: Any = (1e6, 2e6), **data: Any) -> Plan:
    spec = spec_of(data={"train": "tests.parts:regression", **data}, budgets=list(budgets))
    return planned(spec, user_parts_of(spec, train=regression(samples)))


def test_a_held_out_set_that_costs_more_than_a_tenth_is_evaluated_in_part() -> None:
    plan = plan_of()
    # By hand: 3 sizes of N = 10 W + 1, of which 9 W are matrices, 2 forward FLOPs each and sample: 0.1 C = S * 18 W
    sizes = (4, 8, 16)
    most = 0.1 * plan.flops / (2 * sum(18 * w for w in sizes))
    assert plan.measurements.data.eval_samples == max(1000, int(most)) == 1000
    assert plan.evaluation_flops == pytest.approx(1000 * 2 * sum(18 * w for w in sizes))
    (note,) = plan.measurements.data.notes
    assert note.startswith("held-out: 1,000 of 5,000 samples, evenly spaced") and note in str(plan)
    assert f", and 1.01e6 ({100 * 1.008e6 / plan.flops:.2g} %) to evaluate" in str(plan)
    dear = plan_of(budgets=(5e6, 1e7))
    assert dear.measurements.data.eval_samples == int(0.1 * dear.flops / (2 * sum(18 * w for w in sizes)))
    assert 0.0999 < dear.evaluation_flops / dear.flops <= 0.1
    often = plan_of(budgets=(7e6, 1.4e7), eval_every_tokens=30_000)
    assert often.measurements.data.eval_samples < 5000 and 0.0999 < often.evaluation_flops / often.flops <= 0.1


def test_all_runs_that_are_expected_count_those_too_that_results_will_decide() -> None:
    spec = adaptive_spec()
    data = replace(DATA, eval_samples=10**9)
    plan = Planner(spec, Measurements(sizes=SIZES, data=data)).plan()
    assert plan.forecast and 1000 < plan.measurements.data.eval_samples < 10**9
    assert 0.0999 < plan.evaluation_flops / plan.flops <= 0.1


@pytest.mark.parametrize("every", [1, 8, 9, 100, 10**9])
def test_evaluations_on_the_way_are_counted_as_a_run_does_them(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(budgets=[1e5, 2e5])
    user = user_parts_of(spec)
    plan = planned(spec, user)
    experiment, calls = plan.experiments[0], []

    def counted(*args: Any) -> Any:
        calls.append(1)
        return evaluate(*args)

    monkeypatch.setattr("flops_fit_ray.training.loop.worker.evaluate", counted)
    train_experiment(experiment, user, eval_samples=1, policy=SavePolicy(eval_every_tokens=every))
    one = evaluation_cost(plan.measurements, None)(experiment)
    assert evaluation_cost(plan.measurements, every)(experiment) == pytest.approx(len(calls) * one)


def test_evaluations_take_hours_and_money_forward_passes_alone() -> None:
    # By hand: a model of width W takes 18 W FLOPs forward a sample, and a step has 8 samples
    plans = {every: plan_of(eval_samples=1000, eval_every_tokens=every) for every in (None, 8000)}
    for every, plan in plans.items():
        evaluations = 0
        for e in plan.experiments:
            width = int(e.size)
            own_steps = range(e.start_step + 1, e.steps)
            on_the_way = [s for s in own_steps if every is not None and s * 8 // every != (s - 1) * 8 // every]
            evaluations += (1 + len(on_the_way)) * 1000 * 18 * width
        assert plan.evaluation_flops == pytest.approx(evaluations)
        price = priced(plan, "trunk", rates=stated_rate(1e6, 1), money_per_hour=3600.0).price
        assert price is not None and price.wall_seconds is not None
        assert price.wall_seconds == pytest.approx((plan.flops + evaluations) / 1e6) == pytest.approx(price.money)
    assert plan_from_json(plans[8000].to_json()).evaluation_cost(plans[8000].experiments[0]) > 0


def test_a_child_does_not_evaluate_its_parents_steps() -> None:
    plan = plan_of(eval_samples=1000)
    e = replace(plan.experiments[0], tokens=80, steps=10)
    once = evaluation_cost(plan.measurements, None)(e)
    child = replace(e, parent="a", start_step=5)  # 40 of 80 tokens
    assert evaluation_cost(plan.measurements, 20)(e) == 4 * once  # after 24, 40, 64 and 80 tokens
    assert evaluation_cost(plan.measurements, 20)(child) == 2 * once


def test_what_the_user_says_and_what_was_begun_before_is_kept() -> None:
    asked = plan_of(eval_samples=4000)
    assert asked.measurements.data.eval_samples == 4000 and asked.measurements.data.notes == ()
    assert any(w.startswith("evaluating 4,000 held-out samples costs ") for w in asked.warnings)
    spec = spec_of(budgets=[1e6, 2e6])
    measurements = measure_sizes(spec, user_parts_of(spec, train=regression(SAMPLES)))
    constants = Planner(spec, measurements).plan().constants
    assert constants.eval_samples == 1000
    assert Planner(spec, measurements, constants).plan().measurements.data.eval_samples == 1000
    before = replace(constants, eval_samples=None)  # of a plan without the field
    assert Planner(spec, measurements, before).plan().measurements.data.eval_samples == 5_000
    more = spec_of(budgets=[1e6, 2e6, 1e7])
    assert Planner(more, measurements, constants).plan().measurements.data.eval_samples == 1000  # one set for a sweep
    plan = plan_of()
    assert plan_from_json(plan.to_json()).evaluation_flops == plan.evaluation_flops


def test_a_small_held_out_set_is_warned_of() -> None:
    (warning,) = (w for w in plan_of(samples=2000, budgets=(1e5, 2e5)).warnings if "held-out" in w)
    assert warning.startswith("the held-out set has 100 targets: losses have an error of about 10 %")
    assert not [w for w in plan_of(samples=40_000, budgets=(2e6, 4e6)).warnings if "held-out" in w]


def test_a_part_is_evenly_spaced_over_data_in_any_order() -> None:
    rows = TensorDataset(torch.arange(10.0)[:, None])
    found = [b.content[0].flatten().tolist() for b in eval_batches(rows, 4, 3, spread=True)]
    assert found == [[0.0, 2.0, 5.0], [7.0]]
    assert [b.content[0].flatten().tolist() for b in eval_batches(rows, 4, 3)] == [[0.0, 1.0, 2.0], [3.0]]
    spec = spec_of()
    user = user_parts_of(spec, model=Mlp, train=regression(4000))
    experiment = planned(spec, user).experiments[0]
    assert user.eval_data is not None
    spaced = Subset(user.eval_data, (np.arange(10) * 20).tolist())  # type: ignore[arg-type] # map-style
    loss = train_experiment(experiment, user, eval_samples=10).loss
    assert loss == train_experiment(experiment, replace(user, eval_data=spaced), eval_samples=10).loss
    assert loss != train_experiment(experiment, replace(user, eval_spread=False), eval_samples=10).loss
