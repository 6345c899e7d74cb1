"""A minimum that the losses do not show is no optimum, though the curve has it between the sizes that were run."""

from dataclasses import replace

import numpy as np

from flops_fit_ray.analysis import FitOptions, fit_minima, fit_sweep
from tests.surfaces import BESIROGLU, BUDGETS, joined, points_from, sweep_on

QUICK = FitOptions(draws=0)


def test_a_curve_that_falls_below_zero_is_no_valley() -> None:
    """Losses that fall by 2.6 from size to size, as of models far too small, and four valleys."""
    n = 2000.0 * 2.0 ** np.arange(6)
    loss = 6000 * 2.6 ** np.arange(5, -1, -1)
    cliff = points_from(np.full(6, 1e16), np.full(6, 1e16), n, 1e16 / 6 / n, loss)
    fit = fit_minima(joined(cliff, sweep_on(BESIROGLU, BUDGETS[1:], noise=0.003)), QUICK)
    assert [v.status for v in fit.valleys] == ["edge"] + ["interior"] * 4
    assert "falls below 0" in fit.valleys[0].reason and "add larger sizes" in fit.valleys[0].reason
    assert fit.method.params_opt is not None  # one such budget took the law from all


def test_a_curve_that_dips_where_nothing_was_run_is_no_valley() -> None:
    n = np.array([1e7, 1.02e7, 1.04e7, 1e9, 1.02e9, 1.04e9])
    loss = np.array([3.0, 2.99, 2.98, 2.97, 2.98, 2.99])
    gap = points_from(np.full(6, 1e18), np.full(6, 1e18), n, 1e18 / 6 / n, loss)
    (valley,) = fit_minima(gap, QUICK).valleys
    assert valley.status == "edge" and "further below the lowest loss than all losses span" in valley.reason


def test_a_minimum_that_noise_leaves_open_by_more_than_the_sizes_is_no_optimum() -> None:
    """A narrow valley beside four wide ones; its standard error is known from the curvature and the noise."""
    wide = sweep_on(BESIROGLU, BUDGETS[:4], noise=0.01)
    left_open = 0
    for seed in range(10):
        last = fit_minima(
            joined(wide, sweep_on(BESIROGLU, BUDGETS[4:], window=1.5, noise=0.01, seed=seed)), QUICK
        ).valleys[4]
        left_open += last.status == "concave" and "noise leaves N_opt open by x/÷" in last.reason
        assert last.status in ("interior", "concave", "edge")
    assert left_open >= 3
    exact = fit_minima(joined(wide, sweep_on(BESIROGLU, BUDGETS[4:], window=4, noise=0.01)), QUICK).valleys
    assert [v.status for v in exact] == ["interior"] * 5


def test_a_valley_without_an_optimum_is_said_with_its_reason() -> None:
    points = sweep_on(BESIROGLU, BUDGETS, noise=0.003)
    high = replace(points, loss=points.loss * np.where(points.budget == BUDGETS[0], 1e5, 1.0))
    assert fit_minima(high, QUICK).valleys[0].status == "interior"  # a scale of the loss is no fault
    narrow = sweep_on(BESIROGLU, BUDGETS[4:], window=1.2, noise=0.003, seed=1)
    fit = fit_sweep(joined(sweep_on(BESIROGLU, BUDGETS[:4], noise=0.003), narrow), replace(QUICK, method="valley"))
    last = fit.valleys[4]
    assert last.status != "interior"
    assert any(f.code == f"valley_{last.status}" and last.reason in f.message for f in fit.warnings)
