"""A second axis, on surfaces where what it does is known in closed form."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flops_fit_ray import compare_axis
from flops_fit_ray.analysis import AxisFit, Points, fit_axis
from flops_fit_ray.console.axis_text import axis_text
from flops_fit_ray.errors import ArgumentError, FitError, SpecError
from flops_fit_ray.spec import FitSection
from flops_fit_ray.sweep.axis_runs import axis_runs
from tests.sweeps import make_sweep, reference_parts, reference_spec
from tests.test_cli import call

BUDGETS = (1e17, 3e17, 1e18)
VALUES = (4.0, 8.0, 16.0, 32.0)
REFERENCE = 8.0
CURVE, BEST, SHIFT = 0.02, 12.0, 0.15  # of the loss over ln x, in x, and of ln N over ln x


def valley(c: float, n: float, x: float) -> float:
    """A parabola in ln N whose middle falls with x: L_opt(C) + 0.05·(ln N - ln N_opt + SHIFT·z)² + h(z) - h(0)."""
    z, best = math.log(x / REFERENCE), math.log(BEST / REFERENCE)
    n_opt = 2e7 * math.sqrt(c / 1e17)
    level = 1.7 + 2.0 * math.pow(c / 1e17, -0.1)
    return (
        level + 0.05 * math.log(n * math.pow(x / REFERENCE, SHIFT) / n_opt) ** 2 + CURVE * ((z - best) ** 2 - best**2)
    )


def difference(x: float) -> float:
    z, best = math.log(x / REFERENCE), math.log(BEST / REFERENCE)
    return CURVE * ((z - best) ** 2 - best**2)


def runs(noise: float = 0.0, seed: int = 0, cross: bool = False, effect: bool = True) -> tuple[Points, list[float]]:
    """A grid of sizes for every value, or seven sizes of the reference and two of each other value."""
    rng, rows = np.random.default_rng(seed), []
    for c in BUDGETS:
        for x in VALUES:
            factors = np.geomspace(1 / 4, 4, 7 if x == REFERENCE else 5)
            for n in 2e7 * (c / 1e17) ** 0.5 * (factors if not cross or x == REFERENCE else np.array([0.7, 1.6])):
                loss = valley(c, n, x if effect else REFERENCE) + noise * rng.standard_normal()
                rows.append((c, n, c / 6 / n, loss, x))
    c, n, d, loss, x = np.array(rows).T
    return Points(budget=c, flops=c, params=n, tokens=d, loss=loss), [float(value) for value in x]


def fitted(*, draws: int = 400, **how: object) -> AxisFit:
    points, values = runs(**how)  # type: ignore[arg-type] # of `runs`
    return fit_axis(points, "experts", values, reference=REFERENCE, draws=draws)


@pytest.mark.parametrize("cross", [False, True])
def test_without_noise_the_truth_comes_out(cross: bool) -> None:
    axis = fitted(cross=cross)
    assert axis.scale == "log" and axis.told and axis.moves_size and [b.budget for b in axis.budgets] == list(BUDGETS)
    for c, budget in zip(BUDGETS, axis.budgets, strict=True):
        level = 1.7 + 2.0 * (c / 1e17) ** -0.1
        for one in budget.values:
            assert one.difference == pytest.approx(difference(float(one.value)), abs=1e-9)
            n_opt = 2e7 * (c / 1e17) ** 0.5 * (REFERENCE / float(one.value)) ** SHIFT
            assert one.params_opt == pytest.approx(n_opt, rel=1e-6)
        assert budget.slope == pytest.approx(-2 * CURVE * math.log(BEST / REFERENCE) / level, rel=1e-6)
        assert budget.best == pytest.approx(BEST, rel=0.01) and not budget.at_edge


def test_a_better_value_is_worth_compute() -> None:
    """At a budget in the middle, by the slope of the reference's L_opt between the budgets beside it."""
    middle = fitted().budgets[1]
    level = [1.7 + 2.0 * (c / 1e17) ** -0.1 for c in BUDGETS]
    slope = (level[2] - level[0]) / math.log(BUDGETS[2] / BUDGETS[0])
    one = next(one for one in middle.values if one.value == 16)
    assert one.difference < 0 and one.compute == pytest.approx(math.exp(one.difference / slope), rel=1e-6)
    assert one.compute > 1 and next(one for one in middle.values if one.value == 4).compute < 1  # type: ignore[operator]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """And a value that does nothing is told apart from nothing in one sweep of twenty."""
    held, best, told = [], [], 0
    for seed in range(24):
        axis = fitted(noise=0.005, seed=seed, cross=seed % 2 == 0, draws=200)
        for budget in axis.budgets:
            assert budget.best_interval is not None
            best.append(budget.best_interval.holds(BEST))
            found = [(one.interval, difference(float(one.value))) for one in budget.values if one.value != REFERENCE]
            held += [interval.holds(truth) for interval, truth in found if interval is not None]
        told += fitted(noise=0.005, seed=1000 + seed, effect=False, draws=1).told
    assert len(held) == 24 * 9 and 0.90 <= np.mean(held) <= 0.99
    assert np.mean(best) >= 0.90 and told <= 4


def test_kinds_have_a_difference_each_and_no_slope() -> None:
    points, values = runs(noise=0.0005)
    names = {4.0: "relu", 8.0: "gelu", 16.0: "swiglu", 32.0: "tanh"}
    axis = fit_axis(points, "act", [names[x] for x in values], reference="gelu", draws=300)
    assert axis.scale == "kinds" and axis.told
    for budget in axis.budgets:
        assert budget.slope is None and budget.best == "swiglu" and budget.best_share > 0.9 and not budget.at_edge
        for one in budget.values:
            truth = difference(next(x for x, name in names.items() if name == one.value))
            assert one.difference == pytest.approx(truth, abs=0.002)
    text = axis_text(axis)
    assert "act changes the loss at equal C" in text and "best act at C = 1e18: swiglu, in " in text


def test_a_value_run_at_one_size_is_taken_to_have_the_same_best_size() -> None:
    points, values = runs(cross=True)
    order = np.lexsort((points.params, points.budget))
    seen, keep = set(), []
    for i in order:
        if values[i] == REFERENCE or (points.budget[i], values[i]) not in seen:
            keep.append(i)
        seen.add((points.budget[i], values[i]))
    some = points.pick(np.array(sorted(keep)))
    # One size each, and at another N for each budget: the size of the shift is not told, so it is left out
    axis = fit_axis(some, "experts", [values[i] for i in sorted(keep)], reference=REFERENCE, scale="kinds", draws=100)
    assert axis.runs == 3 * 10 and [len(budget.values) for budget in axis.budgets] == [4, 4, 4]


def test_runs_that_cannot_tell_are_refused() -> None:
    points, values = runs()
    with pytest.raises(FitError, match="an axis has 2 to 50 values; all runs have experts 8"):
        fit_axis(points, "experts", [8.0] * len(points))
    with pytest.raises(FitError, match="an axis has 2 to 50 values; experts has"):
        fit_axis(points, "experts", list(np.arange(len(points), dtype=float)))
    with pytest.raises(FitError, match="no run has experts 5; they have 4, 8, 16, 32"):
        fit_axis(points, "experts", values, reference=5.0)
    with pytest.raises(FitError, match="its scale is kinds"):
        fit_axis(points, "act", [str(x) for x in values], scale="log")
    with pytest.raises(FitError, match="which has no logarithm"):
        fit_axis(points, "bias", [x - 4 for x in values], scale="log")
    one = points.budget == BUDGETS[0]
    few = points.pick(one & (np.array(values) >= 16))
    with pytest.raises(FitError, match=r"3 runs more than those are needed|three sizes"):
        fit_axis(few.pick(np.arange(5)), "experts", [16.0, 16.0, 32.0, 16.0, 16.0])


def write(path: Path, kinds: bool = False) -> Path:
    points, values = runs(noise=0.002)
    names: list[object] = [f"k{int(x)}" if kinds else int(x) for x in values]
    frame = {"flops": points.flops, "params": points.params, "tokens": points.tokens, "loss": points.loss}
    pd.DataFrame({**frame, "experts": names}).to_csv(path, index=False)
    return path


def test_a_table_is_asked_by_command_and_in_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "runs.csv")
    assert call("axis", path, "--of", "experts", "--reference", "8", "--draws", "200", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["reference"] == 8 and said["told"] and len(said["budgets"]) == 3
    one = said["budgets"][0]["values"][2]
    assert one["value"] == 16 and one["interval"][0] < one["difference"] < one["interval"][1]
    axis = compare_axis(path, "experts", reference=8.0, draws=200)
    assert axis.budgets[0].values[2].difference == one["difference"]
    assert call("axis", path, "--of", "experts", "--draws", "200") == 0
    out = capsys.readouterr().out
    assert "d ln L / d ln experts = " in out and "best experts at C = 1e18: 12." in out
    kinds, figure = write(tmp_path / "kinds.csv", kinds=True), tmp_path / "axis.svg"
    assert call("axis", kinds, "--of", "experts", "--draws", "50", "--figure", figure) == 0
    assert "k16" in capsys.readouterr().out and "k32" in figure.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--of", "expert"], "--of expert: there is no such column; did you mean 'experts'"),
        (["--of", "experts", "--reference", "many"], "--reference many: the values of experts are numbers"),
        (["--of", "experts", "--where", "experts=8"], "all runs have experts 8"),
    ],
)
def test_what_is_no_axis_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("axis", write(tmp_path / "runs.csv"), *words) in (1, 2)
    assert said in capsys.readouterr().err


def test_sweeps_differ_in_an_argument_of_their_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep, and the same with losses that are 0.03 higher."""
    spec = reference_spec(fit=FitSection(draws=0))
    sweep = make_sweep(tmp_path / "known", spec, reference_parts(spec))
    both = [
        replace(
            sweep,
            spec=spec.model_copy(update={"model": spec.model.model_copy(update={"kwargs": {"depth": depth}})}),
            results=tuple(replace(result, loss=result.loss + more) for result in sweep.results),
        )
        for depth, more in ((2, 0.0), (4, 0.03))
    ]
    runs = axis_runs(both, "depth")
    axis = fit_axis(runs.points, "depth", runs.values, reference=2.0, draws=100, known=runs.flags)
    assert len(axis.budgets) == 3 and axis.told
    for budget in axis.budgets:
        assert budget.values[1].difference == pytest.approx(0.03, abs=1e-6)
    with pytest.raises(SpecError, match="no argument of the model is called feature; did you mean 'features'"):
        compare_axis(tmp_path / "known", "feature")
    with pytest.raises(ArgumentError, match="is a published law, and has no runs"):
        compare_axis("besiroglu2024", "depth")
    with pytest.raises(ArgumentError, match="scale: must be one of log, linear, kinds"):
        compare_axis(tmp_path / "known", "features", scale="exp")  # type: ignore[arg-type] # as a user might
    assert call("axis", tmp_path / "known", "--of", "features") == 1  # N and the axis are the same thing
    assert "do not tell the axis from the size" in capsys.readouterr().err
