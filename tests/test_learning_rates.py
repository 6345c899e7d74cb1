"""Best learning rates as far as probes tell them: their law comes back, and intervals of N_opt hold what is open."""

import math
from dataclasses import replace

import numpy as np
import pytest

from flops_fit_ray.analysis import (
    FitOptions,
    Points,
    analyse,
    analysis_to_json,
    fit_minima,
    fit_sweep,
    rate_floor,
    rate_part,
)
from flops_fit_ray.analysis._valley_minima import likely_excess
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.learning_rates import (
    KAPPA,
    STEEPER,
    BestRates,
    TriedRates,
    best_rates,
    cost_of_rate,
    tried_rates,
)
from flops_fit_ray.planning.loss_surfaces import SURFACES
from flops_fit_ray.planning.simulation import lr_penalty, simulate_sweep
from flops_fit_ray.planning.slots import own_flops
from flops_fit_ray.sweep.simulate import fit_simulated
from tests.surfaces import BUDGETS, SYMMETRIC, optimum, sweep_on
from tests.worlds import adaptive_spec, planner_of, world

TARGET = 10 * BUDGETS[-1]


def best(n: Floats, d: Floats) -> Floats:
    return 1e-3 * (n / 1e8) ** -0.4 * (d / 1e9) ** -0.1


def cost(lr: Floats, n: Floats, d: Floats) -> Floats:
    """Twice the losses of Step Law: 0.038 nats for twice the best rate, 0.014 for half of it."""
    return np.array([2 * lr_penalty(float(ratio)) for ratio in lr / best(n, d)])


def taken(n: Floats) -> Floats:
    """The rates of a sweep, which fall too slowly."""
    return np.asarray(1e-3 * (n / 1e8) ** -0.2)


def groups(side: int, span: float = 10.0, scale: float = 1.0) -> TriedRates:
    """Rates tried at side² places within a factor of `span`, without noise."""
    around = np.geomspace(1 / span, span, side)
    sizes, tokens = np.meshgrid(1e8 * around, 1e10 * around)
    n, d = (np.repeat(a.ravel(), 4) for a in (sizes, tokens))
    lr = 0.8 * best(n, d) * np.tile([0.5, 1.0, 2.0, 4.0], side**2)
    tried = tried_rates(n, d, lr, scale * (3 + cost(lr, n, d)))
    assert tried is not None
    return tried


def swept(tried: TriedRates | None, sizes: int = 7) -> Points:
    """A sweep of a symmetric surface whose rates raise its losses."""
    points = sweep_on(SYMMETRIC, BUDGETS, sizes=sizes, noise=0.001, seed=1)
    n, d, lr = points.params, points.tokens, taken(points.params)
    return replace(points, loss=points.loss + cost(lr, n, d), lr=lr, tried=tried)


def test_runs_of_one_size_and_tokens_at_three_rates_are_a_group() -> None:
    rows = [
        (1e8, 2e9, 4e-3, 3.4), (1e8, 2e9, 1e-3, 3.0), (1e8, 2e9, 2e-3, 3.1), (1e8, 2e9, 5e-4, 3.2),
        (1e8, 2e9, 1e-3, 3.04),  # a seed: the mean is 3.02
        (1e8, 9e9, 1e-3, 2.8), (1e8, 9e9, 2e-3, 2.9),  # two rates tell no curve
        (3e8, 2e9, 1e-4, 2.0), (3e8, 2e9, 2e-4, 2.1), (3e8, 2e9, 4e-4, 2.2), (3e8, 2e9, 8e-4, 2.3),
    ]  # fmt: skip
    tried = tried_rates(*np.array(rows).T)
    assert tried is not None
    assert tried.params.tolist() == [1e8, 3e8] and tried.tokens.tolist() == [2e9, 2e9]
    # Within a factor of four of the best rate; the second group lacks a fourth
    np.testing.assert_allclose(np.exp(tried.log_lr), [[5e-4, 1e-3, 2e-3, 4e-3], [1e-4, 2e-4, 4e-4, 1.0]])
    np.testing.assert_allclose(tried.loss, [[3.2, 3.02, 3.1, 3.4], [2.0, 2.1, 2.2, np.nan]])
    assert tried_rates(*np.array(rows[5:7]).T) is None
    far = tried_rates(*np.array([(1e8, 1e9, 10.0**-k, 3.0 + k) for k in range(5)]).T)
    assert far is not None and np.exp(far.log_lr[0]) == pytest.approx([0.01, 0.1, 1.0])  # three, however far


@pytest.mark.parametrize(("ratio", "nats"), [(0.25, 0.028), (0.5, 0.007), (1.0, 0.0), (2.0, 0.019), (4.0, 0.0965)])
def test_the_cost_of_a_rate_has_the_shape_of_step_law(ratio: float, nats: float) -> None:
    steeper, kappa = np.array(STEEPER), KAPPA * 2.6
    assert kappa * cost_of_rate(np.log([ratio]), steeper)[0] == pytest.approx(nats, abs=0.003)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_the_law_of_the_best_rates_comes_back_whatever_the_unit_of_the_loss(scale: float) -> None:
    found = best_rates(groups(5, scale=scale), sigma=1e-4 * scale)
    _, p, q = found.probability @ found.mean
    assert p == pytest.approx(-0.4, abs=0.01) and q == pytest.approx(-0.1, abs=0.01)
    # What runs at 3 and at 0.6 times the best rate cost: 0.113 and 0.0076 nats
    n, d = np.full(2, 1e8), np.full(2, 1e10)
    costs = found.excess(n, d, best(n, d) * [3, 0.6], 4000, seed=0)
    assert costs.shape == (4000, 2)
    assert costs.mean(axis=0) / scale == pytest.approx(cost(best(n, d) * [3, 0.6], n, d), rel=0.1)
    assert "best rates ~ N^-0.40·D^-0.10" in found.words


def test_few_noisy_probes_leave_the_rates_of_other_sizes_open() -> None:
    tried, n = groups(2, span=2), np.array([1e8, 1e9, 1e10])
    costs = best_rates(tried, sigma=0.01).excess(n, 100 * n, best(n, 100 * n), 2000, seed=0)
    middle, above, far = np.median(costs, axis=0)
    assert far > 2 * above > 4 * middle
    # Without noise kappa is known, with much its prior is all there is
    known, unknown = (spread_of_kappa(best_rates(tried, sigma)) for sigma in (1e-4, 0.3))
    assert known < 0.3 < 0.7 < unknown < 1.1


def spread_of_kappa(found: BestRates) -> float:
    log = np.log(found.kappa)
    return float(np.sqrt(found.probability @ (log - found.probability @ log) ** 2))


def test_the_interval_holds_the_truth_where_wrong_rates_move_all_minima() -> None:
    options, true = FitOptions(draws=500), optimum(SYMMETRIC, TARGET)[0]
    blind, few, many = (fit_minima(swept(tried), options).method for tried in (None, groups(2, span=2), groups(5)))
    laws = [method.params_opt for method in (blind, few, many)]
    points = [None if law is None else law.at(TARGET) for law in laws]
    assert points[0] == points[1] == points[2] and points[0] is not None  # the losses are what they are
    assert points[0] < 0.9 * true
    within = [None if law is None else law.interval(TARGET, 0.95) for law in laws]
    assert within[0] is not None and within[1] is not None and within[2] is not None
    assert not within[0].holds(true)
    assert within[1].holds(true) and within[2].holds(true)
    assert within[1].factor > within[2].factor  # the better the rates are known the narrower
    assert within[2].low > points[0]  # and where they are known to be wrong the interval lies where the truth is
    assert many.loss_opt is not None and blind.loss_opt is not None
    held = [law.interval(BUDGETS[-1], 0.95) for law in (blind.loss_opt, many.loss_opt)]
    assert [one is not None and one.holds(optimum(SYMMETRIC, BUDGETS[-1])[2]) for one in held] == [False, True]


def test_rates_that_are_known_to_be_right_widen_nothing() -> None:
    points = sweep_on(SYMMETRIC, BUDGETS, noise=0.003, seed=2)
    known = replace(points, lr=best(points.params, points.tokens), tried=groups(8))
    without, with_rates = (fit_minima(p, FitOptions(draws=500)).method.params_opt for p in (points, known))
    assert without is not None and with_rates is not None
    widths = [law.interval(TARGET, 0.95) for law in (without, with_rates)]
    assert widths[0] is not None and widths[1] is not None
    assert math.log(widths[1].factor) < 1.15 * math.log(widths[0].factor)


def test_the_surface_and_the_next_runs_hold_it_too() -> None:
    fit = fit_sweep(swept(groups(2, span=2), sizes=4), FitOptions(draws=60))
    assert fit.with_sure_rates is not None and fit.with_sure_rates.with_sure_rates is None
    for name in ("valley", "surface_huber", "surface_squared"):
        laws = [one.methods[name].params_opt for one in (fit, fit.with_sure_rates)]
        factors = [None if law is None else law.known_within(TARGET, 0.95) for law in laws]
        assert factors[0] is not None and factors[1] is not None and factors[0] > factors[1]
        floor = rate_floor(fit, TARGET, name)
        assert math.hypot(floor, math.log(factors[1])) == pytest.approx(math.log(factors[0]))
    made = analyse(fit)
    assert made.rate_part is not None and made.rate_part.factor > made.rate_part.factor_with_sure_rates > 1
    assert analysis_to_json(made)["learning_rates"] == made.rate_part.to_json()
    assert "learning_rates" in {flag.code for flag in made.warnings}
    assert rate_part(fit.with_sure_rates, TARGET) is None
    none = replace(made.rate_part, factor=math.inf)
    assert none.flag.severity == "warning" and "without an interval, which would be x/÷1." in none.words


def test_a_sweep_that_probes_its_rates_has_them_in_its_interval() -> None:
    spec = adaptive_spec(train={"batch_size": 500})
    run = simulate_sweep(planner_of(spec), world("besiroglu", noise=0.003), 8, own_flops)
    low = fit_simulated(spec, run, draws=100)
    assert low.rates is not None
    law = low.method.params_opt
    within = None if law is None else law.interval(1e20, 0.95)
    assert within is not None and within.holds(SURFACES["besiroglu"].optimum(1e20)[0])
    given = adaptive_spec()  # a rate of the user's own is the best
    run = replace(run, plan=replace(run.plan, lr=None))
    assert fit_simulated(given, run, draws=100).rates is None


def test_costs_that_would_leave_minima_off_any_law_are_hardly_drawn() -> None:
    points = sweep_on(SYMMETRIC, BUDGETS, noise=0.001, seed=1)
    low = fit_minima(points, FitOptions(draws=0))
    assert low.errors is not None
    tilt = np.log(points.params / optimum(SYMMETRIC, BUDGETS[2])[0])
    # Nothing, a tilt of one budget that moves its minimum by 0.04 decades, and what leaves no valley at all
    kink = 0.01 * np.where(points.budget == BUDGETS[2], tilt, 0.0)
    concave = np.where(points.budget == BUDGETS[2], 10 * tilt**2, 0.0)
    drawn = likely_excess(np.repeat([0 * tilt, kink, concave], 100, axis=0), low.valleys, low.errors, seed=0)
    assert drawn.shape == (300, len(points))
    nobody = likely_excess(drawn, [replace(v, status="edge") for v in low.valleys], low.errors, seed=0)
    assert np.array_equal(nobody, drawn)  # without minima nothing tells costs apart
    nothing, kinked = (int((drawn == one).all(axis=1).sum()) for one in (0 * tilt, kink))
    assert nothing + kinked == 300 and kinked < nothing / 4
