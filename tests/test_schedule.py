"""When a sweep ends, and what it costs: schedules of known length, prices that add up."""

import json
from dataclasses import replace

import pytest

from flops_fit_ray.planning import Experiment, Rates, estimate_price, price_warnings, stated_rate
from flops_fit_ray.planning.simulation import simulate_sweep
from flops_fit_ray.planning.slots import choose_starts, lower_bound, own_flops, simulate, tails
from flops_fit_ray.storage.codec import value_of
from tests.worlds import BUDGETS, RULE, adaptive_spec, loss_in, planner_of, run_through, world


def some(*lengths: float) -> list[Experiment]:
    """Experiments that wait for nobody."""
    template = planner_of().plan().experiments[0].from_scratch()
    return [replace(template, key=str(i), flops=length, budget=length) for i, length in enumerate(lengths)]


def nothing(_: Experiment) -> float:
    """Evaluations cost nothing."""
    return 0.0


def chain_of(number: int, steps: int = 100) -> list[Experiment]:
    """Each twice the length of the one before, and begun at its trunk, which is 80 % of it."""
    found: list[Experiment] = []
    for e in some(*(2.0**i for i in range(number))):
        e = replace(e, steps=steps * 2 ** len(found), recipe=replace(e.recipe, warmup_steps=0))
        if found:
            e = replace(e, parent=found[-1].key, start_step=found[-1].trunk_step)
        found.append(e)
    return found


def test_longest_first() -> None:
    assert simulate(some(3, 3, 2, 2, 2), 2, own_flops).makespan == 7  # the textbook's case: 6 would be possible
    assert simulate(some(1, 1, 1, 1, 4), 2, own_flops).makespan == 4
    assert simulate(some(5), 8, own_flops).makespan == 5
    assert lower_bound(some(3, 3, 2, 2, 2), 2, own_flops) == 6


def test_a_chain_takes_its_trunk_and_its_last_decay() -> None:
    chain = chain_of(4)
    own = [1, 2 - 0.8, 4 - 1.6, 8 - 3.2]
    assert simulate(chain, 1, own_flops).makespan == pytest.approx(sum(own))
    # A child begins where its parent's trunk ends, while the parent decays on another slot
    assert simulate(chain, 2, own_flops).makespan == pytest.approx(8)
    assert tails(chain, own_flops)["0"] == lower_bound(chain, 4, own_flops) == pytest.approx(8)


def test_starting_from_scratch_where_that_ends_earlier() -> None:
    several = [
        replace(e, key=f"{e.key}-{i}", parent=None if e.parent is None else f"{e.parent}-{i}")
        for i in range(3)
        for e in chain_of(3)
    ]
    few, starts, taken = choose_starts(several, 2, own_flops, "auto")
    assert taken == "trunk" and list(few) == several
    assert [s.name for s in starts] == ["trunk", "scratch", "mixed"]
    assert starts[0].flops <= starts[2].flops <= starts[1].flops == 21
    # Two children of one trunk on two slots: the second would leave a slot idle
    long = chain_of(2)
    sibling = replace(long[1], key="2", steps=110, flops=1.1, start_step=80)
    _, starts, taken = choose_starts([*long, sibling], 8, own_flops, "auto")
    spans = {s.name: s.makespan for s in starts}
    assert spans["scratch"] == 2 and spans["mixed"] <= spans["trunk"] == pytest.approx(2)
    assert choose_starts([*long, sibling], 8, own_flops, "scratch")[0][1].parent is None


def test_impatience_pays_only_in_flops_and_only_where_it_ends_earlier() -> None:
    # The parent's trunk ends at 8, and the child would end at 8 + 6.6; from scratch it ends at 11
    chain = chain_of(2)
    slow = [replace(chain[0], flops=10.0), replace(chain[1], flops=11.0)]
    plan, starts, taken = choose_starts(slow, 2, own_flops, "auto")
    assert taken == "mixed" and plan[1].parent is None  # the first of equals
    spans = {s.name: s.makespan for s in starts}
    assert spans["mixed"] == spans["scratch"] == pytest.approx(11) and spans["trunk"] == pytest.approx(14.6)
    assert starts[2].flops == pytest.approx(starts[0].flops + 4.4)
    assert choose_starts(slow, 1, own_flops, "auto")[2] == "trunk"  # one slot is never idle
    waits = chain_of(2)  # ends at 2 either way
    assert simulate(waits, 8, own_flops, impatient=True).scratch == frozenset()
    assert simulate(slow, 8, own_flops, impatient=True).scratch == {"1"}


@pytest.mark.parametrize(("budgets", "sizes"), [(5, 7), (7, 9)])
@pytest.mark.parametrize("slots", range(2, 17, 2))
def test_grids_end_near_their_lower_bound(budgets: int, sizes: int, slots: int) -> None:
    flops = [1e17 * 10 ** (k / 2) for k in range(budgets)]
    spec = adaptive_spec(
        budgets=[{"flops": c, "sizes": [round(1e4 * 2 ** ((40 + 4 * k) / 4)) for k in range(sizes)]} for c in flops],  # type: ignore[misc] # mappings are budgets too
        train={"batch_size": 500, "lr": RULE},
    )
    from tests.worlds import SIZES

    planner = planner_of(spec, SIZES)
    plan = planner.plan()
    assert len(plan.experiments) == budgets * sizes
    chosen, _, _ = choose_starts(plan.experiments, slots, own_flops, "auto")
    # 9 sizes of one budget on 8 slots is the bad corner: one longest experiment more than slots
    limit = 2.0 if slots < sizes < 2 * slots else 1.35
    assert simulate(chosen, slots, own_flops).makespan <= limit * lower_bound(chosen, slots, own_flops)


def test_a_simulated_sweep_is_the_planners() -> None:
    planner = planner_of()
    plan, observed = run_through(planner, loss_in(world()))
    for slots in (1, 4, 64):
        simulated = simulate_sweep(planner, world(), slots, own_flops)
        assert {e.key for e in simulated.plan.experiments} == {e.key for e in plan.experiments}
        assert simulated.observed == observed
        assert simulated.bound <= simulated.makespan
        assert simulated.work >= plan.flops * (1 - 1e-12)
    assert simulate_sweep(planner, world(), 1, own_flops).makespan == pytest.approx(plan.flops)


def test_a_price_adds_up() -> None:
    planner = planner_of()
    plan = planner.plan()
    rates = stated_rate(1e15, 4)
    price = estimate_price(
        plan.expected, nothing, forecast=len(plan.forecast), slots=4, rates=rates, money_per_hour=3.0
    )
    assert (price.experiments, price.forecast) == (len(plan.expected), len(plan.forecast))
    assert price.flops == pytest.approx(plan.flops) and price.flops_separate == sum(e.flops for e in plan.expected)
    assert price.flops_full_grid == 7 * sum(BUDGETS)
    assert price.device_seconds == pytest.approx(price.flops / 1e15)
    assert price.wall_seconds is not None and price.device_seconds is not None
    assert price.device_seconds / 4 <= price.wall_seconds <= price.device_seconds
    assert price.money == pytest.approx(3.0 * 4 * price.wall_seconds / 3600)
    assert json.loads(json.dumps(price.to_json()))["starts"][0]["name"] == "trunk"
    assert estimate_price(plan.expected, nothing).wall_seconds is None
    assert estimate_price([], nothing).flops == 0


def test_one_longest_experiment_more_than_slots_is_warned_of() -> None:
    rates = stated_rate(1.0, 2)
    # ends at 8, and the work alone would at 6
    (warning,) = price_warnings(estimate_price(some(4, 4, 4), nothing, rates=rates))
    assert warning.startswith("on 2 slots the sweep takes 33 % longer")
    assert "one more long experiment than slots" in warning
    assert price_warnings(estimate_price(some(4, 4, 4, 4), nothing, rates=rates)) == []
    # 12 for 11.5 is within a tenth
    assert price_warnings(estimate_price(some(10, 10, 2, 1), nothing, rates=rates)) == []
    assert price_warnings(estimate_price(some(4, 4, 4), nothing)) == []  # no seconds without a rate


def test_rates_between_and_beyond_the_measured_sizes() -> None:
    (e,) = some(1e6)
    e = replace(e, steps=100)  # 1e4 FLOPs a step
    measured = Rates(step_seconds={"a": (1e3, 1e-3), "b": (1e5, 1e-1)}, fixed_seconds=2.0)
    assert measured.seconds_per_step(e) == pytest.approx(1e-2)
    assert measured.seconds(e, 5e5) == pytest.approx(2 + 1.0 + 0.5)  # evaluations as fast as the training, FLOP by FLOP
    half = replace(e, parent="a", start_step=50)  # evaluates as often at its end as from scratch, and builds its model
    assert measured.seconds(half, 5e5) == pytest.approx(2 + 0.5 + 0.5)
    assert measured.seconds_per_step(replace(e, flops=1e8)) == pytest.approx(1.0)
    bent = Rates(step_seconds={"a": (1e3, 1e-2), "b": (1e4, 1e-2), "c": (1e5, 1e-1)})
    per_step = {1e2: 1e-2, 2e3: 1e-2, 1e4: 1e-2, 2e4: 2e-2, 1e6: 1.0}  # flat up to b, then proportional
    for flops, seconds in per_step.items():
        assert bent.seconds_per_step(replace(e, flops=100 * flops)) == pytest.approx(seconds), flops
    twins = Rates(step_seconds={"a": (1e4, 1e-2), "b": (1e4, 2e-2)})  # two sizes with steps of one cost
    assert twins.seconds_per_step(e) == pytest.approx(1e-2)
    assert value_of(Rates, json.loads(json.dumps(measured.to_json()))) == measured
    with pytest.raises(ValueError, match="at least 1 item"):
        value_of(Rates, {"step_seconds": {}})
