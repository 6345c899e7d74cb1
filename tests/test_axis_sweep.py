"""A sweep with a second axis: what is planned, run and answered, on worlds where the answer is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from flops_fit_ray.analysis import Points, fit_axis
from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import (
    AxisSizes,
    Experiment,
    Measurements,
    ModelSize,
    Observation,
    Plan,
    Planner,
    plan_from_json,
)
from flops_fit_ray.planning.loss_surfaces import BESIROGLU_CONSTANTS, additive
from flops_fit_ray.report.page import render, render_markdown, summary_to_json
from flops_fit_ray.report.write import write_tables
from flops_fit_ray.spec import SweepSpec, make_spec
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.axis_runs import axes_of, axis_runs
from flops_fit_ray.sweep.changes import changes_since, recorded_in
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.validity import analysis_document, validity_card
from flops_fit_ray.tables import read_table
from flops_fit_ray.training.preflight.model_size import measure_sizes
from tests.parts import TruncatedRegression, power_law_regression, spec_of, user_parts_of
from tests.sweeps import KNOWN_TRAIN, grow_sweep
from tests.test_cli import call
from tests.worlds import DATA, SIZES, adaptive_spec, of_role, run_in_rounds

# A made-up axis: at depth 2 a model of the same N is worse, and wants to be larger
E, A, B, ALPHA, BETA = BESIROGLU_CONSTANTS
DEEP = additive("depth 2", (E, 1.15 * A, 0.97 * B, ALPHA, BETA))
FLAT = additive("depth 1", BESIROGLU_CONSTANTS)
NOISE = 0.003


def at_depth(size: ModelSize, depth: int) -> ModelSize:
    """The same model at a depth, with a third more parameters at depth 2."""
    n = round(size.params * 4 / 3) if depth == 2 else size.params
    return replace(
        size, size=f"width={size.size},depth={depth}", kwargs={**size.kwargs, "depth": depth}, params=n, params_total=n,
        flops_per_token=6.0 * n, axis={"depth": depth}, without_axis=size.size,
    )  # fmt: skip


def deep_planner(depths: list[int], **changes: Any) -> Planner:
    axes = {"depth": {"values": depths, **changes.pop("axis", {})}} if depths else {}
    spec = adaptive_spec(model={"target": "m:G", "size_param": "width", "axes": axes}, **changes)
    found = AxisSizes(name="depth", base=1, base_source="model.kwargs",
                      sizes=tuple(at_depth(size, depth) for depth in depths for size in SIZES))  # fmt: skip
    return Planner(spec, Measurements(sizes=SIZES, data=DATA, axes=(found,) if depths else ()))


def observed(e: Experiment) -> Observation:
    surface = DEEP if e.size_kwargs.get("depth", 1) == 2 else FLAT
    noise = np.random.default_rng(int(e.key, 16)).standard_normal()
    return Observation(loss=float(surface.loss(e.params, e.tokens)) + NOISE * noise)


@pytest.fixture(scope="module")
def with_axis() -> tuple[Plan, dict[str, Observation]]:
    return run_in_rounds(deep_planner([2]), observed)


def test_the_sweep_itself_is_what_it_is_without_an_axis(with_axis: tuple[Plan, dict[str, Observation]]) -> None:
    alone, _ = run_in_rounds(deep_planner([]), observed)
    assert [e for e in with_axis[0].experiments if e.role != "axis"] == list(alone.experiments)
    assert alone.to_json()["frame"] == with_axis[0].to_json()["frame"] and alone.notes == with_axis[0].notes


def test_as_many_held_out_samples_are_evaluated_as_without_an_axis() -> None:
    """They are as many as cost a tenth of the training: of the sweep itself, whose losses must not change."""
    data = replace(DATA, eval_samples=10**10)
    limits = []
    for depths in ([], [2, 3]):
        planner = deep_planner(depths)
        limits.append(Planner(planner.spec, replace(planner.measurements, data=data)).cells.constants.eval_samples)
    assert limits[0] is not None and limits[0] == limits[1] and limits[0] < data.eval_samples


def test_a_value_is_run_at_three_sizes_beside_the_minima_of_two_cheap_budgets(
    with_axis: tuple[Plan, dict[str, Observation]],
) -> None:
    plan = with_axis[0]
    found = of_role(plan, "axis")
    assert [e.budget for e in found] == [1e17] * 3 + [1e18] * 3 and {e.axis for e in found} == {"depth=2"}
    for c in (1e17, 1e18):
        here = [e for e in found if e.budget == c]
        best = FLAT.optimum(c)[0]
        assert here[0].params < best < here[-1].params and all(best / 3 < e.params < best * 3 for e in here)
        for e in here:  # D from C as always
            assert e.flops == pytest.approx(c, rel=0.01) and e.flops == e.tokens * e.flops_per_token
            assert e.recipe.lr == pytest.approx(1e-3 * (e.params / 1e7) ** -0.25)
    assert sum(e.flops for e in found) < 0.07 * sum(e.flops for e in plan.experiments)
    assert plan_from_json(json.loads(json.dumps(plan.to_json()))).experiments == plan.experiments
    text = str(plan)
    assert "axis depth: 2 beside 1 of the sweep itself (model.kwargs); 6 experiments of these at C = 1e17, 1e18" in text
    assert "width=" in text and plan.final


def test_the_price_forecasts_the_runs_of_an_axis() -> None:
    plan = deep_planner([2, 3]).plan({})
    assert sum(e.role == "axis" for e in plan.forecast) == 12 and not plan.final


def test_the_answer_is_the_known_one(with_axis: tuple[Plan, dict[str, Observation]]) -> None:
    plan, losses = with_axis
    runs = [e for e in plan.experiments if e.role in ("grid", "seed", "axis")]
    c, n, d, loss = np.array([(e.budget, e.params, e.tokens, losses[e.key].loss) for e in runs]).T
    values = [float(e.size_kwargs.get("depth", 1)) for e in runs]
    axis = fit_axis(Points(budget=c, flops=6 * n * d, params=n, tokens=d, loss=loss), "depth", values, draws=300)
    assert axis.told and [row.budget for row in axis.budgets] == [1e17, 1e18] and axis.sigma < 2 * NOISE
    for row in axis.budgets:
        truth = DEEP.optimum(row.budget)[2] - FLAT.optimum(row.budget)[2]
        one = row.values[1]
        assert one.interval is not None and one.interval.holds(truth)
        assert one.interval.high - one.interval.low < 0.03 < truth  # narrow, and clear of nothing


@pytest.mark.parametrize(("budgets", "count"), [("all", 5), ([1e19], 1), ([1e17, 3.16e17], 2)])
def test_budgets_of_an_axis_are_chosen_by_the_spec(budgets: Any, count: int) -> None:
    plan, _ = run_in_rounds(deep_planner([2], axis={"budgets": budgets, "sizes": 2}), observed)
    found = of_role(plan, "axis")
    assert len(found) == 2 * count and len({e.budget for e in found}) == count


def test_what_no_size_can_do_is_said_and_left_out() -> None:
    planner = deep_planner([2, 3])
    axis = planner.measurements.axes[0]
    for least, why in ((1e11, "as no size is near the sweep's minimum; the nearest, width="),
                       (5e12, "as none of the sizes has enough steps and data there; two are needed")):  # fmt: skip
        some = tuple(s for s in axis.sizes if s.axis["depth"] == 2 or s.params > least)
        found = Planner(planner.spec, replace(planner.measurements, axes=(replace(axis, sizes=some),)))
        plan, _ = run_in_rounds(found, observed)
        assert {e.axis for e in of_role(plan, "axis")} == {"depth=2"}
        assert f"depth = 3 at C = 1e18: left out, {why}" in "\n".join(plan.notes)


def test_the_limit_of_experiments_counts_an_axis_last() -> None:
    alone, _ = run_in_rounds(deep_planner([]), observed)
    limit = len(alone.experiments) + 2
    plan, _ = run_in_rounds(deep_planner([2], grid={"max_experiments": limit}), observed)
    assert len(plan.experiments) == limit and len(of_role(plan, "axis")) == 2
    assert f"grid.max_experiments = {limit} is reached: 4 of 6 runs of model.axes are left out" in "\n".join(plan.notes)


def test_a_larger_budget_added_later_leaves_the_runs_of_an_axis_alone() -> None:
    first = deep_planner([2])
    plan, _ = run_in_rounds(first, observed)
    spec = adaptive_spec(budgets=[*(b.flops for b in first.spec.budgets), 1e20],
                         model={"target": "m:G", "size_param": "width", "axes": {"depth": [2]}})  # fmt: skip
    wider, _ = run_in_rounds(Planner(spec, first.measurements, plan.constants), observed)
    assert {e.key for e in of_role(plan, "axis")} == {e.key for e in of_role(wider, "axis")}


# The spec, and models that are measured

WRONG = {
    "depth": ({"axes": {"width": [2]}}, "model: axes.width makes the size of the model"),
    "list": ({"axes": {"shift": 2}}, "must be a list of values such as"),
    "nan": ({"axes": {"shift": [math.nan]}}, "must be a finite number, a word, true or false (got nan)"),
    "nested": ({"axes": {"shift": [[1, 2]]}}, "must be a finite number, a word, true or false (got [1, 2])"),
    "twice": ({"axes": {"shift": [2, 2.0]}}, "[2.0] are given twice"),
    "base": ({"axes": {"shift": [2]}, "kwargs": {"shift": 2}}, "2 is the sweep's own value (kwargs); give others too"),
    "none": ({"axes": {"shift": []}}, "model.axes.shift.values"),
    "three": ({"axes": {"a": [2], "b": [2], "c": [2]}}, "model.axes"),
    "budgets": ({"axes": {"shift": {"values": [2], "budgets": [7e5]}}}, "[700000.0] are no budgets of this sweep"),
    "one size": ({"axes": {"shift": {"values": [2], "sizes": 1}}}, "model.axes.shift.sizes"),
    "unknown": ({"axes": {"shift": {"value": [2]}}}, "model.axes.shift.value: unknown key"),
}


class Shifted(TruncatedRegression):
    """Evaluated `shift` too high: its held-out loss is `shift`² higher, at any size."""

    def __init__(self, features: int, shift: float = 0.0, other: int | None = None, form: Any = ()) -> None:
        super().__init__(features)
        if shift > 5:
            raise ValueError("too far")
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        signs = 1 - 2 * (torch.arange(len(x)) % 2)[:, None]
        return super().forward(x) + (0 if self.training else self.shift * signs)


def shifted_spec(axes: dict[str, Any], **model: Any) -> SweepSpec:
    sizes = [{"flops": 5e4 * 4**i, "sizes": [round(17 * 2**i * 2 ** (k / 2)) for k in range(-2, 3)]} for i in range(2)]
    named = {"target": "tests.test_axis_sweep:Shifted", "size_param": "features", "axes": axes}
    data = {"train": "tests.parts:power_law_regression"}
    return spec_of(
        name="known", fit={"draws": 200}, model={**named, **model}, data=data, budgets=sizes, train=KNOWN_TRAIN
    )


@pytest.mark.parametrize(("model", "said"), WRONG.values(), ids=WRONG)
def test_an_axis_that_cannot_be_is_refused_before_anything_is_built(model: dict[str, Any], said: str) -> None:
    whole = {"target": "m:G", "size_param": "width", **model}
    with pytest.raises(SpecError) as refused:
        make_spec({"model": whole, "data": {"train": "m:t"}, "budgets": [1e17, 1e18]}, "test")
    assert any(said in fault for fault in refused.value.faults), refused.value.faults


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"shfit": [1]}, "model.axes: Shifted takes no argument 'shfit'; did you mean 'shift'?"),
        ({"shift": [0.0]}, "model.axes.shift: 0.0 is the sweep's own value (the constructor's default)"),
        ({"shift": [0.5, 9]}, "model.axes.shift: at shift = 9 no size can be built: "),
        ({"form": ["a"]}, "model.axes.form: the sweep's own value is a tuple (the constructor's default)"),
    ],
)
def test_a_model_that_has_no_such_values_is_refused(axes: dict[str, Any], said: str) -> None:
    spec = shifted_spec(axes)
    with pytest.raises(SpecError) as refused:
        measure_sizes(spec, user_parts_of(spec, model=Shifted, train=power_law_regression(100)))
    assert any(said in fault for fault in refused.value.faults), refused.value.faults


def test_the_own_value_is_that_of_kwargs_or_the_default() -> None:
    own = {"kwargs": {"shift": 0.25}}
    for model, base, source in (({}, 0.0, "the constructor's default"), (own, 0.25, "model.kwargs")):
        spec = shifted_spec({"shift": [0.0, 0.25, 0.5], "other": [3]}, **model)
        shift, other = measure_sizes(spec, user_parts_of(spec, model=Shifted, train=power_law_regression(100))).axes
        assert (shift.base, shift.base_source, other.base) == (base, source, None)
        assert shift.values == [v for v in (0.0, 0.25, 0.5) if v != base] and other.values == [3]


# Runs


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Sweep]:
    """A sweep of real trainings, without and with an axis: in one directory, one after the other."""
    root = tmp_path_factory.mktemp("shifted") / "known"
    alone = shifted_spec({})
    both = shifted_spec({"shift": [0.5], "other": [3]})
    first = grow_sweep(root, alone, user_parts_of(alone, model=Shifted, train=power_law_regression()))
    before = {r.key for r in first.results}
    planner = Planner(both, measure_sizes(both, user_parts_of(both, model=Shifted, train=power_law_regression())),
                      first.plan.constants)  # fmt: skip
    plan = planner.plan({r.key: Observation(loss=r.loss) for r in first.results})
    changes = changes_since(recorded_in(first.paths), both, plan)
    assert (changes.changed, changes.dropped) == (0, 0)
    second = grow_sweep(root, both, user_parts_of(both, model=Shifted, train=power_law_regression()))
    assert before == {r.key for r in second.results if r.axis is None}
    return first, second


def test_the_fit_is_the_same_to_the_digit(shifted: tuple[Sweep, Sweep]) -> None:
    alone, both = shifted
    assert len(both.results) == len(alone.results) + 12 and both.complete
    assert both.warnings == alone.warnings
    ours, theirs = (analysis_document(sweep.analysis, validity_card(sweep.fit, sweep)) for sweep in (both, alone))
    assert ours == theirs


def test_the_axis_of_a_directory_is_answered(shifted: tuple[Sweep, Sweep], capsys: pytest.CaptureFixture[str]) -> None:
    """The shift's square is the difference, whatever C is; the other argument does nothing, to the bit."""
    both = shifted[1]
    axes = {axis.name: axis.fit for axis in axes_of(both)}
    shift, other = axes["shift"], axes["other"]
    assert shift is not None and other is not None and len(shift.budgets) == 2
    for row in shift.budgets:
        one = next(one for one in row.values if one.value == 0.5)
        assert one.interval is not None and one.runs == 3 and one.interval.high - one.interval.low < 0.03
        assert one.difference == pytest.approx(
            0.25, abs=0.02
        )  # the held-out samples are few: 2·shift·mean(error) is .01
    assert shift.told and not other.told
    assert set(axis_runs([both], "other").values) == {"None", "3"}
    assert call("axis", both.paths.root, "--of", "shift", "--draws", "100") == 0
    assert "shift changes the loss at equal C" in capsys.readouterr().out
    assert call("axis", both.paths.root, "--of", "features") in (1, 2)


def test_tables_and_reports_name_the_value(shifted: tuple[Sweep, Sweep]) -> None:
    both = shifted[1]
    frame = both.to_frame()
    assert frame["size"].dtype == "int64" and set(frame["axis"].dropna()) == {"shift=0.5", "other=3"}
    assert frame[frame["axis"].isna()]["key"].tolist() == [e.key for e in shifted[0].plan.experiments]
    write_tables(both)
    assert pd.read_parquet(local_path(both.paths.results_parquet))["axis"].notna().sum() == 12
    table = read_table(local_path(both.paths.results_csv))
    assert len(table.points) == len(both.points) and any(f.code == "other_values_left_out" for f in table.flags)
    for text in (render(both, (), {}), render_markdown(both, (), {})):
        assert "shift changes the loss at equal C" in text and "other is not told apart from no effect" in text
    summary = summary_to_json(both)
    assert [axis["name"] for axis in summary["axes"]] == ["shift", "other"] and summary["axes"][0]["fit"]["told"]


def test_models_of_an_axis_are_trained_with_its_value(shifted: tuple[Sweep, Sweep]) -> None:
    for e in shifted[1].plan.experiments:
        assert isinstance(Shifted(**e.size_kwargs), nn.Module)
        assert e.size_kwargs.get("shift", 0.0) == (0.5 if e.axis == "shift=0.5" else 0.0)
