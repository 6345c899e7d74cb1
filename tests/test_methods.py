"""Curves, windows, weights, the envelope, and the noise that intervals are made of."""

import math
from dataclasses import replace

import numpy as np
import pytest

from flops_fit_ray.analysis import FitOptions, Points, fit_minima, fit_sweep
from flops_fit_ray.analysis._law import fit_power_law
from flops_fit_ray.analysis.noise import Noise, draw_scatter, group_noise, seed_noise
from flops_fit_ray.analysis.valley import Akima, fit_akima, fit_polynomial, fit_valley
from flops_fit_ray.errors import FitError
from tests.surfaces import BESIROGLU, BUDGETS, HOFFMANN, SYMMETRIC, joined, optimum, points_from, sweep_on

QUICK = FitOptions(draws=0)


def test_a_cubic_comes_back_with_its_minimum() -> None:
    x = np.linspace(6, 9, 9)
    loss = 0.05 * (x - 7.2) ** 3 + 0.3 * (x - 7.2) ** 2 + 2.5  # its minimum is at 7.2
    curve = fit_polynomial(10**x, loss, np.ones(9), degree=3)
    assert curve.vertex == pytest.approx(7.2, abs=1e-9)
    assert curve.minimum == pytest.approx(2.5, abs=1e-9)
    assert np.abs(curve.residuals).max() < 1e-12
    assert curve.num_coefficients == 4
    parabola = fit_polynomial(10**x, 0.3 * (x - 7.2) ** 2 + 2.5, np.ones(9))
    assert (parabola.vertex, parabola.minimum) == pytest.approx((7.2, 2.5), abs=1e-9)
    assert math.isnan(fit_polynomial(10**x, -((x - 7.2) ** 2), np.ones(9)).vertex)


def test_akima_goes_through_the_points_and_finds_their_lowest() -> None:
    x = np.linspace(6, 9, 13)
    loss = 0.3 * (x - 7.37) ** 2 + 2.5
    curve = fit_akima(10**x, loss)
    assert np.allclose(curve.at(x), loss)
    at, value = curve.minima(np.zeros((1, 13)))
    assert at[0] == pytest.approx(7.37, abs=0.01) and value[0] == pytest.approx(2.5, abs=1e-3)
    assert np.isnan(fit_akima(10**x, x).minima(np.zeros((1, 13)))[0][0])  # an end is no minimum
    twice = fit_akima(np.repeat(10**x, 2), np.repeat(loss, 2) + np.tile([-0.1, 0.1], 13))
    assert np.allclose(twice.at(x), loss)


@pytest.mark.parametrize("curve", ["cubic", "akima"])
def test_other_curves_find_the_optimum_of_a_wide_sweep(curve: str) -> None:
    fit = fit_sweep(sweep_on(HOFFMANN, BUDGETS, sizes=15), FitOptions(draws=0, curve=curve))  # type: ignore[arg-type]
    for valley in fit.valleys:
        assert valley.params_opt == pytest.approx(optimum(HOFFMANN, valley.budget)[0], rel=0.02)
    few = fit_sweep(sweep_on(HOFFMANN, BUDGETS, sizes=3), FitOptions(draws=0, curve=curve))  # type: ignore[arg-type]
    assert {v.status for v in few.valleys} == {"too_few"}


def test_akima_has_intervals_from_the_scatter_about_a_parabola() -> None:
    fit = fit_sweep(sweep_on(SYMMETRIC, BUDGETS, sizes=9, noise=0.002), FitOptions(draws=300, curve="akima"))
    assert isinstance(fit.valleys[0].over_params, Akima)
    assert fit.params_opt is not None
    interval = fit.params_opt.exponent_interval(0.95)
    assert interval is not None and interval.holds(0.5)


def test_a_window_narrows_the_known_bias() -> None:
    wide = sweep_on(HOFFMANN, BUDGETS, window=16, sizes=15)
    truth = optimum(HOFFMANN, 1e20)[1]
    errors = []
    for window in (None, 5):
        fit = fit_sweep(wide, replace(QUICK, window=window))
        assert fit.tokens_opt is not None
        errors.append(abs(fit.tokens_opt.at(1e20) / truth - 1))
        assert {int(v.used.sum()) for v in fit.valleys} == {15 if window is None else 5}
    assert errors[1] < 0.2 * errors[0]


def test_weights_say_which_point_counts() -> None:
    points = sweep_on(SYMMETRIC, BUDGETS)
    loss = points.loss.copy()
    loss[1] += 0.2
    weight = np.ones(len(points))
    weight[1] = 1e-12
    quick = replace(QUICK, law_weights="equal")
    bad = fit_sweep(replace(points, loss=loss), quick)
    spared = fit_sweep(replace(points, loss=loss, weight=weight), quick)
    assert bad.params_opt is not None and spared.params_opt is not None
    without = fit_sweep(points.pick(np.arange(len(points)) != 1), quick)
    assert without.params_opt is not None
    assert abs(bad.params_opt.exponent - without.params_opt.exponent) > 0.01
    assert spared.params_opt.exponent == pytest.approx(without.params_opt.exponent, abs=1e-4)


def test_precise_minima_weigh_more_where_that_is_wanted() -> None:
    rng = np.random.default_rng(0)
    exact = sweep_on(SYMMETRIC, BUDGETS, sizes=15)
    sigma = np.where(exact.budget == BUDGETS[0], 0.01, 0.0005)  # the smallest budget is noisy
    errors = np.zeros((2, 20))
    for i in range(20):
        points = replace(exact, loss=exact.loss + sigma * rng.standard_normal(len(exact)))
        for j, weights in enumerate(("equal", "precision")):
            options = FitOptions(draws=200, law_weights=weights)  # type: ignore[arg-type]
            law = fit_minima(points, options).method.params_opt
            assert law is not None
            errors[j, i] = law.exponent - 0.5
    rms = np.sqrt(np.mean(errors**2, axis=1))
    assert rms[1] < 0.5 * rms[0], rms


def test_a_power_law_is_fitted_in_log_log_with_its_textbook_error() -> None:
    budget = np.array([1e18, 1e19, 1e20, 1e21])
    value = 3.0 * budget**0.5 * np.array([1.1, 0.9, 0.9, 1.1])
    law = fit_power_law(budget, value)
    x, y = np.log10(budget), np.log10(value)
    slope, intercept = np.polyfit(x, y, 1)
    assert (law.exponent, law.log10_coefficient) == pytest.approx((slope, intercept), abs=1e-10)
    residuals = y - slope * x - intercept
    stderr = math.sqrt(residuals @ residuals / 2 / ((x - x.mean()) @ (x - x.mean())))
    assert law.stderr_ols == pytest.approx(stderr, rel=1e-9)
    with pytest.raises(FitError, match="optima at 2 or more different budgets"):
        fit_power_law(np.array([1e18, 1e18]), np.array([1.0, 2.0]))


def curves_of(surface: tuple[float, float, float, float, float], sizes: int = 25) -> Points:
    """Training curves without a schedule: each run passes through L(N, D) at every D."""
    e, a, b, alpha, beta = surface
    n = np.geomspace(1e7, 3e9, sizes)
    d = np.geomspace(1e8, 3e11, 80)
    params, tokens = np.repeat(n, 80), np.tile(d, sizes)
    loss = e + a / params**alpha + b / tokens**beta
    flops = 6 * params * tokens
    return points_from(flops, flops, params, tokens, loss, run=np.repeat(np.arange(sizes), 80))


def test_the_envelope_of_ideal_curves_gives_the_exponent_and_says_its_caveat() -> None:
    fit = fit_sweep(sweep_on(BESIROGLU, BUDGETS), FitOptions(draws=100), curves_of(BESIROGLU, sizes=60))
    envelope = fit.methods["envelope"]
    assert envelope.params_opt is not None
    alpha, beta = BESIROGLU[3:]
    assert envelope.params_opt.exponent == pytest.approx(beta / (alpha + beta), abs=0.02)
    for law in (envelope.params_opt, envelope.tokens_opt, envelope.loss_opt):
        assert law is not None and (interval := law.interval(1e19, 0.95)) is not None
        assert interval.holds(law.at(1e19)) and interval.factor < 2
    assert "from the middle of learning rate schedules" in envelope.reason
    assert "envelope_fitted" in {flag.code for flag in fit.warnings}
    assert fit.default == "valley"
    assert "envelope" not in fit_sweep(sweep_on(BESIROGLU, BUDGETS), QUICK).methods


def test_noise_of_budgets_is_shared_as_far_as_they_look_alike() -> None:
    rng = np.random.default_rng(0)
    none = [np.zeros(40)] * 8
    alike = [rng.standard_normal(40) for _ in range(8)]
    apart = [2.0**i * r for i, r in enumerate(alike)]
    runs = np.arange(8 * 40)
    same, different = (group_noise(r, [37] * 8, none, runs) for r in (alike, apart))
    assert same is not None and different is not None
    assert np.ptp(same.sigma) < 0.2 * same.pooled
    for i, sigma in enumerate(different.sigma):
        assert sigma == pytest.approx(math.sqrt(apart[i] @ apart[i] / 37), rel=0.2)
    assert group_noise([np.zeros(3)], [0], [np.ones(3)], np.arange(3)) is None
    with_exact = group_noise([*apart, np.zeros(40)], [37] * 9, [*none, np.zeros(40)], np.arange(9 * 40))
    assert with_exact is not None and np.isfinite(with_exact.sigma).all()  # no scatter at all has no logarithm


def test_a_budget_that_shows_no_noise_has_that_of_the_others_in_proportion_where_losses_fall_to_0() -> None:
    """Residuals of 3 % of the loss at two budgets, and three sizes at a third, through which a parabola goes."""
    unit = np.array([1, -1, 1, -1, 1, -1, 1.0])
    levels, none = [1.0, 0.1, 0.01], [np.zeros(7), np.zeros(7), np.ones(3)]
    residuals = [0.03 * level * unit for level in levels[:2]] + [np.zeros(3)]
    noise = group_noise(residuals, [7, 7, 0], none, np.arange(17), levels)
    assert noise is not None and noise.sigma[2] == pytest.approx(0.03 * 0.01) and noise.sigma[0] == noise.pooled
    equal = group_noise([0.03 * unit, 0.03 * unit, np.zeros(3)], [7, 7, 0], none, np.arange(17), levels)
    assert equal is not None and equal.sigma == pytest.approx([0.03] * 3)  # noise of its own, as of text


def test_points_of_one_run_share_a_part_of_their_noise() -> None:
    rng = np.random.default_rng(0)
    runs = np.tile(np.arange(200), 5)
    for shared in (0.0, 0.5, 0.9):
        common = rng.standard_normal(200)[runs] * math.sqrt(shared)
        residual = common + math.sqrt(1 - shared) * rng.standard_normal(1000)
        noise = group_noise(list(residual.reshape(5, 200)), [197] * 5, [np.full(200, 0.015)] * 5, runs)
        assert noise is not None and noise.shared == pytest.approx(shared, abs=0.08)


@pytest.mark.parametrize(
    ("residuals", "runs", "leverages", "shared"),
    [
        # Pair products 2 + 0 + 0 and 1 - 1 - 1 over 6 pairs, over the mean square 8/6: 1/8
        ([2, 1, 0, -1, -1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0], 1 / 8),
        ([1, 1, 0, -1, -1, 1], [0, 0, 0, 1, 1, 1], [0.75, 0, 0, 0, 0, 0], 1 / 8),  # the same once standardised
        ([2, 1, 0, -1, -1, 1], [0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 0], 0),  # 4 pairs are too few to see it
        ([1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 2, 3, 4], [0] * 8, 1),  # products of 1 over a mean square of 1/2
        ([1, -1, 1, -1], [0, 0, 0, 0], [0] * 4, 0),  # products of -1/3
        ([0, 0, 0, 0], [0, 0, 0, 0], [0] * 4, 0),  # no scatter at all
    ],
)
def test_the_shared_part_by_hand(
    residuals: list[float], runs: list[int], leverages: list[float], shared: float
) -> None:
    noise = group_noise([np.array(residuals, dtype=float)], [4], [np.array(leverages, dtype=float)], np.array(runs))
    assert noise is not None and noise.shared == pytest.approx(shared, abs=1e-12)


def test_new_scatter_has_the_shared_part() -> None:
    """Two points of one run and one of another, of unequal sigma: correlations 0.4 and 0 (standard error 0.007)."""
    noise = Noise(sigma=np.array([0.1, 0.3]), df=np.array([1e9, 1e9]), shared=0.4, pooled=0.2, pooled_df=9)
    group, runs = np.array([0, 1, 1]), np.array([0, 0, 1])
    drawn = draw_scatter(np.random.default_rng(0), 20_000, noise, group, runs, 2)
    correlation = np.asarray(np.corrcoef(drawn.T))
    assert drawn.std(axis=0) == pytest.approx([0.1, 0.3, 0.3], rel=0.03)
    assert correlation[0, 1] == pytest.approx(0.4, abs=0.03)
    assert correlation[0, 2] == pytest.approx(0, abs=0.03) and correlation[1, 2] == pytest.approx(0, abs=0.03)


def test_shared_noise_widens_the_intervals() -> None:
    """Runs that err alike at every budget move all minima together: N_opt is less certain, though its slope is not."""
    rng = np.random.default_rng(2)
    points = sweep_on(SYMMETRIC, list(np.geomspace(1e18, 1e20, 10)), sizes=15)
    error = 0.01 * rng.standard_normal(15)
    noisy = replace(points, loss=points.loss + np.tile(error, 10) + 1e-4 * rng.standard_normal(len(points)))
    widths = []
    for run in (None, np.tile(np.arange(15), 10)):
        fit = fit_sweep(replace(noisy, run=run), FitOptions(draws=800))
        assert fit.params_opt is not None and fit.noise is not None
        interval = fit.params_opt.interval(1e19, 0.95)
        assert interval is not None
        widths.append(math.log(interval.factor))
    assert widths[1] > 1.5 * widths[0]


def test_seeds_measure_the_noise_where_curves_cannot() -> None:
    first = sweep_on(SYMMETRIC, BUDGETS, sizes=3, noise=0.01, seed=1)
    second = sweep_on(SYMMETRIC, BUDGETS, sizes=3, noise=0.01, seed=2)
    assert seed_noise(first) is None
    both = joined(first, second)
    seeds = seed_noise(both)
    assert seeds is not None and seeds.df == 15
    assert seeds.sigma == pytest.approx(0.01, rel=0.5)
    fit = fit_sweep(both, FitOptions(draws=300))
    assert fit.params_opt is not None and fit.params_opt.exponent_interval(0.95) is not None
    assert fit_sweep(first).params_opt.exponent_interval(0.95) is None  # type: ignore[union-attr]


def test_a_run_left_out_leaves_its_valley_a_verdict() -> None:
    points = sweep_on(SYMMETRIC, [1e18], sizes=3)
    keep = np.arange(2)
    valley = fit_valley(1e18, keep, points.flops[:2], points.params[:2], points.tokens[:2], points.loss[:2], np.ones(2))
    assert valley.status == "too_few" and "a valley needs at least 3" in valley.reason


def test_the_noise_of_an_interpolation_is_measured_about_it() -> None:
    """Wide asymmetric valleys are no parabolas: about those the noise would seem to be far more."""
    found = {"akima": np.zeros(20), "parabola": np.zeros(20)}
    for curve, values in found.items():
        for seed in range(20):
            points = sweep_on(HOFFMANN, BUDGETS, window=16, sizes=13, noise=0.005, seed=seed)
            noise = fit_minima(points, FitOptions(curve=curve, draws=0)).noise  # type: ignore[arg-type]
            assert noise is not None
            values[seed] = noise.pooled
    assert np.sqrt(np.mean(found["akima"] ** 2)) == pytest.approx(0.005, rel=0.1)
    assert found["parabola"].min() > 1.4 * 0.005
    seeds = joined(*[sweep_on(HOFFMANN, BUDGETS, noise=0.01, seed=seed) for seed in range(6)])
    noise = fit_minima(seeds, FitOptions(curve="akima", draws=0)).noise  # runs of one size tell most of it
    assert noise is not None and noise.pooled == pytest.approx(0.01, rel=0.12) and noise.pooled_df > 5 * 7 * 5
