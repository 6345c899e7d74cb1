"""Forecasts are sealed before a run, kept, and scored by it, whoever ran it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from flops_fit_ray.analysis import predict
from flops_fit_ray.errors import SpecError
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning import DataFacts, Measurements, make_plan
from flops_fit_ray.planning.experiment import Experiment
from flops_fit_ray.report.page import render_markdown, summary_to_json
from flops_fit_ray.result import Result
from flops_fit_ray.spec import SweepSpec, dump_spec, make_spec
from flops_fit_ray.storage.atomic import write_bytes, write_json
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.sweep.forecasts import Sealed, read_forecasts, seal
from flops_fit_ray.sweep.scored_runs import Run
from flops_fit_ray.sweep.scores import _loss_score, _Outcome, scores_of
from tests.records import RESULT
from tests.surfaces import BESIROGLU, optimum
from tests.test_cli import call
from tests.worlds import DATA, SIZES

E, A, B, ALPHA, BETA = BESIROGLU
BUDGETS = [1e18, 3.16e18, 1e19, 3.16e19]
NEXT = 1e20
NOISE = 0.002
SPEED = 3e-15  # seconds of N^0.8·D


def sizes_about(budget: float) -> list[int]:
    """The seven measured sizes nearest to the optimum of a budget, sqrt(2) apart."""
    n = optimum(BESIROGLU, budget)[0]
    return [s.params for s in sorted(SIZES[::2], key=lambda s: abs(np.log(s.params / n)))[:7]]


def spec_with(budgets: list[float], *, one_budget: bool = False, **train: Any) -> SweepSpec:
    return make_spec(
        {
            "model": {"target": "m:G", "size_param": "width"},
            "data": {"train": "m:t"},
            "budgets": [{"flops": c, "sizes": sorted(sizes_about(c))} for c in budgets],
            "train": {"batch_size": 500, "lr": 1e-3, **train},
            "fit": {"draws": 200},
        },
        "test",
        one_budget=one_budget,
    )


def true_loss(params: float, budget: float) -> float:
    return float(E + A / params**ALPHA + B / (budget / 6 / params) ** BETA)


def run_in(
    root: Path, spec: SweepSpec, *, off: float = 0.0, only: Any = lambda e: True, data: DataFacts = DATA
) -> Sweep:
    """A sweep directory whose runs have the losses of a known surface, with noise; those of `NEXT` are off it."""
    paths, rng = SweepPaths(root), np.random.default_rng(1)
    plan = make_plan(spec, Measurements(sizes=SIZES, data=data))
    write_bytes(paths.spec, dump_spec(spec).encode())
    write_json(paths.plan, {**plan.to_json(), "command": "flops-fit-ray run somewhere"})
    for e in plan.experiments:
        noise = NOISE * rng.standard_normal()
        if only(e):
            loss = true_loss(e.params, e.budget) + noise + (off if e.budget == NEXT else 0.0)
            Ledger(paths).record_planned(e)
            Ledger(paths).record_result(result_of(e, loss))
    return open_sweep(root)


def result_of(e: Experiment, loss: float) -> Any:
    names = ("key", "budget", "size", "params", "params_total", "tokens", "steps", "role", "of", "parent")
    facts = {name: getattr(e, name) for name in names}
    seconds = SPEED * e.params**0.8 * e.tokens
    return replace(
        RESULT, **facts, tokens_seen=e.tokens, flops=e.flops, loss=loss, seconds=seconds, finished_at=time.time()
    )


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Sweep, Sealed]:
    sweep = run_in(tmp_path / "s", spec_with(BUDGETS))
    return sweep, seal(sweep, sweep.fit, predict(sweep.fit, NEXT))


def extended(sweep: Sweep, **how: Any) -> Sweep:
    return run_in(local_path(sweep.paths.root), spec_with([*BUDGETS, NEXT]), **how)


@pytest.mark.parametrize(("off", "inside"), [(0.0, True), (0.1, False), (-0.1, False)])
def test_a_forecast_is_scored_by_the_runs_of_its_budget(
    sealed: tuple[Sweep, Sealed], off: float, inside: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, one = sealed
    said = one.forecast
    assert said.params_interval[0] < optimum(BESIROGLU, NEXT)[0] < said.params_interval[1]
    assert all(s.inside is None and "no run yet" in s.message for s in scores_of(sweep).scores)
    wider = extended(sweep, off=off)
    loss, params = scores_of(wider).scores
    lowest = wider.fit.optima[-1][0].loss_opt  # of the curve, which is what was forecast
    assert said.run_interval is not None
    assert (loss.observed, loss.inside) == (lowest, inside)
    assert loss.inside == (said.run_interval[0] <= lowest <= said.run_interval[1])
    low, high = said.run_interval
    day = time.strftime("%Y-%m-%d", time.gmtime(said.sealed_at))
    assert loss.message.startswith(f"C = 1e20: said L = {said.loss:.4g} [{low:.4g}, {high:.4g}] at N = ")
    assert f" on {day}, came out {lowest:.4g} at the minimum of 7 runs" in loss.message
    assert loss.message.endswith(": inside" if inside else ": outside")
    # A shift of all losses moves no minimum
    assert params.inside and params.observed == pytest.approx(wider.fit.optima[-1][0].params_opt)
    assert "the minimum came out at " in params.message and params.observed_interval is not None
    held = f"{1 + inside} of 2 inside 95 %"
    assert scores_of(wider).calibration == (held,)
    if not inside:
        return
    root = sweep.paths.root
    assert call("status", root) == 0 and f"forecasts: {held}" in capsys.readouterr().out
    assert call("status", root, "--json") == 0
    forecasts = json.loads(capsys.readouterr().out)["forecasts"]
    assert (forecasts["scored"], forecasts["inside"]) == (2, 2)
    assert call("score", root, "--json") == 0
    assert json.loads(capsys.readouterr().out)["scores"] == forecasts["scores"]
    assert summary_to_json(wider)["forecasts"]["calibration"] == [held]
    assert f"- {loss.message}" in render_markdown(wider, (), {})
    assert Result(wider).scores().lines[0] == loss.message


def test_a_forecast_is_kept_whatever_follows_and_any_change_of_it_is_seen(
    sealed: tuple[Sweep, Sealed], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, one = sealed
    path, before = local_path(one.path), one.path.read_bytes()
    assert seal(sweep, sweep.fit, predict(sweep.fit, NEXT)) == one  # the same answer is one forecast
    root = sweep.paths.root
    assert call("predict", "1e20", root, "--seal", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sealed"]["path"] == str(path) and told["sealed"]["sha256"] in before.decode()
    assert call("predict", "1e21", root, "--seal") == 0
    assert f"sealed: {root}" in capsys.readouterr().out
    extended(sweep)
    assert path.read_bytes() == before and len(read_forecasts(sweep).sealed) == 2
    content = json.loads(before)
    assert content["results_sha256"] == sweep.results_sha256 and content["method"] == "valley"
    assert content["version"] and make_spec(yaml.safe_load(content["spec"]), "sealed") == sweep.spec
    without = {name: value for name, value in content.items() if name != "sealed_sha256"}
    changed = "was changed after it was sealed"
    for new, problem in (
        (before.replace(b'"loss": 2.', b'"loss": 3.', 1), changed),
        (before[:-30], changed),
        (b"", changed),
        (json.dumps(without).encode(), changed),
    ):
        path.write_bytes(new)
        found = scores_of(sweep)
        assert len(read_forecasts(sweep).sealed) == 1 and len(found.problems) == 1
        assert found.problems[0].startswith(f"forecasts/{path.name}: {problem}"), found.problems
    for new_content, problem in (
        (without | {"schema_version": 2}, "has schema_version 2, and this version knows 1"),
        (without | {"budget": "1e20"}, "cannot be read as a forecast"),
    ):
        write_json(path, new_content, sealed=True)
        assert problem in scores_of(sweep).problems[0]
    write_json(path, without | {"version": "9.0", "more": 1}, sealed=True)
    assert scores_of(sweep).problems == () and len(scores_of(sweep).scores) == 4  # of another version: it opens
    path.unlink()
    path.mkdir()
    assert "cannot be read" in scores_of(sweep).problems[0]


def test_what_is_no_forecast_is_refused(sealed: tuple[Sweep, Sealed], capsys: pytest.CaptureFixture[str]) -> None:
    sweep, _ = sealed
    root = sweep.paths.root
    for c in ("1e19", "1.005e19"):
        assert call("predict", c, root, "--seal") == 2
        assert "has results in this sweep already (C = 1e19, size" in capsys.readouterr().err
    assert call("predict", "3e20", root, "--seal", "--draws", "0") == 2
    assert "no intervals" in capsys.readouterr().err
    table = local_path(root) / "runs.csv"
    pd.DataFrame([{"N": r.params, "D": r.tokens, "C": r.flops, "loss": r.loss} for r in sweep.results]).to_csv(table)
    assert call("predict", "3e20", table, "--seal") == 2
    assert "needs a sweep directory" in capsys.readouterr().err
    assert call("predict", "--hours", "3", root, "--seal") == 2
    assert call("predict", "3e20", root, "--seal", "--spec", table) == 2
    assert "is there already" in capsys.readouterr().err
    assert call("score", root, "--runs", table) == 2
    assert "has no run of a forecast's C, 1e20 (its runs: C = 1e18 to 3.16e19)" in capsys.readouterr().err
    assert len(read_forecasts(sweep).sealed) == 1
    with pytest.raises(SpecError, match="already"):
        Result(sweep).seal(1e19)


def test_runs_that_do_not_answer_the_forecast_do_not_score_it(sealed: tuple[Sweep, Sealed]) -> None:
    sweep, one = sealed
    some = extended(sweep, only=lambda e: e.budget < NEXT or e.params < optimum(BESIROGLU, NEXT)[0])
    assert all("of its runs are not done yet" in s.message for s in scores_of(some).scores)
    whole = extended(sweep)
    assert scores_of(whole).calibration
    other = run_in(local_path(sweep.paths.root), spec_with([*BUDGETS, NEXT], schedule="cosine"))
    found = scores_of(other)
    assert found.calibration == ()
    assert "runs have another recipe (train.schedule: wsd -> cosine)" in found.scores[0].message
    late = {**json.loads(one.path.read_bytes()), "sealed_at": time.time() + 60}
    write_json(one.path, {name: v for name, v in late.items() if name != "sealed_sha256"}, sealed=True)
    assert "ended before the forecast was made" in scores_of(extended(sweep)).scores[0].message


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0, 4.0])
def test_a_run_of_another_n_is_scored_by_the_forecast_for_that_n(sealed: tuple[Sweep, Sealed], factor: float) -> None:
    """The surface gives the shape: the forecast for the run's N is the true loss there, not that of N_opt."""
    _, one = sealed
    n = factor * one.forecast.params
    run = Run(budget=NEXT, params=n, loss=true_loss(n, NEXT))
    score = _loss_score(one, _Outcome(runs=(run,)))
    assert score.inside and score.params == n and score.said == pytest.approx(run.loss, abs=0.01)
    assert one.forecast.run_interval is not None
    assert score.interval[1] - score.interval[0] >= np.subtract(*one.forecast.run_interval[::-1])
    flat = Sealed(one.path, replace(one.forecast, by_size=()))
    assert "no surface says what its loss would be" in _loss_score(flat, _Outcome(runs=(run,))).message
    near = replace(run, params=1.05 * one.forecast.params, loss=one.forecast.loss)
    assert _loss_score(flat, _Outcome(runs=(near,))).inside


@pytest.mark.parametrize("columns", [("N", "D", "C"), ("N", "D")])
def test_runs_from_elsewhere_score_too(
    sealed: tuple[Sweep, Sealed], tmp_path: Path, columns: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, one = sealed
    root, n = sweep.paths.root, float(round(1.02 * one.forecast.params))
    row = {"N": n, "D": NEXT / 6 / n, "C": NEXT, "loss": true_loss(n, NEXT)}
    pd.DataFrame([{name: row[name] for name in (*columns, "loss")}]).to_csv(tmp_path / "big.csv", index=False)
    assert call("score", root, "--runs", tmp_path / "big.csv") == 0
    first = capsys.readouterr().out.splitlines()
    assert f"came out {row['loss']:.4g}: inside" in first[0] and first[1] == "forecasts: 1 of 1 inside 95 %"
    assert call("status", root) == 0 and first[0] in capsys.readouterr().out  # kept
    assert [s.inside for s in Result(sweep).scores(tmp_path / "big.csv").scores] == [True]  # and once
    with pytest.raises(SpecError, match="no forecast to score"):
        Result(run_in(tmp_path / "t", spec_with(BUDGETS[:2]))).scores(tmp_path / "big.csv")


@pytest.mark.parametrize(("train", "scored"), [({}, True), ({"lr": 7e-4}, True), ({"batch_size": 250}, False)])
def test_the_recommended_run_scores_wherever_the_ledger_has_it(
    sealed: tuple[Sweep, Sealed], train: dict[str, Any], scored: bool
) -> None:
    """Run in this very directory, which then holds the plan of that one run; and when the sweep is back again."""
    sweep, _ = sealed
    n = sizes_about(NEXT)[0]
    content = spec_with([NEXT], one_budget=True, **train).model_dump(mode="json")
    content["budgets"] = [{"flops": NEXT, "sizes": [n]}]
    alone = run_in(local_path(sweep.paths.root), make_spec(content, "test"))
    assert alone.spec.is_one_run and len(alone.results) == 1
    score = scores_of(alone).scores[0]
    assert score.inside is (True if scored else None)
    assert scored or "another recipe (train.batch_size: 500 -> 250)" in score.message
    back = run_in(local_path(sweep.paths.root), spec_with(BUDGETS))
    assert len(back.results) == 28
    (again, *_) = scores_of(back).scores
    assert again == score if scored else again.inside is None
    if scored:
        assert (again.params, again.observed) == (n, alone.results[0].loss)


def test_another_directory_scores_with_its_minimum(sealed: tuple[Sweep, Sealed], tmp_path: Path) -> None:
    sweep, _ = sealed
    other = run_in(tmp_path / "other", spec_with([3.16e19, NEXT]))
    found = Result(sweep).scores(local_path(other.paths.root))
    assert [(s.quantity, s.inside) for s in found.scores] == [("L", True), ("N_opt", True)]
    assert found.calibration == ("2 of 2 inside 95 %",)


def test_a_prediction_for_hours_says_all_that_one_for_a_budget_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = run_in(tmp_path / "s", spec_with(BUDGETS), data=replace(DATA, train_samples=10**11)).paths.root
    assert call("predict", "1e22", root, "--json") == 0
    of_budget = json.loads(capsys.readouterr().out)
    seconds = SPEED * of_budget["params"] ** 0.8 * of_budget["tokens"]
    asked = ("predict", "--hours", seconds / 3600, root)
    assert call(*asked, "--json") == 0
    of_time = json.loads(capsys.readouterr().out)
    assert of_budget.keys() | {"seconds", "timed_runs", "cost"} == of_time.keys()
    assert of_time["seconds"] == pytest.approx(seconds)
    assert of_time["budget"] == pytest.approx(6 * of_time["params"] * of_time["tokens"], rel=1e-3)
    assert of_time["budget"] == pytest.approx(1e22, rel=0.1)  # nearly the same optimum for hours as for FLOPs
    for name in ("params", "tokens", "loss"):
        low, high = of_time[f"{name}_interval"]
        assert low < of_time[name] < high
    low, high = of_time["loss_interval_of_one_run"]
    assert low < of_time["loss_interval"][0] < of_time["loss_interval"][1] < high
    assert of_time["run"]["seconds"] == pytest.approx(seconds, rel=0.1)
    note = "epochs of the sweep's data: give more data, or they are repeated"
    assert note in of_budget["run"]["notes"][-1] and note in of_time["run"]["notes"][-1]
    assert call(*asked) == 0
    said = capsys.readouterr().out
    assert (
        "EXTRAPOLATION BY" in said
        and "of one new run [" in said
        and f"note: D is {of_time['run']['epochs']:.3g}" in said
    )
