"""The valleys' curve is chosen by how it predicts sizes that are left out, and one skew is found in all budgets."""

import numpy as np
import pytest

from flops_fit_ray.analysis import FitOptions, Points, analyse, analysis_to_json, fit_minima, fit_sweep
from flops_fit_ray.analysis._skew import same_skew
from flops_fit_ray.analysis._sweep_fit import fit_valleys
from flops_fit_ray.analysis._valley_minima import shared_skew
from tests.surfaces import BUDGETS, LOPSIDED, SYMMETRIC, joined, optimum, points_from, sweep_on

TARGET = 10 * BUDGETS[-1]


def _error(points: Points, curve: str) -> float:
    """ln of N_opt at ten times the largest budget over the true one, on the lopsided surface."""
    law = fit_minima(points, FitOptions(draws=0, curve=curve)).method.params_opt  # type: ignore[arg-type]
    assert law is not None
    return float(np.log(law.at(TARGET) / optimum(LOPSIDED, TARGET)[0]))


def test_lopsided_valleys_get_their_skew_and_others_stay_parabolas() -> None:
    for seed in range(3):
        points = sweep_on(LOPSIDED, BUDGETS, sizes=9, window=6, noise=0.001, seed=seed)
        fit = fit_minima(points, FitOptions(draws=0, curve="auto"))
        assert fit.choice is not None and fit.choice.chosen in ("skewed", "cubic") and fit.choice.blocks == 5
        assert _error(points, "parabola") < -0.05 and abs(_error(points, "auto")) < 0.015
        assert _error(points, "auto") == _error(points, fit.choice.chosen)
        plain = fit_minima(sweep_on(SYMMETRIC, BUDGETS, noise=0.003, seed=seed), FitOptions(draws=0, curve="auto"))
        assert plain.options.curve == "parabola"


def _skewed(rhos: list[float], noise: float = 0.0) -> Points:
    """Valleys 0.5·(z² + rho·z³) about a minimum at N = sqrt(C / 100), over z = log10 N and C = 6·N·D."""
    rng, rows = np.random.default_rng(0), []
    for budget, rho in zip(BUDGETS, rhos, strict=True):
        z = np.linspace(-0.6, 0.6, 7)
        n = np.sqrt(budget / 100) * 10**z
        loss = 3 - 0.1 * np.log10(budget / 1e18) + 0.5 * (z**2 + rho * z**3) + noise * rng.standard_normal(7)
        rows.append([np.full(7, budget), np.full(7, budget), n, budget / 6 / n, loss])
    return points_from(*np.concatenate(rows, axis=1))


def test_one_skew_is_found_in_all_budgets() -> None:
    points = _skewed([0.2] * 5, noise=1e-5)
    parabolas = list(fit_valleys(points, FitOptions()))
    assert shared_skew(parabolas, points) == pytest.approx(0.2, rel=0.01)
    for curve, error in (("parabola", 0.02), ("skewed", 1e-3), ("cubic", 1e-3)):
        valleys = fit_minima(points, FitOptions(draws=0, curve=curve)).valleys  # type: ignore[arg-type]
        off = [abs(np.log10(v.params_opt / np.sqrt(v.budget / 100))) for v in valleys]
        assert max(off) < error if curve != "parabola" else min(off) > error
        assert [v.params_opt * v.tokens_opt * 6 for v in valleys] == pytest.approx(BUDGETS, rel=1e-9)  # D mirrors N
    assert shared_skew(list(fit_valleys(_skewed([0.0] * 5, noise=0.01), FitOptions())), points) == pytest.approx(
        0, abs=0.05
    )


def test_skews_that_differ_are_not_one() -> None:
    def p_value(rhos: list[float]) -> float:
        return same_skew(
            [v.smooth for v in fit_valleys(_skewed(rhos, noise=2e-3), FitOptions()) if v.smooth is not None]
        )

    assert p_value([0.2] * 5) > 0.05 > p_value([0.5, 0.4, 0.2, 0.0, 0.0])
    assert same_skew([]) == 1.0


def test_the_choice_is_said_with_its_reason_and_few_sizes_leave_none() -> None:
    points = sweep_on(LOPSIDED, BUDGETS, sizes=9, window=6, noise=0.001)
    fit = fit_sweep(points, FitOptions(draws=0, curve="auto", method="valley"))
    content = analysis_to_json(analyse(fit, (TARGET,)))
    made = content["choices"][0]
    assert made["what"] == "curve" and made["chosen"] == fit.options.curve != "parabola" and made["held_out"] == "sizes"
    words = [flag["message"] for flag in content["warnings"] if flag["code"] == "curve_chosen"]
    assert (
        len(words) == 1
        and "it predicts clearly better (error of the losses of sizes that were left out of 5" in words[0]
    )
    assert all(v["curve"] == made["chosen"] for v in content["valleys"])
    few = joined(*(sweep_on(LOPSIDED, [budget], sizes=3) for budget in BUDGETS))
    choice = fit_minima(few, FitOptions(draws=0, curve="auto")).choice
    assert choice is not None and choice.chosen == "parabola" and "too few sizes" in choice.sentence
