"""The best model that is not larger than a cap: its loss by the true surface, what the cap costs, and when it binds."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from flops_fit_ray.analysis import CappedPrediction, FitOptions, Question, SweepFit, answer, fit_sweep, predict
from flops_fit_ray.analysis._methods import no_law
from flops_fit_ray.errors import FitError
from tests.surfaces import BESIROGLU, BUDGETS, optimum, sweep_on
from tests.test_cli import call

CAP = 2e8


def loss_at(params: float, budget: float) -> float:
    e, a, b, alpha, beta = BESIROGLU
    return float(e + a / params**alpha + b / (budget / 6 / params) ** beta)


def capped(fit: SweepFit, budget: float = 1e21) -> CappedPrediction:
    found = answer(fit, Question(budget=budget, max_params=CAP))
    assert isinstance(found, CappedPrediction)
    return found


@pytest.mark.parametrize("method", ["valley", "surface_huber"])
def test_without_noise_the_loss_is_that_of_the_surface(method: str) -> None:
    fit = fit_sweep(sweep_on(BESIROGLU, BUDGETS), FitOptions(draws=0, method=method))  # type: ignore[arg-type]
    found = capped(fit)
    assert found.params == CAP and found.tokens == pytest.approx(1e21 / 6 / CAP)
    added = loss_at(CAP, 1e21) - optimum(BESIROGLU, 1e21)[2]
    assert found.loss_added == pytest.approx(added, abs=1e-6)
    assert found.loss == pytest.approx(predict(fit, 1e21).loss + added, abs=1e-6)
    assert found.loss_interval is None and found.loss_added_interval is None
    assert "tokens_per_param" in [flag.code for flag in found.warnings]


def test_a_cap_that_does_not_bind_changes_nothing() -> None:
    fit = fit_sweep(sweep_on(BESIROGLU, BUDGETS, noise=0.003), FitOptions(draws=50))
    free = predict(fit, 1e18)
    assert free.params < CAP
    assert answer(fit, Question(budget=1e18, max_params=CAP)) == free


def test_intervals_hold_the_truth() -> None:
    """Of 10 sweeps 8 or more, which at 95 % fails by chance once in 90 times."""
    held = {"loss": 0, "added": 0}
    for seed in range(10):
        found = capped(fit_sweep(sweep_on(BESIROGLU, BUDGETS, noise=0.004, seed=seed), FitOptions(draws=100)))
        assert found.loss_interval and found.run_interval and found.loss_added_interval
        held["loss"] += found.loss_interval.holds(loss_at(CAP, 1e21))
        held["added"] += found.loss_added_interval.holds(loss_at(CAP, 1e21) - optimum(BESIROGLU, 1e21)[2])
        assert found.run_interval.low < found.loss_interval.low + 0.01  # as far as 100 draws tell
    assert min(held.values()) >= 8, held


def test_what_cannot_be_told_is_refused() -> None:
    whole = fit_sweep(sweep_on(BESIROGLU, BUDGETS), FitOptions(draws=0))
    fit = replace(whole, methods={**whole.methods, "surface_huber": no_law("surface_huber", "too few runs")})
    with pytest.raises(FitError, match="is larger than 200M, and only a surface tells what less costs: too few runs"):
        capped(fit)
    for cap in (0.0, -1.0, 0.5, 1e-300, math.inf, math.nan):
        with pytest.raises(FitError, match="the largest N must be a positive number"):
            answer(whole, Question(budget=1e20, max_params=cap))
    with pytest.raises(FitError, match="with a largest N give a number of FLOPs of training alone"):
        answer(whole, replace(Question(budget=1e20, max_params=1e6), unique=1e9))


def test_a_table_is_asked_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points, path = sweep_on(BESIROGLU, BUDGETS, noise=0.003), tmp_path / "runs.csv"
    rows = zip(points.budget, points.params, points.tokens, points.loss, strict=True)
    path.write_text("budget,params,tokens,loss\n" + "\n".join(",".join(map(repr, map(float, row))) for row in rows))
    asked: list[str | Path] = ["predict", "1e21", path, "--draws", "50", "--max-params", "2e8"]
    assert call(*asked, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["params"] == CAP and said["cap"]["loss_added"] == pytest.approx(
        loss_at(CAP, 1e21) - optimum(BESIROGLU, 1e21)[2], abs=0.02
    )
    assert call(*asked) == 0
    assert "N is as large as it may be; " in capsys.readouterr().out
    assert call(*asked, "--served", "1e9") == 2
    assert "--max-params and --served are different questions" in capsys.readouterr().err


def test_a_prediction_lies_in_its_own_interval() -> None:
    """Minima that bend: the draws follow the bend, the law is the line through all."""
    bent = sweep_on(BESIROGLU, BUDGETS, noise=0.0005)
    centres = {budget: 1 + 0.25 * math.log10(budget / 1e19) ** 2 for budget in BUDGETS}
    by = [centres[float(budget)] for budget in bent.budget]
    fit = fit_sweep(replace(bent, params=bent.params * by), FitOptions(draws=400, method="valley"))
    law = fit.params_opt
    assert law is not None
    for budget in (1e18, 1e21, 1e23):
        found, alone = predict(fit, budget), law.interval(budget, 0.95)
        assert found.params_interval and found.tokens_interval and found.loss_interval and alone
        assert found.params_interval.holds(found.params) and found.tokens_interval.holds(found.tokens)
        assert found.loss_interval.holds(found.loss)
        assert found.params_interval.holds(alone.low) and found.params_interval.holds(alone.high)
    assert not law.interval(1e23, 0.95).holds(law.at(1e23))  # type: ignore[union-attr] # else it would show nothing
