"""N and D that are best when serving counts, and the C of a loss: published, searched for, covered, refused without."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flops_fit_ray.analysis import (
    FitOptions,
    Points,
    Prediction,
    Question,
    ServedPrediction,
    Serving,
    SweepFit,
    answer,
    fit_sweep,
    predict,
)
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.errors import FitError
from tests.surfaces import BESIROGLU, BUDGETS, HOFFMANN, Surface, optimum, sweep_on
from tests.test_cli import call

# Hoffmann et al.'s surface with the exponents that Sardana et al. 2024 print in section 2
SARDANA = (1.69, 406.4, 410.7, 0.336, 0.283)
NO_DRAWS = FitOptions(draws=0, method="surface_huber")


def ask(fit: SweepFit, tokens: float, price: float = 1.0, **asked: float) -> ServedPrediction:
    found = answer(fit, Question(serving=Serving(tokens=tokens, price=price), **asked))
    assert isinstance(found, ServedPrediction)
    return found


def loss_of(surface: Surface, n: Floats, d: Floats) -> Floats:
    e, a, b, alpha, beta = surface
    return np.asarray(e + a / n**alpha + b / d**beta)


def searched(surface: Surface, tokens: float, total: float) -> tuple[float, float, float]:
    """N, D and L of the lowest loss over a fine grid, where training costs 6·N·D and serving 2·N for each token."""
    n = np.geomspace(total / 2 / tokens / 1e4, total / 2 / tokens * (1 - 1e-9), 400_001)
    d = (total - 2 * n * tokens) / 6 / n
    loss = loss_of(surface, n, d)
    i = int(np.argmin(loss))
    return float(n[i]), float(d[i]), float(loss[i])


@pytest.fixture(scope="module")
def exact() -> SweepFit:
    return fit_sweep(sweep_on(BESIROGLU, BUDGETS), NO_DRAWS)


def test_the_published_answer_for_a_model_as_good_as_chinchilla_13b() -> None:
    """Sardana et al. 2024, figure 1: 2T tokens served: 7B on 2.1x the data, which saves 1.7e22 FLOPs, 17 %."""
    fit = fit_sweep(sweep_on(SARDANA, [1e20, 1e21, 1e22, 1e23]), NO_DRAWS)
    _, a, b, alpha, beta = SARDANA
    params = 13e9
    budget = 6 * (params / (alpha * a / (beta * b)) ** (1 / (alpha + beta))) ** ((alpha + beta) / beta)
    n, d, loss = optimum(SARDANA, budget)
    assert n == pytest.approx(params)
    found = ask(fit, 2e12, loss=loss)
    assert round(found.params / 1e9) == 7 and found.tokens / d == pytest.approx(2.16, abs=0.01)
    usual = 6 * n * d + 2 * n * 2e12
    assert usual - found.total == pytest.approx(1.7e22, rel=0.01)
    assert round(100 * (1 - found.total / usual)) == 17
    assert found.alone.params == pytest.approx(n, rel=1e-4) and found.alone.factor == pytest.approx(usual / found.total)


@pytest.mark.parametrize("tokens", [1e9, 1e11, 1e13])
def test_the_optimum_is_the_one_that_a_search_finds(exact: SweepFit, tokens: float) -> None:
    found = ask(exact, tokens, budget=1e21)
    n, d, loss = searched(BESIROGLU, tokens, 1e21)
    assert found.params == pytest.approx(n, rel=1e-3) and found.tokens == pytest.approx(d, rel=1e-3)
    assert found.loss == pytest.approx(loss, abs=1e-6)
    assert found.total == pytest.approx(1e21) and found.serving_cost == pytest.approx(2 * found.params * tokens)
    assert found.budget == pytest.approx(6 * found.params * found.tokens) and found.params_interval is None
    # the same loss for the fewest FLOPs is the same question from the other side
    back = ask(exact, tokens, loss=found.loss)
    assert (back.params, back.tokens, back.total) == pytest.approx((found.params, found.tokens, found.total), rel=1e-6)
    # a dearer FLOP is as more tokens
    dear = ask(exact, tokens / 4, 4.0, budget=1e21)
    assert (dear.params, dear.total) == pytest.approx((found.params, found.total))


def test_every_choice_reaches_the_loss_and_none_costs_less(exact: SweepFit) -> None:
    found = ask(exact, 3e11, budget=1e21)
    assert [c.params for c in found.choices] == sorted(c.params for c in found.choices)
    reached = [c for c in found.choices if math.isfinite(c.tokens)]
    assert 4 <= len(reached) < len(found.choices)  # the smallest models never come to it
    for choice in reached:
        assert loss_of(BESIROGLU, np.array(choice.params), np.array(choice.tokens)) == pytest.approx(found.loss)
        total = 6 * choice.params * choice.tokens + 2 * choice.params * 3e11
        assert choice.factor == pytest.approx(total / found.total, rel=1e-3) and choice.factor > 1 - 1e-9
    least = min(reached, key=lambda c: c.training)
    assert least == found.alone and least.params > found.params


def test_nothing_served_is_the_prediction_of_the_surface(exact: SweepFit) -> None:
    found, usual = ask(exact, 1.0, budget=1e21), predict(exact, 1e21)
    assert (found.params, found.tokens, found.loss) == pytest.approx((usual.params, usual.tokens, usual.loss), rel=1e-6)


def test_a_curved_cost_and_a_coupled_law_are_searched_alike() -> None:
    """A token costs f(N) = 6·N + 2e4·N^1/2, and the surface is (A/N^alpha + B/D^beta)^k with k = 0.8."""
    from flops_fit_ray.analysis.surface import CostLaw, Surfaces, lowest_loss
    from flops_fit_ray.analysis.surface._cost import CostCurve

    logs = {name: np.log([value]) for name, value in (("log_e", 1.7), ("log_a", 900.0), ("log_b", 5000.0))}
    shape = {name: np.array([value]) for name, value in (("alpha", 0.4), ("beta", 0.42), ("k", 0.8))}
    surface = Surfaces(**logs, **shape)
    low = math.log(1e6)
    curve = CostCurve(coefficients=np.array([6.0, 2e4 / 1e3]), power=0.5, low=low, high=low + 9)
    cost = CostLaw(log_k=math.log(6), n_exponent=1.0, scatter=0.0, curve=curve)
    log_n, log_d = lowest_loss(surface, cost, 1e20, 1e10)
    n = np.geomspace(1e6, 1e9, 400_001)
    d = 1e20 / (6 * n + 2e4 * np.sqrt(n)) - 1e10
    n, d = n[d > 0], d[d > 0]
    i = int(np.argmin(surface.loss(n, d)))
    assert math.exp(log_n[0]) == pytest.approx(n[i], rel=1e-3) and math.exp(log_d[0]) == pytest.approx(d[i], rel=1e-3)


@pytest.fixture(scope="module")
def noisy() -> list[SweepFit]:
    options = FitOptions(draws=200, method="surface_huber")
    return [fit_sweep(sweep_on(BESIROGLU, BUDGETS, noise=0.004, seed=s), options) for s in range(12)]


def test_intervals_hold_the_true_optimum_and_grow_with_what_is_asked(noisy: list[SweepFit]) -> None:
    n, d, loss = searched(BESIROGLU, 1e12, 1e22)
    held = {"params": 0, "tokens": 0, "loss": 0, "alone": 0}
    for fit in noisy:
        found = ask(fit, 1e12, budget=1e22)
        usual = predict(fit, 1e22)
        assert found.params_interval and found.tokens_interval and found.loss_interval and found.alone_interval
        assert usual.params_interval and found.params_interval.factor > 1.05
        held["params"] += found.params_interval.holds(n)
        held["tokens"] += found.tokens_interval.holds(d)
        held["loss"] += found.loss_interval.holds(loss)
        exact = ask_exact(loss)
        held["alone"] += found.alone_interval.holds(exact.alone.factor)
        assert found.run_interval and found.run_interval.low < found.loss_interval.low
    assert all(10 <= count <= 12 for count in held.values()), held


def ask_exact(loss: float) -> ServedPrediction:
    return ask(fit_sweep(sweep_on(BESIROGLU, BUDGETS), NO_DRAWS), 1e12, loss=loss)


def test_a_loss_near_the_end_of_all_models_has_no_interval_and_says_so(noisy: list[SweepFit]) -> None:
    fit = noisy[0]
    surface = fit.methods["surface_huber"].surface
    assert surface is not None and surface.surface is not None
    e = math.exp(surface.surface.log_e[0])
    found = ask(fit, 1e12, loss=e + 0.003)
    assert found.params_interval is None and found.total_interval is None and found.loss_interval is not None
    assert "loss_not_reached" in [flag.code for flag in found.warnings]
    with pytest.raises(
        FitError, match=rf"no model reaches a loss of {e - 0.01:.4f}: with endless N and D it is {e:.4f}"
    ):
        ask(fit, 1e12, loss=e - 0.01)


def test_far_from_the_ratios_that_were_run_is_said(exact: SweepFit) -> None:
    near, far = ask(exact, 1e9, budget=1e20), ask(exact, 1e13, budget=1e21)
    ratios = exact.points.tokens / exact.points.params
    assert near.ratio_extrapolation == 1
    assert far.ratio_extrapolation == pytest.approx(far.tokens / far.params / ratios.max())
    words = [str(flag) for flag in far.warnings if flag.code == "tokens_per_param"]
    assert words and words[0].startswith(f"D/N is {far.ratio_extrapolation:.3g}x larger than any run: surfaces")
    assert not [flag for flag in near.warnings if flag.code == "tokens_per_param"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"budget": 1e20, "serving": Serving(tokens=0.0)}, "the tokens to be served must be a positive number"),
    ({"budget": 1e20, "serving": Serving(tokens=1e9, price=-1.0)}, "the price of a FLOP in serving must be"),
    ({"budget": math.inf, "serving": Serving(tokens=1e9)}, "the FLOPs of training and serving must be"),
    ({"loss": math.nan, "serving": Serving(tokens=1e9)}, "the loss must be a positive number"),
    ({"loss": -1.0}, "the loss must be a positive number"),
    ({"budget": 1e12, "serving": Serving(tokens=1e14)}, "no model is so small that it serves 100T tokens for 1e12"),
    ({"as_good_as": 1e300, "serving": Serving(tokens=1e9)}, r"the FLOPs to be as good as must be .* up to 1e.60"),
    ({"budget": 1e20, "serving": Serving(tokens=1e40, price=1e40)}, "the tokens served times their price"),
    ({"loss": 1e12, "serving": Serving(tokens=1e12)}, "which is no model: ask for a loss nearer to those of the runs"),
    ({}, "give a number of FLOPs, or the loss to be reached"),
    ({"budget": 1e20, "loss": 2.0}, "give a number of FLOPs, or the loss to be reached, and not both"),
    ({"budget": 1e20, "unique": 1e9, "serving": Serving(tokens=1e9)}, "no loss, and no serving"),
    ({"loss": 1.0}, "does not come down to a loss of 1.0000"),
    ({"loss": 1e9}, r"a loss of 1e.09 needs less than 1e9 FLOPs: ask for a lower one"),
]


@pytest.mark.parametrize(("asked", "words"), WRONG, ids=[words for _, words in WRONG])
def test_questions_without_an_answer_are_refused(exact: SweepFit, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(FitError, match=words):
        answer(exact, Question(**asked))


def test_valleys_alone_do_not_tell(exact: SweepFit) -> None:
    valleys = fit_sweep(exact.points, replace(NO_DRAWS, method="valley"))
    with pytest.raises(FitError, match="with serving only a surface tells the optimum, and the method is valley"):
        ask(valleys, 1e9, budget=1e20)


@pytest.mark.parametrize("method", ["valley", "surface_huber"])
def test_the_budget_of_a_loss_is_that_whose_prediction_it_is(method: Any) -> None:
    points = sweep_on(HOFFMANN, BUDGETS, noise=0.003, seed=3)
    fit = fit_sweep(points, FitOptions(draws=200, method=method))
    usual = predict(fit, 1e21)
    found = answer(fit, Question(loss=usual.loss))
    assert (found.budget, found.params) == pytest.approx((1e21, usual.params), rel=1e-3)
    assert found.budget_interval and found.params_interval and usual.params_interval
    assert found.budget_interval.holds(1e21) and found.params_interval.factor > usual.params_interval.factor
    true = optimum(HOFFMANN, 1e21)
    assert answer(fit, Question(loss=true[2])).budget_interval.holds(1e21)  # type: ignore[union-attr]


def table(points: Points, path: Path) -> Path:
    rows = zip(points.budget, points.params, points.tokens, points.loss, strict=True)
    path.write_text("budget,params,tokens,loss\n" + "\n".join(",".join(map(repr, map(float, row))) for row in rows))
    return path


def test_a_table_is_asked_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(sweep_on(BESIROGLU, BUDGETS, noise=0.003), tmp_path / "runs.csv")
    options: list[str | Path] = [path, "--draws", "100"]
    assert call("predict", "1e21", *options, "--served", "2e8x500x10", "--serving-price", "2", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    serving = said["serving"]
    assert (serving["tokens"], serving["price"]) == (1e12, 2.0) and serving["total"] == pytest.approx(1e21)
    assert serving["cost"] + said["budget"] == pytest.approx(1e21)
    assert serving["choices"][0]["tokens"] is None and serving["training_alone"]["factor_interval"][0] > 1
    assert call("predict", *options, "--loss", "2.4", "--served", "1e12") == 0
    out = capsys.readouterr().out
    assert "1T tokens served, " in out and "best for training alone" in out and "(95 % intervals)" in out
    assert call("predict", *options, "--loss", "2.4", "--json") == 0
    assert json.loads(capsys.readouterr().out)["budget_interval"][0] > 1e18


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["1e20", "--served", "many"], "'many' is not a number of tokens; give for example 1e12, or 2e9x500"),
        (["1e20", "--served", "0x5"], "'0x5' is not a positive number of tokens"),
        (["1e20", "--serving-price", "2"], "--serving-price goes with --served; give both"),
        (["--loss", "2", "--served", "1e9", "--seal"], "--loss and --seal are different questions"),
        (["--hours", "2", "--served", "1e9"], "--hours and --served are different questions"),
        (["1e20", "--served", "1e9", "--unique", "1e9"], "--unique and --served are different questions"),
        (["1e20", "x.csv", "--loss", "2"], "too many; give one SOURCE; --loss stands for BUDGET"),
        ([], "give BUDGET in FLOPs, --loss or --hours"),
    ],
)
def test_options_of_different_questions_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", *words) == 2
    assert said in capsys.readouterr().err


def test_a_prediction_without_serving_has_no_word_of_it(exact: SweepFit) -> None:
    found = answer(exact, Question(budget=1e21))
    assert type(found) is Prediction and found == predict(exact, 1e21) and found.budget_interval is None
