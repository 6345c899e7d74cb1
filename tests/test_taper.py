"""The grid that tapers: counted by hand, chosen for known valleys, and replayed; earlier sweeps do not taper."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.valley import Valley
from flops_fit_ray.analysis.window import within_reach
from flops_fit_ray.errors import FitError, SpecError
from flops_fit_ray.fit_options import FitOptions
from flops_fit_ray.planning import Measurements, Observation, Plan, Planner, SweepConstants
from flops_fit_ray.planning._adaptive import valley_through
from flops_fit_ray.planning._taper import STEPS, Sizing, half_window, spread_evenly
from flops_fit_ray.planning.experiment import Experiment
from flops_fit_ray.spec import GridSection
from flops_fit_ray.storage.codec import value_of
from flops_fit_ray.sweep.directory import fit_options
from tests.worlds import BUDGETS, DATA, SIZES, adaptive_spec, loss_in, planner_of, run_in_rounds, size, world

LADDER = [size(1000 * 2**k) for k in range(12)]


def cells(plan: Plan, budget: float) -> list[int]:
    return sorted(e.params for e in plan.experiments if e.budget == budget and e.role == "grid")


def test_many_sizes_where_runs_are_cheap_and_three_where_they_are_dear() -> None:
    plan, _ = run_in_rounds(planner_of(), loss_in(world("besiroglu")))
    # Shares of 14.64e18 FLOPs: .7 %, 2.2 %, 6.8 % (5.9 sizes for 40 %), 21.6 % and 68 %
    assert [len(cells(plan, c)) for c in BUDGETS] == [7, 7, 5, 3, 3]
    assert plan.reach == pytest.approx(4 * math.sqrt(2))
    for budget in BUDGETS[3:]:
        low, middle, high = cells(plan, budget)
        assert middle / low == pytest.approx(4) and high / middle == pytest.approx(4)
        assert low * 2 < world("besiroglu").surface.optimum(budget)[0] < high / 2


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ((0.032, 0.065, 0.129, 0.258, 0.516), (7, 5, 3, 3, 3)),  # a factor of 2 apart: 12.5, 6.2, 3.1, ...
        ((0.009, 0.09, 0.9), (7, 3, 3)),  # a factor of 10 apart: 44, 4.4, ...
        ((0.05,) * 20, (7,) * 20),
    ],
)
def test_the_number_of_sizes_is_odd_and_costs_at_most_a_share(
    shares: tuple[float, ...], counts: tuple[int, ...]
) -> None:
    sizing = Sizing(GridSection(), 1e20)
    assert tuple(len(sizing.sizes(LADDER, share * 1e20, 32_000, [])) for share in shares) == counts
    assert [sizing.early(share * 1e20) for share in shares] == [3 if n > 3 else 0 for n in counts]


def test_a_window_is_thinned_to_its_ends_its_middle_and_others_evenly() -> None:
    def names(count: int, centre: float, window: list[int]) -> list[int]:
        return [s.params for s in spread_evenly([size(n) for n in window], centre, count)]

    assert names(3, 8.1, [1, 2, 4, 8, 16, 32, 64]) == [1, 8, 64]
    assert names(5, 8.1, [1, 2, 4, 8, 16, 32, 64]) == [1, 4, 8, 16, 64]
    assert names(3, 16, [4, 8, 16]) == [4, 8, 16]
    assert names(3, 1, [4, 8, 16, 32]) == [4, 8, 32]  # the model ends above the optimum: three sizes all the same


def valley_of(loss: Callable[[np.ndarray], np.ndarray], noise: float) -> Valley:
    """Seven sizes a factor of 2 apart; the loss is a function of log10 of N over that of the fourth.

    The noise, `noise` by the 2 degrees of freedom that a quartic leaves, is a polynomial of degree 6 that none follows.
    """
    sizes = LADDER[:7]
    z = np.log10([s.params / sizes[3].params for s in sizes])
    scatter = np.array([1, -6, 15, -20, 15, -6, 1]) / math.sqrt(924 / 2)  # 924: the sum of squares
    losses = loss(z) + noise * scatter
    return valley_through(1e18, sizes, [10**10 // s.params for s in sizes], losses.tolist())


def test_noise_widens_the_window_and_what_a_parabola_cannot_follow_narrows_it() -> None:
    def chosen(loss: Callable[[np.ndarray], np.ndarray], noise: float) -> int:
        return half_window([valley_of(loss, noise)] * 2, 2)

    def parabola(z: np.ndarray) -> np.ndarray:
        return 3 + 0.3 * z**2

    narrow, wide = STEPS
    assert [chosen(parabola, noise) for noise in (0.01, 0.05)] == [wide, wide]
    assert [chosen(lambda z: parabola(z) + 0.09 * z**3, noise) for noise in (0.001, 0.01, 0.05)] == [
        narrow,
        narrow,
        wide,
    ]
    assert [chosen(lambda z: parabola(z) + 0.5 * z**4, noise) for noise in (0.001, 0.01, 0.05)] == [
        narrow,
        narrow,
        wide,
    ]
    # A valley of five sizes has one degree of freedom: nothing is known
    few = valley_through(1e18, LADDER[:5], [10**6] * 5, (3 + 0.3 * np.log10([4, 2, 1, 2, 4]) ** 2).tolist())
    assert half_window([few], 2) == half_window([], 2) == narrow and wide == 3


def test_a_window_that_is_given_is_taken_and_valleys_are_read_within_it() -> None:
    planner = planner_of(grid={"window": 9.0})
    plan, _ = run_in_rounds(planner, loss_in(world(noise=0.003)))
    low, middle, high = cells(plan, BUDGETS[-1])
    assert middle / low == pytest.approx(9, rel=0.2) and high / middle == pytest.approx(9, rel=0.2)
    assert plan.reach == pytest.approx(9 * 3**0.5)
    options = fit_options(planner.spec, plan.reach)
    assert (options.window, options.reach) == (None, plan.reach)
    asked = adaptive_spec(fit={"window": 7})
    assert (fit_options(asked, 5.0).window, fit_options(asked, 5.0).reach) == (7, None)
    assert fit_options(adaptive_spec()).window == 5  # before the window is decided


def test_a_sweep_of_an_earlier_version_goes_on_with_five_sizes_everywhere() -> None:
    find, measured = loss_in(world(noise=0.005)), Measurements(sizes=SIZES, data=DATA)
    plan = planner_of().plan()
    assert plan.constants.total_budget == sum(BUDGETS)
    old = {k: v for k, v in asdict(plan.constants).items() if k != "total_budget"}
    constants = value_of(SweepConstants, old)
    assert constants == replace(plan.constants, total_budget=None)
    earlier, _ = run_in_rounds(Planner(adaptive_spec(), measured, constants), find)
    stated, _ = run_in_rounds(planner_of(grid={"sizes": 5, "window": 4.0}), find)
    for one in (earlier, stated):
        assert [len(cells(one, c)) for c in BUDGETS] == [7, 5, 5, 5, 5] and one.reach is None
    assert [e.key for e in earlier.experiments] == [e.key for e in stated.experiments]


def test_a_budget_added_later_changes_no_other_and_has_three_sizes() -> None:
    find, measured = loss_in(world(noise=0.005)), Measurements(sizes=SIZES, data=DATA)
    plan, _ = run_in_rounds(planner_of(), find)
    wider, _ = run_in_rounds(Planner(adaptive_spec(budgets=[*BUDGETS, 3.16e19]), measured, plan.constants), find)
    assert all(cells(wider, c) == cells(plan, c) for c in BUDGETS) and len(cells(wider, 3.16e19)) == 3
    assert wider.constants == plan.constants and wider.reach == plan.reach


def test_a_dear_minimum_that_is_not_inside_gets_sizes_on_its_side() -> None:
    """The optimum of the largest budget is four times what the smaller ones predict."""
    where, inner = world("besiroglu"), loss_in(world("besiroglu"))

    def find(e: Experiment) -> Observation:
        if e.budget < BUDGETS[-1]:
            return inner(e)
        return Observation(loss=3 + 0.05 * math.log(e.params / (8 * where.surface.optimum(e.budget)[0])) ** 2)

    plan, _ = run_in_rounds(planner_of(), find)
    true = 8 * where.surface.optimum(BUDGETS[-1])[0]
    found = cells(plan, BUDGETS[-1])
    assert found[0] < true / 1.5 and true * 1.5 < found[-1] and 4 <= len(found) <= 6


def test_sizes_within_reach_of_the_vertex_are_used_and_three_at_least() -> None:
    params = np.array([1000.0 * 2.0**k for k in range(7)], dtype=np.float64)
    loss: Floats = 3 + 0.1 * np.log(params / 9000) ** 2
    assert within_reach(params, loss, np.ones(7), 4 * 2**0.5).tolist() == [False, True, True, True, True, True, False]
    loss[4] -= 0.1  # the lowest now, by noise: the vertex hardly moves
    assert int(np.argmin(loss)) == 4
    assert within_reach(params, loss, np.ones(7), 4 * 2**0.5).tolist() == [False, True, True, True, True, True, False]
    assert within_reach(params, loss, np.ones(7), 1.1).sum() == 3
    assert within_reach(params[:3], loss[:3], np.ones(3), 1.1).all()
    falling: Floats = 3 - 0.1 * np.log(params)
    assert within_reach(params, falling, np.ones(7), 2.5).tolist() == [False] * 4 + [True] * 3


def test_reach_and_window_are_two_answers_to_one_question() -> None:
    with pytest.raises(FitError, match="window = 5 and reach = 4 both choose sizes: give one of them"):
        FitOptions(window=5, reach=4.0)
    for grid, message in (
        ({"sizes": 2}, "grid.sizes: must be greater than or equal to 3"),
        ({"sizes": "few"}, "grid.sizes: must be a whole number or auto"),
        ({"window": 1.0}, "grid.window: must be greater than 1.2"),
        ({"window": "wide"}, "grid.window: must be a number or auto"),
    ):
        with pytest.raises(SpecError, match=message):
            adaptive_spec(grid=grid)
