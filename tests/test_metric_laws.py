"""Metrics predicted from the loss: the truth of simulated links comes back, and what nothing tells is not told."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flops_fit_ray import fit_table
from flops_fit_ray.analysis import (
    FitOptions,
    MetricOptions,
    MetricPrediction,
    Points,
    SweepFit,
    fit_sweep,
    predict,
    predict_metric,
)
from flops_fit_ray.analysis._ensemble import sample
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.errors import FitError, SpecError
from tests.surfaces import BESIROGLU, BUDGETS, optimum, sweep_on
from tests.test_cli import call

BEYOND = optimum(BESIROGLU, 1e21)[2]


def accuracy(loss: Floats | float, middle: float = 2.6) -> Floats:
    """From 0.25 to 0.9, half of the way at `middle`."""
    return np.asarray(0.25 + 0.65 / (1 + np.exp(4 * (np.asarray(loss) - middle))))


def other_loss(loss: Floats | float) -> Floats:
    return np.asarray(1.1 + 0.8 * (np.asarray(loss) - 1.5) ** 1.2)


def with_metrics(seed: int = 0, noise: float = 0.01, middle: float = 2.6) -> Points:
    points = sweep_on(BESIROGLU, BUDGETS, noise=0.003, seed=seed)
    e, a, b, alpha, beta = BESIROGLU
    loss = e + a / points.params**alpha + b / points.tokens**beta
    rng = np.random.default_rng(seed + 1000)

    def noisy(values: Floats) -> Floats:
        return np.asarray(values + noise * rng.standard_normal(len(loss)))

    share = noisy(accuracy(loss, middle)).clip(0, 1)
    metrics = {"accuracy": share, "percent": 100 * share, "errors": 1 - share, "code": noisy(other_loss(loss))}
    return replace(points, metrics=metrics)


def fitted(**more: Any) -> SweepFit:
    return fit_sweep(with_metrics(**more), FitOptions(draws=200))


def ask(fit: SweepFit, name: str, **known: Any) -> MetricPrediction:
    return predict_metric(fit, predict(fit, 1e21), name, MetricOptions(**known))


@pytest.fixture(scope="module")
def fit() -> SweepFit:
    return fitted(seed=1)


def test_without_noise_the_link_comes_back() -> None:
    points = sweep_on(BESIROGLU, BUDGETS)
    points = replace(points, metrics={"accuracy": accuracy(points.loss), "code": other_loss(points.loss)})
    exact = fit_sweep(points, FitOptions(draws=50))
    for name, truth in (("accuracy", accuracy(BEYOND)), ("code", other_loss(BEYOND))):
        found = ask(exact, name)
        assert found.value == pytest.approx(float(truth), abs=2e-4) and found.rms < 1e-5, name
    assert ask(exact, "accuracy", chance=0.25).formula == "accuracy = 0.25 + 0.65/(1 + exp(4·(L - 2.6)))"


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 10 sweeps 8 or more, which at 95 % fails by chance once in 90 times; `MetricOptions()` knows nothing."""
    held = {"accuracy": 0, "code": 0}
    for seed in range(10):
        one = fitted(seed=seed)
        for name, truth in (("accuracy", accuracy(BEYOND)), ("code", other_loss(BEYOND))):
            within = ask(one, name).interval
            held[name] += within is not None and within.holds(float(truth))
    assert min(held.values()) >= 8, held


@pytest.mark.parametrize(
    ("name", "known", "truth"),
    [
        ("accuracy", {}, float(accuracy(BEYOND))),
        ("accuracy", {"chance": 0.25}, float(accuracy(BEYOND))),
        ("percent", {"bounds": (0.0, 100.0)}, 100 * float(accuracy(BEYOND))),
        ("errors", {}, 1 - float(accuracy(BEYOND))),
        ("errors", {"chance": 0.75}, 1 - float(accuracy(BEYOND))),
        ("code", {}, float(other_loss(BEYOND))),
    ],
)
def test_the_interval_at_ten_times_the_compute_holds_the_truth(
    fit: SweepFit, name: str, known: dict[str, Any], truth: float
) -> None:
    found = ask(fit, name, **known)
    assert found.interval and found.run_interval and found.value is not None
    assert found.interval.holds(truth) and found.interval.holds(found.value)
    scale = 100 if name == "percent" else 1
    assert found.interval.high - found.interval.low < 0.3 * scale and found.rms < 0.02 * scale
    assert found.run_interval.high - found.run_interval.low > found.interval.high - found.interval.low
    low, high = fit.points.loss.min(), fit.points.loss.max()
    assert found.below == pytest.approx((low - predict(fit, 1e21).loss) / (high - low))
    assert [flag.code for flag in found.warnings] == ["metric_extrapolated"]
    assert found == ask(fit, name, **known)  # the same draws at every call


def test_errors_are_accuracies_turned_over(fit: SweepFit) -> None:
    errors, correct = ask(fit, "errors"), ask(fit, "accuracy")
    assert errors.value is not None and correct.value is not None
    assert errors.value == pytest.approx(1 - correct.value, abs=1e-6)
    assert errors.formula.startswith("1 - errors = ") and correct.kind == errors.kind == "share"


def test_a_rise_that_is_still_to_come_is_not_told() -> None:
    """At the foot of an accuracy that rises at a loss which no run reaches, and where nothing moves at all."""
    foot = fitted(middle=1.9, noise=0.002)
    found = ask(foot, "accuracy")
    assert found.value is None and found.interval is None and found.run_interval is None
    assert [flag.severity for flag in found.warnings] == ["severe"] and "of the way from its floor" in str(
        found.warnings[0]
    )
    inside = predict_metric(foot, predict(foot, 1e19), "accuracy")
    assert inside.value == pytest.approx(float(accuracy(optimum(BESIROGLU, 1e19)[2], 1.9)), abs=0.01)
    flat = ask(fitted(middle=-5.0), "accuracy")
    assert flat.value is None and "nothing of accuracy moves with the loss in these 35 runs" in str(flat.warnings[0])


def test_budgets_that_share_a_deviation_widen_the_interval(fit: SweepFit) -> None:
    """Each budget's runs were scored by another prompt: a shift that more runs of that budget do not average out."""
    points = fit.points
    shift = 0.03 * np.random.default_rng(5).standard_normal(len(BUDGETS))
    shifted = points.metrics["accuracy"] + shift[np.unique(points.budget, return_inverse=True)[1]]
    other = fit_sweep(replace(points, metrics={"accuracy": shifted}), FitOptions(draws=200))
    wide, narrow = ask(other, "accuracy").interval, ask(fit, "accuracy").interval
    assert wide and narrow and wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


def test_runs_without_the_metric_are_left_out_and_too_few_are_refused(fit: SweepFit) -> None:
    column = fit.points.metrics["accuracy"].copy()
    column[::3] = np.nan
    some = fit_sweep(replace(fit.points, metrics={"accuracy": column}), FitOptions(draws=50))
    assert ask(some, "accuracy").runs == 23
    column[7:] = np.nan
    few = fit_sweep(replace(fit.points, metrics={"accuracy": column}), FitOptions(draws=0))
    with pytest.raises(FitError, match="4 runs of different losses have accuracy, and its law needs 8"):
        ask(few, "accuracy")


@pytest.mark.parametrize(
    ("name", "known", "words"),
    [
        ("bleu", {}, "the runs have no metric 'bleu'; they have accuracy, code, errors, percent"),
        ("percent", {}, "percent rises as the loss falls and leaves its bounds 0 to 1: give its bounds, such as 0,100"),
        ("code", {"kind": "share"}, "code is to lie between 0 and 1, and a run has"),
        ("accuracy", {"kind": "loss"}, "accuracy rises as the loss falls"),
        ("accuracy", {"bounds": (1.0, 0.0)}, "the smaller first"),
        ("accuracy", {"chance": 1.5}, "chance is a value within the bounds 0 to 1"),
        ("code", {"kind": "loss", "bounds": (0.0, 5.0)}, "bounds and chance are of a share"),
        ("accuracy", {"kind": "score"}, "a metric is one of share, loss, perplexity"),
        ("accuracy", {"bounds": (0.0, 1e300)}, "the bounds of a share are below 1e.100"),
        ("accuracy", {"bounds": (0.0,)}, "bounds are two numbers and chance is one"),
        ("accuracy", {"chance": "much"}, "bounds are two numbers and chance is one"),
    ],
)
def test_what_is_no_metric_is_refused(fit: SweepFit, name: str, known: dict[str, Any], words: str) -> None:
    with pytest.raises(FitError, match=words):
        ask(fit, name, **known)


def test_a_perplexity_is_the_exponential_of_the_loss(fit: SweepFit) -> None:
    """As no power of it is; by its name, or said."""
    points = replace(fit.points, metrics={"val_ppl": np.exp(fit.points.loss), "other": np.exp(fit.points.loss)})
    one = fit_sweep(points, fit.options)
    found, loss = ask(one, "val_ppl"), predict(one, 1e21)
    assert loss.loss_interval and found.interval and found.kind == "perplexity"
    assert found.value == pytest.approx(math.exp(loss.loss), rel=1e-3)
    for ours, theirs in ((found.interval.low, loss.loss_interval.low), (found.interval.high, loss.loss_interval.high)):
        assert ours == pytest.approx(math.exp(theirs), rel=2e-3)
    assert ask(one, "other", kind="perplexity").value == found.value and ask(one, "other").kind == "loss"


def test_without_draws_the_value_is_that_of_the_least_squares(fit: SweepFit) -> None:
    bare = fit_sweep(fit.points, FitOptions(draws=0))
    found = ask(bare, "accuracy")
    assert found.interval is None and found.run_interval is None
    other = fit_sweep(fit.points, FitOptions(draws=0, seed=7))
    assert found.value == pytest.approx(ask(other, "accuracy").value, abs=1e-6)
    assert found.value == pytest.approx(float(accuracy(BEYOND)), abs=0.1)


def test_a_value_of_guessing_that_the_runs_contradict_is_named(fit: SweepFit) -> None:
    assert "chance" not in [flag.code for flag in ask(fit, "accuracy", chance=0.25).warnings]
    wrong = ask(fit, "percent", bounds=(0.0, 100.0), chance=0.25)
    assert "does not agree with the runs" in str(next(flag for flag in wrong.warnings if flag.code == "chance"))


def test_the_ensemble_draws_from_a_stretched_posterior() -> None:
    """A normal of two parameters that are correlated by .99 and differ by a factor of 1,000 in their scale."""
    scale = np.array([1.0, 1000.0])
    precision = np.linalg.inv(np.array([[1, 0.99], [0.99, 1]]))

    def log_posterior(theta: Floats) -> Floats:
        return np.asarray(-0.5 * np.einsum("ti,ij,tj->t", theta / scale, precision, theta / scale))

    rng = np.random.default_rng(0)
    draws = sample(log_posterior, 5 * scale * rng.standard_normal((4000, 2)), 4000, rng) / scale
    assert draws.std(axis=0) == pytest.approx([1, 1], rel=0.07) and abs(draws.mean(axis=0)).max() < 0.1
    assert np.corrcoef(draws.T)[0, 1] == pytest.approx(0.99, abs=0.003)


def table(points: Points, path: Path) -> Path:
    columns = [points.budget, points.params, points.tokens, points.loss, *points.metrics.values()]
    rows = [",".join(repr(float(value)) for value in row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([",".join(["budget", "params", "tokens", "loss", *points.metrics]), *rows]))
    return path


def test_a_column_of_a_table_is_asked_for(tmp_path: Path, fit: SweepFit, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(fit.points, tmp_path / "runs.csv")
    asked: list[str | Path] = ["predict", "1e21", path, "--draws", "100", "--metric", "accuracy", "--metric", "errors"]
    assert call(*asked, "--json") == 0
    said = json.loads(capsys.readouterr().out)["metrics"]
    assert [one["name"] for one in said] == ["accuracy", "errors"] and said[0]["kind"] == "share"
    assert said[0]["value"] == pytest.approx(float(accuracy(BEYOND)), abs=0.08)
    assert call(*asked, "--chance", "0.25") == 0
    out = capsys.readouterr().out
    assert "taken for a share between 0 and 1: accuracy = 0.25 + " in out and "of one new run [" in out
    analysis = fit_table(path, metrics=["accuracy"], draws=100)
    assert analysis.predict_metric("accuracy", 1e21).value == pytest.approx(said[0]["value"], abs=0.01)
    with pytest.raises(SpecError, match="--metric acuracy: there is no such column; did you mean .accuracy."):
        fit_table(path, metrics=["acuracy"])


def test_solved_or_not_is_no_share(tmp_path: Path, fit: SweepFit, capsys: pytest.CaptureFixture[str]) -> None:
    """A curve through yes and no is as steep as one likes, so its interval would be of nothing."""
    path = table(fit.points, tmp_path / "runs.csv")
    frame = pd.read_csv(path)
    frame.assign(solved=frame["accuracy"] > 0.5).to_csv(path, index=False)
    assert call("predict", "1e21", path, "--draws", "50", "--metric", "solved") == 1
    assert "solved is 0 or 1 in each run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--metric", "accuracy", "--bounds", "5"], "'5' is not LOW,HIGH; give for example 0,100"),
        (["--chance", "0.25"], "--chance goes with --metric; give both"),
        (["--metric", "accuracy", "--served", "1e9"], "--metric and --served are different questions"),
    ],
)
def test_options_of_metrics_that_make_no_sense_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", "1e20", *words) == 2
    assert said in capsys.readouterr().err
