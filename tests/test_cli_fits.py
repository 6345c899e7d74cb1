"""`fit`, `predict` and `compare` as a person with a table or a sweep uses them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flops_fit_ray.analysis import FitOptions, Question, Serving, SweepFit, answer, predict
from flops_fit_ray.cli._common import exit_code
from flops_fit_ray.report import write_report
from flops_fit_ray.spec import read_spec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.comparability import comparability
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.next_places import SweepSpace
from flops_fit_ray.sweep.recommend import recommend
from flops_fit_ray.sweep.recorded import record_spec
from tests.surfaces import BESIROGLU, BUDGETS, HOFFMANN, Surface, optimum, sweep_on
from tests.sweeps import make_sweep, reference_parts, reference_spec
from tests.test_cli import call

DATA = """import torch
def train():
    scale = torch.arange(1, 257) ** -0.5
    x = torch.randn(10_000, 256, generator=torch.Generator().manual_seed(0)) * scale
    return x, x @ scale[:, None]
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    spec = reference_spec()
    return make_sweep(tmp_path_factory.mktemp("known"), spec, reference_parts(spec))


def table_at(path: Path, surface: Surface = BESIROGLU, seed: int = 0, noise: float = 0.003) -> Path:
    points = sweep_on(surface, BUDGETS, noise=noise, seed=seed)
    frame = pd.DataFrame({"N": points.params, "D": points.tokens, "C": points.flops, "val loss": points.loss})
    frame.to_csv(path, index=False)
    return path


def test_any_table_can_be_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = table_at(tmp_path / "runs.csv")
    assert call("fit", table, "--at", "1e21") == 0
    out = capsys.readouterr().out
    assert "35 of 35 rows; params = 'N', tokens = 'D', flops = 'C', loss = 'val loss'" in out
    assert "N_opt(1e21) lies between" in out and "validity: " in out and "hold-out:" in out
    assert "surface, Huber loss (approach 3)" in out
    assert "\nBesiroglu et al. 2024 (Chinchilla's runs) at C = 1e20: N_opt x" in out
    assert call("fit", table, "--json", "--at", "1e21", "--draws", "500", "--seed", "3") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["bootstrap"]["draws"] == 500 and content["bootstrap"]["seed"] == 3
    assert content["table"]["columns"]["loss"] == "val loss" and content["table"]["refused"] == []
    assert len(content["validity"]) == 15
    assert content["published"]["law"] == "besiroglu2024" and 0.9 < content["published"]["params_ratio"] < 1.1
    assert content["methods"]["surface_huber"]["status"] == "converged"


def test_the_next_runs_of_a_sweep_are_cells_that_it_can_train(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fit", sweep.paths.root, "--draws", "200", "--next", "4", "--json") == 0
    content = json.loads(capsys.readouterr().out)["next_runs"]
    sizes = {s.size: s for s in sweep.plan.measurements.sizes}
    assert content["target"] == pytest.approx(1.6e7, rel=1e-3) and content["spent"] == sweep.flops_spent
    for run in content["runs"]:
        assert run["params"] == sizes[run["size"]].params and run["tokens"] % 4 == 0 and run["seconds"] > 0
    # 1) a larger budget goes on from the trunk of the size, and costs the steps after it
    space = SweepSpace(sweep)
    place = next(p for p in space.places(6.4e6, 136.0) if p.size == 136)
    parent = next(e for e in sweep.plan.experiments if (e.budget, e.size) == (1.6e6, 136))
    assert space.prices([place]) == [(place.tokens - 4 * parent.trunk_step) * parent.flops_per_token]
    # 2) the same cell again is a seed, from scratch; a budget between the two shares the trunk with both
    between = next(p for p in space.places(3.2e6, 136.0) if p.size == 136)
    assert space.prices([place, place])[1] == place.tokens * parent.flops_per_token
    shared = space.prices([place, between])
    assert shared[1] == (between.tokens - 4 * parent.trunk_step) * parent.flops_per_token
    assert sum(shared) < space.prices([place])[0] + 0.21 * between.tokens * parent.flops_per_token  # its decay alone
    # 3) neither fewer steps than the sweep's shortest, nor more data than there are
    shortest = min(e.steps for e in sweep.plan.experiments)
    assert all(p.tokens >= 4 * shortest for p in space.places(2e4, 24.0))
    assert space.places(1e12, 136.0) == []


def test_a_sweep_is_fitted_once(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its spec asks for other draws: that fit is nobody's question."""
    draws: list[int] = []
    fitted = Sweep.fitted

    def noted(self: Sweep, options: FitOptions) -> SweepFit:
        draws.append(options.draws)
        return fitted(self, options)

    monkeypatch.setattr(Sweep, "fitted", noted)
    assert sweep.fit_options.draws != 50 and call("fit", sweep.paths.root, "--draws", "50") == 0
    assert draws == [50] and "learning rate" in capsys.readouterr().out


def test_options_change_what_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = table_at(tmp_path / "runs.csv")

    def fitted(*options: str) -> dict[str, object]:
        assert call("fit", table, "--json", "--bootstrap", "0", *options) == 0
        return dict(json.loads(capsys.readouterr().out))

    assert fitted()["default_method"] == "valley"
    assert fitted("--method", "surface_squared")["n_opt"]["method"] == "surface_squared"  # type: ignore[index]
    assert fitted("--curve", "cubic")["valleys"][0]["curve"] == "cubic"  # type: ignore[index]
    assert fitted("--window", "5")["valleys"][0]["used"] == 5  # type: ignore[index]
    pinned = fitted("--pin", "E=1.8", "--pin", "alpha=0.35")["methods"]["surface_huber"]  # type: ignore[index]
    assert (pinned["E"], pinned["alpha"]) == pytest.approx((1.8, 0.35))
    deltas = {fitted("--delta", d)["methods"]["surface_huber"]["alpha"] for d in ("1e-3", "1e-1")}  # type: ignore[index]
    assert len(deltas) == 2
    assert fitted()["n_opt"]["exponent_ci95"] is None  # type: ignore[index]


def test_a_report_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = table_at(tmp_path / "runs.csv")
    with table.open("a") as file:
        file.write("1e9,1e9,6e18,\n")
    assert call("fit", table, "--report", tmp_path / "out", "--column", "loss=val loss") == 0
    capsys.readouterr()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "line 37" in page and "val loss is empty" in page
    assert "<h2>Sensitivity</h2>" in page and "Validity card" in page and "<script" not in page
    assert "flops-fit-ray fit" in page and "&#39;loss=val loss&#39;" in page
    names = {p.name for p in (tmp_path / "out" / "figures").iterdir()}
    assert {"valleys.svg", "laws.png", "surface.svg", "residuals.png", "sensitivity.svg"} <= names
    analysis = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert analysis["table"]["refused"] == [{"line": 37, "reason": "val loss is empty"}]
    assert "refused_rows" in {warning["code"] for warning in analysis["warnings"]}
    assert len(page) < 500_000


@pytest.mark.usefixtures("no_figures")
def test_a_report_of_runs_that_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)  # losses by chance: no surface, though a few slices look like valleys
    n, d, loss = 10 ** rng.uniform(6, 9, 60), 10 ** rng.uniform(8, 11, 60), rng.uniform(2, 4, 60)
    pd.DataFrame({"N": n, "D": d, "loss": loss}).to_csv(tmp_path / "runs.csv", index=False)
    assert call("fit", tmp_path / "runs.csv", "--report", tmp_path / "out") == 1
    assert "No budget has an optimum yet: surface" in (tmp_path / "out" / "report.html").read_text()


def test_predict_of_a_table_and_beyond(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = table_at(tmp_path / "runs.csv", noise=1e-6)
    assert call("predict", "1e23", table, "--method", "surface_huber", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["params"] == pytest.approx(optimum(BESIROGLU, 1e23)[0], rel=0.02)
    assert answer["extrapolation"] == pytest.approx(1000) and answer["method"] == "surface_huber"
    assert answer["loss_interval_of_one_run"][0] < answer["loss"] < answer["loss_interval_of_one_run"][1]
    assert call("predict", "1e23", table) == 0
    assert capsys.readouterr().out.startswith("EXTRAPOLATION BY 1e+03x")  # in the headline


def test_predict_of_a_sweep_names_the_run(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    root = sweep.paths.root
    assert call("predict", "1e7", root, "--json") == 0
    run = json.loads(capsys.readouterr().out)["run"]
    assert isinstance(run["size"], int) and run["batch_size"] == sweep.spec.train.batch_size
    assert run["params"] == pytest.approx(
        run["size"], rel=1e-9
    )  # a truncated regression has as many parameters as features
    assert run["tokens"] * 6 * run["params"] == pytest.approx(1e7, rel=1e-6)
    assert run["steps"] == pytest.approx(run["tokens"] / run["batch_size"], abs=1)
    assert run["lr"] == pytest.approx(sweep.plan.experiments[0].recipe.lr)  # one rate for all sizes is the rule
    assert run["seconds"] > 0 and run["seconds_interval"][0] < run["seconds"] < run["seconds_interval"][1]
    assert call("predict", "1e7", root) == 0
    assert "run: features = " in capsys.readouterr().out


def test_the_time_of_another_run_than_the_optimum_has_no_interval(sweep: Sweep) -> None:
    """Its N is the cap, or another one with serving, so the seconds of N_opt and D_opt are not its own."""
    free = predict(sweep.fit, 1e7)
    cap = Question(budget=1e7, max_params=free.params / 2)
    for question in (cap, Question(budget=1e7, serving=Serving(tokens=1e4))):
        run = recommend(sweep, sweep.fit, answer(sweep.fit, question))
        assert run.seconds is not None and run.seconds_interval is None
    assert recommend(sweep, sweep.fit, free).seconds_interval is not None


def test_a_run_under_a_cap_is_not_above_it(sweep: Sweep) -> None:
    for cap in (8.6, 20.9, 33.3):
        run = recommend(sweep, sweep.fit, answer(sweep.fit, Question(budget=1e7, max_params=cap)))
        assert isinstance(run.size, int) and run.params <= cap and run.params > cap / 2


def test_the_spec_of_a_run_on_limited_data_allows_as_many_epochs(sweep: Sweep) -> None:
    few = replace(predict(sweep.fit, 1e7), unique=1000.0, epochs=3.2)
    advice = recommend(sweep, sweep.fit, few)
    assert advice.spec is not None and advice.spec.data.max_epochs == 4
    assert any(note.endswith("distinct tokens: give the run 1k") for note in advice.notes)
    assert "data.max_epochs is 4 in the spec of this run" in advice.notes
    new = recommend(sweep, sweep.fit, predict(sweep.fit, 1e7))
    assert recommend(sweep, sweep.fit, replace(few, epochs=1.0)).spec == new.spec


def copy_with(sweep: Sweep, where: Path, **fit: object) -> Path:
    """The sweep with other wishes for its fit in its spec."""
    root = Path(shutil.copytree(local_path(sweep.paths.root), where))
    record_spec(SweepPaths(root), sweep.spec.model_copy(update={"fit": sweep.spec.fit.model_copy(update=fit)}))
    return root


@pytest.mark.usefixtures("no_figures")
def test_a_spec_without_draws_has_no_intervals(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_with(sweep, tmp_path / "s", draws=0)
    assert call("fit", root) == 0
    out = capsys.readouterr().out
    assert "no intervals: draws is 0" in out and "(no intervals)" in out
    assert call("predict", "1e7", root) == 0
    assert "C = 1e7 FLOPs (no intervals)" in capsys.readouterr().out
    assert call("fit", root, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["bootstrap"]["draws"] == 0 and content["n_opt"]["exponent_interval"] is None
    assert content["methods"]["envelope"]["n_opt"]["exponent_stderr"] is None
    assert call("report", root) == 0
    assert "No intervals: <code>draws</code> is 0." in (root / "report.html").read_text()
    assert "No intervals: `draws` is 0." in (root / "report.md").read_text()
    assert call("fit", root, "--draws", "300") == 0
    assert "no intervals" not in capsys.readouterr().out


@pytest.mark.usefixtures("no_figures")
def test_a_spec_may_ask_for_the_envelope(sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_with(sweep, tmp_path / "s", method="envelope")
    assert call("fit", root, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["default_method"] == content["n_opt"]["method"] == "envelope"
    assert {row["lever"] for row in content["sensitivity"]["rows"]} == {"answer", "the method"}
    shutil.rmtree(root / "experiments")
    assert call("report", root) == 0  # a sweep without results has a report as well
    page = (root / "report.html").read_text()
    assert "envelope of training curves (approach 1): there are no training curves" in page


def test_predict_for_hours(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("predict", "--hours", "0.01", sweep.paths.root, "--json") in (0, 1)  # so small runs tell little of time
    captured = capsys.readouterr()
    if captured.out:
        answer = json.loads(captured.out)
        assert answer["seconds"] == 36 and answer["timed_runs"] == 21
    else:
        assert "a wall-clock budget needs a surface" in captured.err


@pytest.mark.usefixtures("no_figures")
def test_the_spec_of_the_predicted_run_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = reference_spec()
    made = make_sweep(tmp_path / "sweep", spec, reference_parts(spec))
    target = tmp_path / "one.yaml"
    assert call("predict", "2e6", made.paths.root, "--spec", target, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    written = read_spec(target)
    assert written.is_one_run and written.budgets[0].flops == 2e6
    assert content["missing"] == "" and len(content["plan"]["experiments"]) == 1
    planned = content["plan"]["experiments"][0]
    assert planned["size"] == written.budgets[0].sizes[0] == content["run"]["size"]  # type: ignore[index]
    assert planned["tokens"] == pytest.approx(content["run"]["tokens"], rel=0.01)
    assert call("predict", "2e6", made.paths.root, "--spec", target) == 2
    assert "is there already; nothing was written" in capsys.readouterr().err
    assert call("plan", target) == 0
    assert "1 experiment" in capsys.readouterr().out
    done = make_sweep(tmp_path / "one", written, reference_parts(written))
    assert done.complete and exit_code(done) == 0 and done.fit.problem  # one run has no law, and wants none
    assert "One training run: N = " in local_path(write_report(done)).read_text()
    beyond = tmp_path / "far.yaml"
    assert call("predict", "3e7", made.paths.root, "--spec", beyond) == 0
    out = capsys.readouterr().out
    assert "need more data than there is" in out and "give more data" in out and beyond.exists()
    ran, refused = made.results[0].budget, tmp_path / "refused.yaml"
    assert call("predict", ran, made.paths.root, "--seal", "--spec", refused) == 2
    assert "has results in this sweep already" in capsys.readouterr().err and not refused.exists()


def test_compare_says_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = table_at(tmp_path / "a.csv"), table_at(tmp_path / "b.csv", HOFFMANN, seed=5)
    again = table_at(tmp_path / "c.csv", seed=9)
    assert call("compare", a, b, "--at", "1e20", "--figure", tmp_path / "both.png") == 0
    out = capsys.readouterr().out
    assert "differs" in out and "by valley" in out
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert call("compare", a, again, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert {d["differs"] for d in content["differences"]} == {False}
    assert content["budget"] == pytest.approx(1e20) and content["extrapolation"] == pytest.approx([1, 1])
    assert call("compare", a, again, "--at", "3e21") == 0
    assert "extrapolation by 30x" in capsys.readouterr().out
    assert call("compare", a, b, "--figure", tmp_path / "both.bmp") == 2
    assert "unknown figure format" in capsys.readouterr().err


def test_sweeps_of_other_losses_and_data_are_said(sweep: Sweep) -> None:
    assert comparability(sweep, sweep) == []
    other = replace(sweep, spec=sweep.spec.model_copy(update={"loss": "my_loss:huber", "loss_unit": "bits"}))
    (flag,) = comparability(sweep, other)
    assert flag.code == "other_loss" and f"{sweep.spec.loss} (held-out loss) and my_loss:huber in bits" in str(flag)
    measured = sweep.plan.measurements
    for data, said in (
        (replace(measured.data, fingerprint="other"), "the data differ"),
        (replace(measured.data, token_unit="bytes"), "of different tokenizers"),
    ):
        changed = replace(sweep, plan=replace(sweep.plan, measurements=replace(measured, data=data)))
        (flag,) = comparability(sweep, changed)
        assert flag.code == "other_data" and said in str(flag)


def test_mistakes_are_exit_2_without_a_traceback(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    table = table_at(tmp_path / "runs.csv")
    root = sweep.paths.root
    cases: list[tuple[list[object], str]] = [
        (["fit", table, "--column", "loss"], "must be NAME=VALUE"),
        (["fit", table, "--column", "loss=nope"], "there is no such column"),
        (["fit", table, "--where", "N=5"], "no row has that value"),
        (["fit", table, "--pin", "A=3"], "only E, alpha and beta can be pinned, not A"),
        (["fit", table, "--pin", "E=-1"], "must be a number above 0 (got E = -1.0)"),
        (["fit", table, "--confidence", "0.05"], "is not in the range 0.5<x<1"),
        (["fit", table, "--pin", "E=x"], "must be a number"),
        (["fit", table, "--window", "2"], "is not in the range"),
        (["fit", tmp_path / "nowhere.csv"], "no such file"),
        (["fit", tmp_path / "nowhere"], "no such directory"),
        (["fit", root, "--column", "loss=l"], "is for tables"),
        (["fit", root, "--report", tmp_path / "r"], "is for tables"),
        (["predict"], "give BUDGET in FLOPs, --loss or --hours"),
        (["predict", "many", table], "is not a valid float"),
        (["predict", "1e20", table, "more"], "too many"),
        (["predict", "1e20", table, "--spec", tmp_path / "s.yaml"], "needs a sweep directory"),
        (["compare", table, tmp_path / "nowhere.csv"], "no such file"),
    ]
    for arguments, message in cases:
        assert call(*arguments) == 2, arguments
        captured = capsys.readouterr()
        assert message in captured.err, arguments
        assert "Traceback" not in captured.err
    for bad, message in (
        ("-1", "not in the range x>0"),
        ("nan", "must be a finite number"),
        ("inf", "a finite number"),
    ):
        for before in (("fit", table, "--at"), ("fit", table, "--next", "2", "--target"), ("predict", "--hours")):
            assert call(*before, bad) == 2
            assert message in capsys.readouterr().err
    for bad in ("0", "nan", "1e999"):
        assert call("predict", bad, table) == 2
        assert f"BUDGET must be a positive number of FLOPs (got {bad})" in capsys.readouterr().err
    assert call("predict", "--hours", "1", table) == 1
    assert "a wall-clock budget needs" in capsys.readouterr().err
    assert call("fit", table, "--method", "envelope") == 1
    assert "no law: envelope of training curves (approach 1): there are no training curves" in capsys.readouterr().out
    assert call("predict", "1e20", table, "--method", "envelope") == 1
    assert "there are no training curves" in capsys.readouterr().err
