"""A program written for flops-fit runs with another import: arguments, names, errors, what is printed and written."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import flops_fit_ray
from flops_fit_ray import Result, find_optimal
from flops_fit_ray.errors import DirectoryError
from flops_fit_ray.sweep import Experiment, SweepPlan
from tests.parts import Mlp


class Counted:
    """A model that cannot be run, and says its N."""

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        self.width, self.depth = width, depth

    def num_params(self) -> int:
        return 100 * self.width * self.depth


class Uncounted:
    def __init__(self, width: int = 64) -> None:
        pass


SAMPLES = TensorDataset(torch.randn(64, 8), torch.randn(64, 1))


def test_the_arguments_stand_in_the_same_order() -> None:
    names = list(inspect.signature(find_optimal).parameters)
    assert names == ["model_cls", "model_size_param", "model_kwargs", "dataset", "loss_fn", "compute_budgets", "train",
                     "mode", "output_dir", "resume", "options"]  # fmt: skip
    assert inspect.signature(find_optimal).parameters["mode"].default == "local"
    plan = find_optimal(Counted, "width", {"depth": 2}, None, None, [1e15, 1e16], False, "local")
    assert {e.num_params for e in plan.experiments} == {200 * e.size_param_value for e in plan.experiments}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model_cls": Uncounted}, "num_params"),
        ({"model_cls": Uncounted, "dataset": [1, 2, 3], "loss_fn": 42}, "num_params"),
        ({"dataset": [1, 2, 3]}, "Expected a torch.utils.data.Dataset"),
        ({"dataset": "train.csv", "compute_budgets": [1e15, 1e16]}, "Expected a torch.utils.data.Dataset"),
        ({"loss_fn": 42}, "loss_fn must be callable"),
        ({"loss_fn": nn.MSELoss, "dataset": SAMPLES}, "loss_fn: MSELoss is a class"),
        ({"model_size_param": "breadth", "compute_budgets": [1e15, 1e16]}, "breadth"),
    ],
)
def test_faults_are_type_errors_and_value_errors(arguments: dict[str, Any], words: str) -> None:
    for kind in (TypeError, ValueError, flops_fit_ray.SpecError):
        with pytest.raises(kind, match=words):
            find_optimal(**{"model_cls": Counted, "model_size_param": "width", **arguments})


def test_a_call_without_budgets_only_validates() -> None:
    both: list[dict[str, Any]] = [{}, {"dataset": SAMPLES, "loss_fn": nn.MSELoss()}]
    for given in both:
        with pytest.raises(NotImplementedError, match="model validation passed"):
            find_optimal(Counted, "width", **given)


def test_a_plan_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    plan: Any = find_optimal(Counted, "width", compute_budgets=[1e15, 1e16])
    assert "no dataset is given, so this is a plan" in capsys.readouterr().out
    assert isinstance(plan, SweepPlan) and isinstance(plan.experiments[0], Experiment)
    assert plan.compute_budgets == [1e15, 1e16] and plan.size_param == "width" and plan.model_cls_name == "Counted"
    assert plan.num_experiments == len(plan.experiments) and plan.total_flops == plan.flops
    assert f"{plan.num_experiments} experiments" in repr(plan) and "lr probe" in str(plan)  # as `plan` prints it
    for e in plan.experiments:  # C = 6·N·D but for half a batch of 32 tokens
        assert (e.compute_budget, e.experiment_id) == (e.budget, e.key)
        assert abs(6 * e.num_params * e.num_tokens - e.compute_budget) <= 6 * e.num_params * 16
        assert e.tokens_per_param == e.num_tokens / e.num_params
    assert any("no data were measured" in warning for warning in plan.warnings)


def test_one_budget_can_be_planned_and_not_run(tmp_path: Path) -> None:
    plan = find_optimal(Counted, "width", compute_budgets=[1e15], train=False)
    assert plan.compute_budgets == [1e15] and len({e.params for e in plan.experiments}) >= 3
    assert any("one budget gives no law" in warning for warning in plan.warnings)
    with pytest.raises(ValueError, match="budgets: has 1 budget"):
        find_optimal(Mlp, "width", None, SAMPLES, "mse", [1e6], output_dir=tmp_path / "run")


def test_flops_without_data_are_the_users_where_they_are_given() -> None:
    plan = find_optimal(
        Counted, "width", compute_budgets=[1e15, 1e16], train=False, flops_per_token=lambda m: 8.0 * m.num_params()
    )
    assert {e.flops_per_token / e.params for e in plan.experiments} == {8.0}


@pytest.fixture(scope="module")
def mocked(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return mock_in(tmp_path_factory.mktemp("mock") / "outputs")


def mock_in(output: Path) -> Result:
    given: dict[str, Any] = {"sizes": [16, 32, 64, 128, 256, 512], "quiet": True, "draws": 200, "lr": 1e-3}
    budgets = [1e8, 3e8, 1e9, 3e9]
    return find_optimal(Mlp, "width", None, SAMPLES, nn.MSELoss(), budgets, True, "mock", output, **given)


def test_a_mocked_sweep_finds_the_surface_that_it_was_made_of(mocked: Result) -> None:
    law = mocked.fit.params_opt  # N_opt ~ C^(beta/(alpha+beta)) on Besiroglu's surface
    assert law is not None and law.exponent == pytest.approx(0.3658 / (0.3478 + 0.3658), abs=0.03)
    assert mocked.complete and mocked.compute_budgets == [1e8, 3e8, 1e9, 3e9]
    assert any("nothing is trained" in warning for warning in mocked.warnings)


def test_the_next_runs_of_a_mocked_sweep_have_the_price_of_real_ones(mocked: Result) -> None:
    chosen = mocked.next_runs(2, 3e10)
    planned = sum(e.flops_executed for e in mocked.plan.experiments)
    assert chosen.spent == pytest.approx(planned) and 0 < chosen.flops <= 2 * planned


def test_a_prediction_is_a_mapping(mocked: Result) -> None:
    answer = mocked.predict(compute_budget=1e11)
    assert answer == mocked.predict(1e11) and isinstance(answer, dict)
    assert dict(answer) == {
        "target_compute": 1e11,
        "optimal_params": int(answer.params),
        "optimal_tokens": int(answer.tokens),
        "expected_loss": answer.loss,
        "tokens_per_param": answer.tokens / answer.params,
    }
    assert json.loads(json.dumps(answer))["optimal_params"] == int(answer.params)
    with pytest.raises(TypeError, match="a number of FLOPs"):
        mocked.predict("1e11")  # type: ignore[arg-type] # on purpose


def test_the_table_prints_as_markdown(mocked: Result) -> None:
    table = mocked.chinchilla_table([1e10, 1e11])
    head, rule, *rows = str(table).splitlines()
    assert head.startswith("| Compute Budget | Optimal N | Optimal D | D/N Ratio | Predicted Loss |")
    assert set(rule) == {"|", "-"} and len(rows) == 2
    cells = [cell.strip() for cell in rows[1].strip("|").split("|")]
    answer = mocked.predict(1e11)
    assert cells[:3] == ["1.00e+11", f"{int(answer.params):,}", f"{int(answer.tokens):,}"]
    assert cells[3:5] == [f"{answer.tokens / answer.params:.1f}", f"{answer.loss:.4f}"]
    assert "Compute Budget" not in str(table.head(1)) and list(table["budget"]) == [1e10, 1e11]


def test_results_json_has_a_row_per_experiment(mocked: Result) -> None:
    rows = json.loads((Path(str(mocked.output_dir)) / "results.json").read_text())
    known = {e.experiment_id: e for e in mocked.plan.experiments}
    assert len(rows) == len(known) and {row["status"] for row in rows} == {"completed"}
    for row in rows:
        e = known[row["experiment_id"]]
        assert (row["compute_budget"], row["model_size"], row["num_tokens"]) == (e.budget, e.params, e.tokens)
        assert row["actual_flops"] == pytest.approx(e.flops)
        surface = 1.8172 + 482.01 / e.params**0.3478 + 2085.43 / e.tokens**0.3658
        assert abs(row["final_loss"] - surface) < 0.05  # 5 standard deviations


def test_plots_are_saved_and_listed(mocked: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    shown: list[int] = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.extend(pyplot.get_fignums()))
    assert len(mocked.plot(show=False)) == 2 and shown == []
    assert {path.name for path in (Path(str(mocked.output)) / "plots").iterdir()} == {"valleys.png", "laws.png"}
    mocked.plot(True)
    assert len(shown) == 2
    pyplot.close("all")


def test_mocked_and_real_losses_never_meet(mocked: Result, tmp_path: Path) -> None:
    tiny: dict[str, Any] = {"sizes": [2, 4, 8], "lr": 0.1, "batch_size": 4, "max_epochs": 9, "quiet": True}
    with pytest.raises(DirectoryError, match="holds synthetic losses"):
        find_optimal(Mlp, "width", None, SAMPLES, "mse", [4e3, 8e3], True, "local", str(mocked.output), **tiny)
    (tmp_path / "results.json").write_text("[]")  # of flops-fit itself
    with pytest.raises(DirectoryError, match="is of another program and would be overwritten"):
        mock_in(tmp_path)
