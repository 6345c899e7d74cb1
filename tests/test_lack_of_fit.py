"""Laws that do not fit are named, and those that do are not."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from flops_fit_ray.analysis import FitOptions, Points, SweepFit, fit_sweep, fit_to_json, predict
from flops_fit_ray.sweep.validity import validity_card
from tests.surfaces import BESIROGLU, BUDGETS, HOFFMANN, joined, optimum, sweep_on

QUICK = FitOptions(draws=0)
World = Callable[[np.ndarray, np.ndarray], np.ndarray]  # N and D to loss


def kaplan(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Kaplan et al. 2020, equation 1.5."""
    return np.asarray(((6.4e13 / n) ** (0.076 / 0.103) + 1.8e13 / d) ** 0.103)


def crossed(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """An additive surface, and a term of both."""
    e, a, b, alpha, beta = BESIROGLU
    return np.asarray(e + a / n**alpha + b / d**beta + 3e4 * (n * d) ** -0.27)


def on(world: World, seed: int, noise: float = 0.003) -> Points:
    points = sweep_on(BESIROGLU, BUDGETS)
    scatter = noise * np.random.default_rng(seed).standard_normal(len(points))
    return replace(points, loss=world(points.params, points.tokens) + scatter)


def refused(fit: SweepFit, method: str, *names: str) -> bool:
    tests = [test for test in fit.lack_of_fit if test.method == method and (not names or test.name in names)]
    assert tests
    return any(test.verdict == "does_not_fit" for test in tests)


def test_the_right_law_is_not_refused() -> None:
    fits = [
        fit_sweep(sweep_on(surface, BUDGETS, noise=noise, seed=seed), QUICK)
        for surface, noise in ((BESIROGLU, 0.003), (HOFFMANN, 0.01))
        for seed in range(8)
    ]
    found = [refused(fit, method) for fit in fits for method in ("valley", "surface_huber")]
    assert np.mean(found) < 0.07


@pytest.mark.parametrize("world", [kaplan, crossed])
def test_a_surface_of_another_form_is_refused(world: World) -> None:
    fits = [fit_sweep(on(world, seed), QUICK) for seed in range(5)]
    assert np.mean([refused(fit, "surface_huber", "blocks") for fit in fits]) >= 0.9
    if world is kaplan:  # its form is the coupled one's
        assert np.mean([refused(fit, "surface_coupled") for fit in fits]) <= 0.2


def bent(seed: int = 0) -> Points:
    """Optima on a curve over C."""
    rows = []
    for i, budget in enumerate(BUDGETS):
        off = 10 ** (0.06 * (i - 2) ** 2)
        n, d, _ = optimum(BESIROGLU, budget)
        part = sweep_on(BESIROGLU, [budget])
        shifted = replace(part, params=part.params * off, tokens=part.tokens / off)
        assert shifted.params[3] == pytest.approx(n * off) and shifted.tokens[3] == pytest.approx(d / off)
        rows.append(shifted)
    points = joined(*rows)
    return replace(points, loss=points.loss + 0.001 * np.random.default_rng(seed).standard_normal(len(points)))


def test_minima_off_their_law_are_refused_and_widen_the_interval() -> None:
    fit, straight = fit_sweep(bent(), FitOptions(draws=300)), fit_sweep(sweep_on(BESIROGLU, BUDGETS, noise=0.001))
    assert refused(fit, "valley", "minima") and not refused(straight, "valley", "minima")
    said = [str(flag) for flag in fit.warnings if flag.code == "lack_of_fit" and flag.severity == "warning"]
    assert any("the minima lie" in words and "Check what differs between budgets" in words for words in said)
    assert fit.params_opt is not None and straight.params_opt is not None
    wide, narrow = fit.params_opt.interval(1e21, 0.95), straight.params_opt.interval(1e21, 0.95)
    assert wide is not None and narrow is not None and np.log(wide.factor) > 3 * np.log(narrow.factor)
    card = {item.item: item for item in validity_card(fit)}
    assert card["lack of fit"].verdict == "FAIL"
    assert {item.item: item for item in validity_card(straight)}["lack of fit"].verdict == "PASS"
    rows = fit_to_json(fit)["lack_of_fit"]
    assert {"test", "method", "verdict", "ratio", "degrees_of_freedom", "p", "message"} == rows[0].keys()
    assert rows[0]["verdict"] == "does_not_fit"
    assert "lack_of_fit" in {flag.code for flag in predict(fit, 1e21).warnings}
    assert "lack_of_fit" not in {flag.code for flag in predict(straight, 1e21).warnings}


def test_curves_that_miss_what_seeds_repeat_are_refused() -> None:
    points = sweep_on(BESIROGLU, BUDGETS, window=8)
    wavy = points.loss + 0.01 * np.sin(4 * np.log(points.params))
    rng = np.random.default_rng(0)
    three = joined(*[replace(points, loss=wavy + 0.001 * rng.standard_normal(len(points))) for _ in range(3)])
    assert refused(fit_sweep(three, QUICK), "valley", "curves")
    plain = joined(*[replace(points, loss=points.loss + 0.01 * rng.standard_normal(len(points))) for _ in range(3)])
    assert not refused(fit_sweep(plain, QUICK), "valley", "curves")


def test_a_surface_that_misses_the_largest_budget_is_refused() -> None:
    points = sweep_on(BESIROGLU, BUDGETS, noise=0.002)
    loss = points.loss + np.where(points.budget == BUDGETS[-1], 0.03, 0.0)
    assert refused(fit_sweep(replace(points, loss=loss), QUICK), "surface_huber", "top")
    assert not refused(fit_sweep(points, QUICK), "surface_huber", "top")


def test_exact_losses_and_few_points_have_no_test() -> None:
    assert not fit_sweep(sweep_on(BESIROGLU, BUDGETS[:2], sizes=3), QUICK).lack_of_fit
