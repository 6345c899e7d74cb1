"""The adaptive planner: it finds minima wherever they are, and its plan never depends on who ends first."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.outliers import farthest_outlier, limit
from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import Measurements, Observation, Plan, Planner, make_plan, own_range
from flops_fit_ray.planning._adaptive import _valley, predicted_optimum, rungs
from flops_fit_ray.planning.cells import constants_identity
from flops_fit_ray.planning.experiment import Experiment, SweepConstants
from flops_fit_ray.planning.grid import centre_of
from flops_fit_ray.planning.loss_surfaces import SURFACES
from flops_fit_ray.planning.lr_probes import lr_law, probe_budgets
from flops_fit_ray.planning.simulation import World, lr_penalty
from flops_fit_ray.planning.slots import own_flops
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.sweep.simulate import _Truth, fit_simulated, simulate_spec, simulated_points
from tests.surfaces import HOFFMANN, sweep_on
from tests.worlds import (
    BUDGETS,
    DATA,
    SIZES,
    adaptive_spec,
    loss_in,
    of_role,
    planner_of,
    run_through,
    size,
    world,
)

NO_GUARDS = {"seeds": 0, "rerun_outliers": False}


def grid_of(plan: Plan, budget: float) -> list[int]:
    return sorted(e.params for e in plan.experiments if e.budget == budget and e.role == "grid")


@pytest.mark.parametrize("surface", ["hoffmann", "besiroglu", "lopsided"])
@pytest.mark.parametrize("tokens_per_param", [0.5, 20.0, 2000.0])
def test_every_budget_ends_with_its_minimum_inside(surface: str, tokens_per_param: float) -> None:
    """Wherever the first valley is looked for: 6 times too large, about right, 10 times too small."""
    where = world(surface)
    planner = planner_of(grid={**NO_GUARDS, "tokens_per_param": tokens_per_param})
    plan, _ = run_through(planner, loss_in(where))
    for budget in BUDGETS:
        sizes, true = grid_of(plan, budget), where.surface.optimum(budget)[0]
        assert sizes[0] < true / 1.3 and true * 1.3 < sizes[-1], budget
        assert len(sizes) >= 3
    # Once the first minimum is known, no further valley is a search
    assert all(len(grid_of(plan, b)) <= 7 for b in BUDGETS[1:])
    (note,) = plan.notes  # nothing but the window
    assert note.startswith("the window from C = 1e18 on is x/÷")


def test_the_plan_is_the_same_whoever_ends_first_and_nothing_planned_is_taken_back() -> None:
    find = loss_in(world(noise=0.01))
    planner = planner_of()
    first, observed = run_through(planner, find)
    for seed in range(8):
        again = run_through(planner, find, random.Random(seed))[0]
        assert {e.key for e in again.experiments} == {e.key for e in first.experiments}
        assert again.reach == first.reach and again.notes == first.notes
    known: dict[str, Observation] = {}
    before: set[str] = set()
    for key in random.Random(1).sample(sorted(observed), len(observed)):
        known[key] = observed[key]
        now = {e.key for e in planner.plan(known).experiments}
        assert before <= now
        before = now
    assert before == {e.key for e in first.experiments}


def test_what_a_planner_keeps_changes_no_plan() -> None:
    """It makes cells and reads valleys once: plans by one that has seen other results are those of a new one."""
    used = planner_of()
    run_through(used, loss_in(world("lopsided", noise=0.02)))
    _, observed = run_through(used, loss_in(world(noise=0.02)))
    for count in range(0, len(observed) + 1, 20):
        known = dict(list(observed.items())[:count])
        _valley.cache_clear()
        assert planner_of().plan(known).to_json() == used.plan(known).to_json()
    cells, (small, *_) = used.cells, SIZES
    made = cells.make(1e18, small, 0.01)
    assert cells.make(1e18, small, 0.01) is made
    more = replace(small, params=small.params + 1, flops_per_token=2 * small.flops_per_token)  # of the same name
    others = [cells.make(1e18, more, 0.01), cells.make(2e18, small, 0.01), cells.make(1e18, small, 0.02)]
    assert [(e.params, e.budget, e.recipe.lr) for e in others] == [
        (more.params, 1e18, 0.01), (small.params, 2e18, 0.01), (small.params, 1e18, 0.02)]  # fmt: skip
    assert others[0].steps == pytest.approx(made.steps / 2, abs=1)
    assert cells.make(1e18, small, 0.01, seed=7).recipe.seed == 7
    assert (cells.make(1e18, small, 0.01, reason="why", role="probe", of="x").reason, made.reason) == ("why", "")


def test_the_forecast_is_about_what_comes() -> None:
    planner = planner_of()
    forecast = planner.plan()
    plan, _ = run_through(planner, loss_in(world()))
    assert len(forecast.experiments) == 7 and len(forecast.expected) == pytest.approx(len(plan.experiments), abs=3)
    assert forecast.flops == pytest.approx(plan.flops, rel=0.15)
    assert not forecast.final and plan.final and plan.forecast == ()


def test_the_middle_of_the_next_budget_is_begun_before_this_one_is_complete() -> None:
    planner, find = planner_of(), loss_in(world())
    observed: dict[str, Observation] = {}
    for e in planner.plan().experiments:  # the first valley
        observed[e.key] = find(e)
    plan = planner.plan(observed)
    ahead = [e for e in plan.experiments if e.budget == BUDGETS[2]]
    assert len(ahead) == 3 and all("two budgets ahead" in e.reason for e in ahead)
    assert len([e for e in plan.experiments if e.budget == BUDGETS[1] and e.key not in observed]) == 7


def test_one_ladder_for_all_budgets_so_that_trunks_are_shared() -> None:
    plan, _ = run_through(planner_of(grid=NO_GUARDS), loss_in(world()))
    later = [e for e in plan.experiments if e.budget > BUDGETS[0]]
    assert len(later) >= 18 and sum(e.parent is not None for e in later) >= 0.75 * len(later)
    known = {e.key: e for e in plan.experiments}
    for e in later:
        if e.parent is not None:
            parent = known[e.parent]
            assert (parent.size, parent.recipe) == (e.size, e.recipe) and parent.budget < e.budget
            assert e.start_step == parent.trunk_step < e.trunk_step


def test_rungs_are_the_candidates_nearest_to_a_geometric_ladder() -> None:
    sizes = [size(n) for n in (90, 100, 140, 210, 380, 800, 850)]
    assert [s.params for s in rungs(sizes, 200, 2)] == [100, 210, 380, 800]  # 100, 200, 400 and 800
    assert [s.params for s in rungs(sizes, 800, 2)] == [100, 210, 380, 800]  # wherever on it the anchor is
    assert [s.params for s in rungs(sizes, 100, 8)] == [100, 800]
    assert [s.params for s in rungs(sizes[1:4:2], 200, 2)] == [100, 210]  # a rung with one candidate
    assert rungs([], 200, 2) == []


@pytest.mark.parametrize("ratio", [0.3, 0.7, 1.0, 1.4, 13.0, 300.0])
def test_the_first_valley_is_where_counted_flops_put_it(ratio: float) -> None:
    """A token costs ratio·6·N, so D = 20·N costs C = ratio·120·N², and N = 1.28e6 is the middle of seven sizes."""
    sizes = tuple(replace(s, flops_per_token=ratio * s.flops_per_token) for s in SIZES)
    n = 1_280_000
    spec = adaptive_spec([ratio * 120 * n**2, ratio * 1200 * n**2], grid=NO_GUARDS)
    measured = Measurements(sizes=sizes, data=DATA)
    first = [e for e in make_plan(spec, measured).experiments if e.budget == spec.budgets[0].flops]
    assert [e.params for e in first][3] == n and len(first) == 7
    assert first[3].tokens == pytest.approx(20 * n, rel=1e-4)
    # Rule 2, of sweeps that began earlier: 6·N·D, so that 20 stands for 20 / ratio, unless that is far off
    old = SweepConstants(identity=constants_identity(spec, measured), base_budget=1.0, warmup_limit=1000, counting=2)
    plan = make_plan(spec, measured, constants=old)
    middle = [e for e in plan.experiments if e.budget == spec.budgets[0].flops][3]
    expected = n * math.sqrt(ratio) if 0.5 <= ratio <= 3 else n
    assert abs(math.log(middle.params / expected)) <= math.log(2) / 8 and plan.constants == old
    ranges = {counting: own_range(spec, sizes, counting) for counting in (2, 3)}  # of sizes that the spec leaves to us
    for counting, centre in ((2, n * math.sqrt(ratio)), (3, n)):
        assert ranges[counting] == pytest.approx((centre / 32, 32 * centre * math.sqrt(10)))


def test_the_search_stops_where_the_model_ends_and_says_so() -> None:
    few = tuple(s for s in SIZES if s.params <= 2e7)  # the minimum is at 33M and more
    plan, _ = run_through(planner_of(sizes=few, grid={"tokens_per_param": 2000}), loss_in(world()))
    assert plan.final and any("the model allows no larger size" in note for note in plan.notes)


def test_the_search_is_capped() -> None:
    grid = {"tokens_per_param": 20_000, "max_experiments": 9, "seeds": 0}
    plan, _ = run_through(planner_of(grid=grid), loss_in(world()))
    assert len(plan.experiments) == 9 and any("grid.max_experiments = 9 is reached" in note for note in plan.notes)


def test_data_that_end_at_the_optimum_are_warned_of() -> None:
    plan = make_plan(adaptive_spec(), Measurements(sizes=SIZES, data=replace(DATA, train_samples=3 * 10**9)))
    assert any("all sizes that the data can feed are larger than the expected optimum" in w for w in plan.warnings)


def test_data_that_end_between_the_optimum_and_the_size_below_it_are_what_is_short() -> None:
    spec = adaptive_spec()
    c = spec.budgets[-1].flops
    centre = centre_of(spec, Measurements(sizes=SIZES, data=DATA), c)
    below = max((s for s in SIZES if s.params < centre), key=lambda s: s.params)
    data = replace(DATA, train_samples=int(0.999 * c / below.flops_per_token))
    (said,) = (w for w in make_plan(spec, Measurements(sizes=SIZES, data=data)).warnings if "expected optimum" in w)
    assert said.startswith(f"C = {fmt.flops(c)}: all sizes that the data can feed are larger than the expected optimum")
    assert said.endswith("add data, or leave this budget out [sizes_above_optimum]")


def test_larger_sizes_without_enough_steps_are_not_taken() -> None:
    planner = planner_of(train={"batch_size": 2_000_000, "lr": 1e-3}, grid={"tokens_per_param": 100})
    plan, _ = run_through(planner, loss_in(world()))
    assert min(e.steps for e in plan.experiments) >= 300
    assert any("too few optimizer steps: lower train.batch_size" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("changes", "sizes", "data", "message"),
    [
        ({}, SIZES[:2], DATA, "an adaptive grid needs at least 3"),
        ({}, (*SIZES[20:40], size(SIZES[30].params)), DATA, "both have N"),
        ({}, SIZES[:66], replace(DATA, train_samples=5 * 10**8), "C = 1e18 needs more data than there is"),
    ],
)
def test_refusals_before_anything_runs(changes: dict[str, Any], sizes: Any, data: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_plan(adaptive_spec(**changes), Measurements(sizes=sizes, data=data))


def test_adaptive_needs_budgets_and_no_lists() -> None:
    with pytest.raises(SpecError, match="a budget lists sizes of its own"):
        adaptive_spec(budgets=[1e17, {"flops": 1e18, "sizes": [1, 2, 3]}], grid={"kind": "adaptive"})  # type: ignore[list-item] # on purpose
    assert not adaptive_spec(model={"target": "m:G", "size_param": "width", "sizes": [1, 2, 3]}).is_adaptive
    ladder = {"target": "m:G", "size_param": "width", "sizes": {"start": 8, "stop": 512}}
    assert adaptive_spec(model=ladder).is_adaptive
    assert not adaptive_spec(grid={"kind": "static"}).is_adaptive


def test_predictions_from_minima() -> None:
    assert predicted_optimum([(1e18, 1e7)], 1e20) == pytest.approx(1e8)  # the prior's slope
    exact = [(c, 0.1 * c**0.5) for c in (1e17, 1e18, 1e19)]
    assert predicted_optimum(exact, 1e20) == pytest.approx(0.1 * 1e10)
    steep = [(c, 0.1 * c**0.7) for c in (1e16, 1e17, 1e18, 1e19)]
    assert 0.5 < math.log(predicted_optimum(steep, 1e20) / steep[-1][1]) / math.log(10) < 0.7  # pulled to 1/2, a little


# The learning rate


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.7, 5.0])
def test_the_learning_rate_is_found_wherever_it_is(factor: float) -> None:
    planner = planner_of(train={"batch_size": 500}, grid=NO_GUARDS)
    plan, _ = run_through(planner, loss_in(world(lr_factor=factor)))
    assert plan.lr is not None
    for n in (3e7, 3e8):
        # A parabola through a lopsided valley errs on the low side, which is the cheap one; so does the prior over D
        assert 0.5 < plan.lr.of(n) / (factor * 1e-3 * (n / 1e7) ** -0.25) < 1.05
    probes = of_role(plan, "probe")
    assert {e.budget for e in probes} == set(BUDGETS[:2]) and 11 <= len(probes) <= 18
    assert sum(e.flops_executed for e in probes) < 0.06 * sum(e.flops_executed for e in plan.experiments)
    grid = [e for e in plan.experiments if e.role == "grid"]
    assert len(grid) >= 25 and all(e.recipe.lr == plan.lr.of(e.params) for e in grid)
    assert "learning rate: best" in plan.notes[0]


@pytest.mark.parametrize(("of_size", "of_tokens"), [(-0.3, -0.3), (0.0, -0.3), (-0.5, -0.1), (-0.25, 0.0)])
def test_rates_that_fall_with_tokens_are_found(of_size: float, of_tokens: float) -> None:
    """At one budget a larger model sees fewer tokens: by sizes alone the rate was 2.5 times too high at the end."""

    def best(params: float, tokens: float) -> float:
        return float(2e-3 * (params / 3e7) ** of_size * (tokens / 6e8) ** of_tokens)

    planner = planner_of(train={"batch_size": 500}, grid=NO_GUARDS)
    plan, _ = run_through(planner, loss_in(world(best_lr=best)))
    assert plan.lr is not None and not plan.lr.held
    largest = math.sqrt(BUDGETS[-1] / 120)
    assert 0.55 < plan.lr.of(largest) / best(largest, 20 * largest) < 1.2
    grid = [e for e in plan.experiments if e.role == "grid"]
    assert any(e.parent for e in grid)  # one rate for all budgets of a size
    assert any("at one N it goes as D^" in note for note in plan.notes)


def test_a_model_that_does_not_learn_has_no_best_rate() -> None:
    """All rates give the loss of chance, and the lowest of them is noise."""
    noise = np.random.default_rng(0)
    planner = planner_of(train={"batch_size": 500}, grid=NO_GUARDS)
    plan, _ = run_through(planner, lambda e: Observation(loss=math.log(4) + 1e-4 * noise.standard_normal()))
    (first, second, *_) = [w for w in plan.warnings if "the model may not learn at this budget" in w]
    assert "learning rates " in first and first != second
    learns, _ = run_through(planner, loss_in(world(lr_factor=1.7)))
    assert not any("may not learn" in w for w in learns.warnings)


def test_the_rule_of_rates() -> None:
    """Rates on the plane of the priors give that plane, whatever their noise is taken for."""
    plane = [(n, d, 1e-3 * (n / 1e6) ** -0.3 * (d / 2e7) ** -0.2) for n in (10**6, 10**7) for d in (10**7, 10**8)]
    law = lr_law(plane, tokens_per_param=20.0)
    assert law.exponent == pytest.approx(-0.5) and law.tokens_exponent == pytest.approx(-0.2)
    assert law.of(1e6) == pytest.approx(1e-3) and law.of(1e8) == pytest.approx(1e-4)
    rising = lr_law([(10**6, 10**8, 1e-3), (10**8, 10**6, 1e-1), (10**6, 10**9, 3e-3), (10**8, 10**7, 3e-1)], 20.0)
    assert rising.held and rising.exponent == 0 and (rising.found_exponent or 0) > 0.5


def test_rates_are_probed_at_a_second_budget_where_that_is_cheap() -> None:
    assert probe_budgets([1, 2, 4, 8, 16, 32, 64, 128]) == (1, 4)
    assert probe_budgets(BUDGETS) == tuple(BUDGETS[:2])
    assert probe_budgets([1, 3, 9]) == (1,) and probe_budgets([1]) == (1,)


def test_a_sweep_of_an_earlier_version_keeps_its_probes() -> None:
    planner = planner_of(train={"batch_size": 500}, grid=NO_GUARDS)
    constants = replace(planner.cells.constants, probe_budgets=())
    earlier = Planner(planner.spec, planner.measurements, constants)
    plan, _ = run_through(earlier, loss_in(world()))
    assert {e.budget for e in of_role(plan, "probe")} == {BUDGETS[0]}
    assert plan.lr is not None and plan.lr.tokens_exponent is None and len(plan.lr.optima) == 2
    assert plan.constants.probe_budgets == ()


def test_nothing_but_probes_runs_before_the_rate_is_known() -> None:
    plan = planner_of(train={"batch_size": 500}).plan()
    assert {e.role for e in plan.experiments} == {"probe"} and len(plan.experiments) == 8
    assert {e.role for e in plan.forecast} == {"grid", "seed", "lr_check", "probe"}
    assert not any("not measured" in w for w in plan.warnings)


def test_a_rate_that_diverges_bounds_the_search() -> None:
    inner = loss_in(world())

    def find(e: Experiment) -> Observation:
        general = 1e-3 * (e.params / 1e7) ** -0.25
        return Observation(loss=None, diverged=True) if e.recipe.lr > 1.5 * general else inner(e)

    plan, _ = run_through(planner_of(train={"batch_size": 500}, grid=NO_GUARDS), find)
    assert plan.lr is not None and 0.7 < plan.lr.of(1e7) / 1e-3 < 1.1  # below the best one that did not


@pytest.mark.parametrize(("asked", "budgets"), [({}, 2), ({"lr_check": "lower"}, 3), ({"sizes": 5}, 3)])
def test_the_rate_is_checked_at_the_minima_of_the_cheap_budgets(asked: dict[str, Any], budgets: int) -> None:
    plan, _ = run_through(planner_of(train={"batch_size": 500}, grid={"seeds": 0, **asked}), loss_in(world()))
    checks = of_role(plan, "lr_check")
    assert {e.budget for e in checks} == set(BUDGETS[:budgets]) and len(checks) == 2 * budgets
    known = {e.key: e for e in plan.experiments}
    factors = sorted(round(e.recipe.lr / known[e.of or ""].recipe.lr, 9) for e in checks)
    assert factors == [0.5] * budgets + [2.0] * budgets
    assert of_role(run_through(planner_of(), loss_in(world()))[0], "lr_check") == []  # the user's own rule


@pytest.mark.parametrize(("optimizer", "power"), [("adamw", 0.5), ("sgd", 1.0)])
def test_the_batch_size_is_checked_on_request_and_nothing_else_changes(optimizer: str, power: float) -> None:
    train = {"batch_size": 500, "micro_batch_size": 300, "lr": 1e-3, "optimizer": optimizer}
    without, plan = (
        run_through(planner_of(train=train, grid={**NO_GUARDS, "batch_check": asked}), loss_in(world()))[0]
        for asked in ("none", "lower")
    )
    checks = of_role(plan, "batch_check")
    assert [e for e in plan.experiments if e.role != "batch_check"] == list(without.experiments)
    assert [e.budget for e in checks] == [c for c in BUDGETS[:-2] for _ in (0, 1)]
    known = {e.key: e for e in plan.experiments}
    for e in checks:
        of = known[e.of or ""]
        times = e.recipe.batch_size / of.recipe.batch_size
        assert e.recipe.lr == pytest.approx(of.recipe.lr * times**power) and e.size == of.size
        assert abs(e.steps * times - of.steps) <= 1 and e.tokens == pytest.approx(of.tokens, rel=1 / e.steps)
        assert e.recipe.micro_batch_size == min(300, e.recipe.batch_size) and e.parent is None
    assert [e.recipe.batch_size for e in checks] == [250, 1000] * (len(BUDGETS) - 2)


def test_what_a_wrong_rate_costs_is_what_was_published() -> None:
    assert [round(lr_penalty(r), 3) for r in (1, 2, 4, 0.5)] == [0, 0.019, 0.1, 0.007]


def test_a_probe_that_is_a_cell_of_the_grid_counts_as_one() -> None:
    """Where every rate fails, the general rule stands, which was probed: the same experiment is not run twice."""
    inner = loss_in(world())

    def find(e: Experiment) -> Observation:
        return Observation(loss=None) if e.role == "probe" else inner(e)

    plan, _ = run_through(planner_of(train={"batch_size": 500}, grid=NO_GUARDS), find)
    assert plan.final and len(grid_of(plan, BUDGETS[0])) >= 5
    keys = [e.key for e in plan.experiments]
    assert len(keys) == len(set(keys))


def test_a_loss_of_zero_and_below_is_a_loss() -> None:
    inner = loss_in(world())
    plan, _ = run_through(planner_of(), lambda e: Observation(loss=(inner(e).loss or 0) - 3.2))
    assert plan.final and all(len(grid_of(plan, b)) >= 3 for b in BUDGETS)


# Seeds and reruns


def test_seeds_stand_near_both_of_the_smallest_minima_on_one_trunk() -> None:
    plan, _ = run_through(planner_of(), loss_in(world()))
    seeds = of_role(plan, "seed")
    assert sorted({e.budget for e in seeds}) == BUDGETS[:2] and {e.recipe.seed for e in seeds} == {1, 2}
    assert len({e.size for e in seeds}) == 1
    known = {e.key: e for e in plan.experiments}
    for e in seeds:
        assert 0.5 < e.params / world().surface.optimum(e.budget)[0] < 2
        assert known[e.of or ""].recipe.seed == 0
    assert all(known[e.parent or ""].recipe.seed == e.recipe.seed for e in seeds if e.budget == BUDGETS[1])
    assert len(of_role(run_through(planner_of(grid={"seeds": 3}), loss_in(world()))[0], "seed")) == 6


@pytest.mark.parametrize(("off", "how"), [(0.2, "half the learning rate"), (-0.2, "another seed")])
def test_an_outlier_is_run_again_and_both_stay_on_record(off: float, how: str) -> None:
    clean, noisy = loss_in(world(noise=0.002)), loss_in(world(noise=0.002, seed=5))
    bad = grid_of(planner_of().plan(), BUDGETS[0])[4]

    def find(e: Experiment) -> Observation:
        found = clean(e)
        is_bad = e.params == bad and e.budget == BUDGETS[0] and e.role == "grid"
        return Observation(loss=(found.loss or 0) + off) if is_bad else noisy(e)

    plan, observed = run_through(planner_of(grid={"seeds": 0}), find)
    (rerun,) = of_role(plan, "rerun")
    assert how in rerun.reason and rerun.params == bad and any(how in note for note in plan.notes)
    first = next(e for e in plan.experiments if e.key == rerun.of)
    assert (rerun.recipe.lr, rerun.recipe.seed) == ((first.recipe.lr / 2, 0) if off > 0 else (first.recipe.lr, 1000))
    assert observed[first.key].loss is not None  # still there


def test_a_diverged_experiment_is_run_again_twice_at_half_the_rate() -> None:
    inner = loss_in(world())
    bad = grid_of(planner_of().plan(), BUDGETS[0])[2]

    def find(e: Experiment) -> Observation:
        return Observation(loss=None, diverged=True) if e.params == bad and e.budget == BUDGETS[0] else inner(e)

    plan, _ = run_through(planner_of(grid={"seeds": 0}), find)
    first, second = of_role(plan, "rerun")
    assert second.of == first.key and second.recipe.lr == first.recipe.lr / 2
    assert plan.final


def test_a_failed_experiment_is_left_out_and_stops_nothing() -> None:
    inner = loss_in(world())

    def find(e: Experiment) -> Observation:
        return Observation(loss=None) if e.params == SIZES[40].params else inner(e)

    plan, _ = run_through(planner_of(), find)
    assert plan.final and of_role(plan, "rerun") == []


def test_clean_valleys_have_no_outliers_and_the_limit_is_wider_where_little_is_known() -> None:
    assert limit(1e6) == 4.0 and limit(3) > 10 and limit(10) > 4.5
    false = 0
    for seed in range(100):
        points = sweep_on(HOFFMANN, [1e19], sizes=7, noise=0.01, seed=seed)
        false += farthest_outlier(points.params, points.loss, []) is not None
    assert false <= 5


# What a directory has decided


def test_adding_a_budget_or_seeds_renames_nothing() -> None:
    find = loss_in(world(noise=0.005))
    plan, _ = run_through(planner_of(train={"batch_size": 500}), find)
    keys = {e.key for e in plan.experiments}
    for changes in ({"budgets": [*BUDGETS, 3.16e19]}, {"grid": {"seeds": 4}}):
        spec = adaptive_spec(train={"batch_size": 500}, **changes)
        wider, _ = run_through(Planner(spec, Measurements(sizes=SIZES, data=DATA), plan.constants), find)
        assert keys < {e.key for e in wider.experiments}


@pytest.mark.parametrize(("budgets", "numbers"), [([1e16, 1e17, 3e17], (40, 44, 48)), ([1e17, 3e17], (40, 44, 48, 60))])
def test_a_smaller_budget_or_a_larger_size_renames_nothing_thanks_to_the_constants(
    budgets: list[float], numbers: tuple[int, ...]
) -> None:
    """Either has a smaller D than the sweep had, of which a tenth limits the warm-up of a new sweep."""
    measurements = Measurements(sizes=SIZES, data=DATA)

    def spec_with(budgets: list[float], numbers: tuple[int, ...]) -> SweepSpec:
        sizes = [SIZES[i].size for i in numbers]
        return adaptive_spec(budgets=budgets, model={"target": "m:G", "size_param": "width", "sizes": sizes})

    plan = Planner(spec_with([1e17, 3e17], (40, 44, 48)), measurements).plan()
    kept = Planner(spec_with(budgets, numbers), measurements, plan.constants).plan()
    anew = Planner(spec_with(budgets, numbers), measurements).plan()
    keys = {e.key for e in plan.experiments}
    assert len(keys) == 6 and keys < {e.key for e in kept.experiments} and kept.constants == plan.constants
    assert not keys <= {e.key for e in anew.experiments}


def test_a_frame_serves_its_own_sweep_alone() -> None:
    plan = planner_of().plan()
    other = adaptive_spec(train={"batch_size": 500, "lr": 1e-3, "weight_decay": 0.1}, budgets=[2e17, 1e18])
    made = Planner(other, Measurements(sizes=SIZES, data=DATA), plan.constants).plan()
    assert made.constants != plan.constants and made.constants.base_budget == 2e17


def test_the_fit_of_a_simulated_sweep_takes_seeds_and_leaves_checks_out() -> None:
    from flops_fit_ray.planning.simulation import simulate_sweep

    spec = adaptive_spec(train={"batch_size": 500})
    planner = planner_of(spec)
    where = World(surface=SURFACES["hoffmann"], noise=0.003, lr_factor=1.7, trunk_share=0.5)
    simulated = simulate_sweep(planner, where, 4, own_flops)
    points = simulated_points(simulated.rows(), shared=True)
    grid = len(of_role(simulated.plan, "grid")) + len(of_role(simulated.plan, "seed"))
    assert len(points) == grid < len(simulated.plan.experiments)
    assert points.num_runs < len(points)
    law = fit_simulated(spec, simulated).method.params_opt
    assert law is not None and law.exponent == pytest.approx(0.28 / 0.62, abs=0.03)


@pytest.mark.parametrize("lr", ["auto", 3e-3, {"base": 4e-3, "at": 1e7, "exponent": -0.5}])
def test_a_rate_of_the_users_own_is_right_in_a_simulation(lr: object) -> None:
    """Unless they say by how much it is off: twice too low costs what `lr_penalty` says."""
    from flops_fit_ray.planning.simulation import simulate_sweep

    spec = adaptive_spec(budgets=BUDGETS[:2], train={"batch_size": 500, "lr": lr}, grid=NO_GUARDS | {"lr_guard": False})
    for factor in (1.0, 2.0):
        where = World(surface=SURFACES["hoffmann"], noise=0.0, lr_factor=factor)
        for e, loss in simulate_sweep(planner_of(spec), where, 4, own_flops).rows():
            floor, a, b, alpha, beta = HOFFMANN
            clean = floor + a / e.params**alpha + b / e.tokens**beta
            assert loss == pytest.approx(clean + lr_penalty(1 / factor), rel=1e-12)
    found = simulate_spec(spec, planner_of(spec).plan(), surface=SURFACES["hoffmann"], noise=0.0, sweeps=1, slots=(2,))
    assert found.lr_factor == (1.7 if lr == "auto" else 1.0)


def test_the_truth_beyond_the_measured_sizes_has_6_flops_for_each_parameter_and_token() -> None:
    measured = Measurements(sizes=SIZES[40:60], data=DATA)
    params = np.array([SIZES[10].params, SIZES[50].params, SIZES[100].params], dtype=np.float64)
    e, a, b, alpha, beta = HOFFMANN
    exact = e + a / params**alpha + b / (1e18 / 6 / params) ** beta
    truth = _Truth(SURFACES["hoffmann"], adaptive_spec(), measured, 1e20)
    assert truth.loss(params, 1e18) == pytest.approx(exact, rel=1e-12)


def test_a_static_grid_is_run_as_it_is_written_and_takes_every_guard_on_request() -> None:
    sizes = [round(1e4 * 2 ** ((40 + 4 * k) / 4)) for k in range(1, 6)]
    model = {"target": "m:G", "size_param": "width", "sizes": sizes}
    budgets = [1e17, 3.16e17, 1e18]
    plain = planner_of(adaptive_spec(budgets=budgets, model=model, train={"batch_size": 500})).plan()
    assert plain.final and len(plain.experiments) == 15 and {e.role for e in plain.experiments} == {"grid"}
    assert any("not measured" in w for w in plain.warnings)

    grid = {"lr_guard": True, "lr_check": "all", "batch_check": "all", "seeds": 1, "rerun_outliers": True}
    spec = adaptive_spec(budgets=budgets, model=model, train={"batch_size": 500}, grid=grid)
    plan, _ = run_through(planner_of(spec), loss_in(world(lr_factor=2.0)))
    counts = {role: len(of_role(plan, role)) for role in ("probe", "grid", "seed", "lr_check", "batch_check")}
    assert (
        counts["batch_check"] == 6
        and counts["grid"] == 15
        and counts["probe"] >= 8
        and counts["seed"] == 2
        and counts["lr_check"] == 6
    )
    assert plan.lr is not None and 1.2 < plan.lr.of(5e7) / (1e-3 * 5**-0.25) < 2.1  # sizes far from D = 20 N
