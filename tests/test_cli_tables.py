"""Commands on tables: parts fitted apart, optima, very many and few rows; what was assumed is said by each of them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flops_fit_ray.analysis import Points
from flops_fit_ray.errors import SpecError
from flops_fit_ray.tables import read_table
from flops_fit_ray.tables._binning import binned
from tests.surfaces import BESIROGLU, BUDGETS, optimum, points_from, sweep_on
from tests.test_cli import call

POINTS = sweep_on(BESIROGLU, BUDGETS, sizes=5, noise=0.001)
RUNS = pd.DataFrame({"N": POINTS.params, "D": POINTS.tokens, "C": POINTS.flops, "loss": POINTS.loss})


def written(path: Path, table: pd.DataFrame) -> Path:
    table.to_csv(path, index=False)
    return path


def test_each_value_is_fitted_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = RUNS.head(15)
    code = runs.assign(set="code", N=runs.N * 2, D=runs.D / 2, loss=runs.loss * 0.9)
    both = pd.concat([runs.assign(set="web"), code])
    path = written(tmp_path / "runs.csv", pd.concat([both, runs.head(4).assign(set="few", loss=1.0)]))
    assert call("fit", path, "--draws", "0") == 2
    error = capsys.readouterr().err
    assert "'set' splits the rows into code (15 rows), few (4 rows), web (15 rows)" in error and "--each 'set'" in error
    assert call("fit", path, "--each", "set", "--json", "--draws", "0", "--at", "1e20") == 2
    fits = json.loads(capsys.readouterr().out)["fits"]
    assert "all losses are equal" in fits["few"]["error"]
    n_opt = {name: fits[name]["predictions"][0]["params"] for name in ("web", "code")}
    assert n_opt["code"] == pytest.approx(2 * n_opt["web"], rel=1e-6)
    assert call("fit", path, "--each", "set", "--draws", "0", "--where", "set=web") == 0
    out = capsys.readouterr().out
    assert out.startswith("set = web\n") and "set = code" not in out
    assert call("fit", path, "--each", "sets") == 2
    assert "there is no such column" in capsys.readouterr().err


def test_optima_get_power_laws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact = [optimum(BESIROGLU, c) for c in BUDGETS]
    off = np.array([1.05, 0.96, 1.02, 0.97, 1.01])
    table = pd.DataFrame({"C": BUDGETS, "N_opt": [n for n, _, _ in exact] * off})
    path = written(tmp_path / "optima.csv", table)
    assert call("fit", path, "--json", "--at", "1e21") == 0
    content = json.loads(capsys.readouterr().out)
    x, y = np.log10(BUDGETS), np.log10(table.N_opt)
    slope, covariance = np.polyfit(x, y, 1, cov=True)
    half = 3.182446305 * np.sqrt(covariance[0, 0])  # t of 3 degrees of freedom, 95 %
    assert content["n_opt"]["exponent"] == pytest.approx(slope[0])
    assert content["n_opt"]["exponent_interval"] == pytest.approx([slope[0] - half, slope[0] + half])
    assert content["d_opt"]["exponent"] == pytest.approx(1 - slope[0])  # D = C/(6·N)
    answer = content["predictions"][0]
    error = np.sqrt([np.log10(1e21), 1] @ covariance @ [np.log10(1e21), 1])
    assert answer["params"] == pytest.approx(10 ** np.polyval(slope, 21))
    assert answer["params_interval"][1] == pytest.approx(answer["params"] * 10 ** (3.182446305 * error))
    assert answer["extrapolation"] == pytest.approx(10)
    assert call("fit", path) == 0
    out = capsys.readouterr().out
    assert "a table of optima, 5 rows" in out and "D_opt is computed as C/(6·N_opt)" in out
    assert call("predict", "1e21", path) == 2
    assert "`flops-fit-ray fit TABLE --at C` fits its laws" in capsys.readouterr().err
    plain = written(tmp_path / "plain.csv", table.rename(columns={"N_opt": "N"}))
    with pytest.raises(SpecError, match="--column params_opt=N fits"):
        read_table(plain)
    assert call("fit", plain, "--column", "params_opt=N") == 0
    assert f"C^{slope[0]:.4f}" in capsys.readouterr().out
    models = written(tmp_path / "models.csv", pd.concat([table.assign(model=name) for name in ("gpt", "rnn")]))
    assert call("fit", models) == 2
    assert "'model' splits the rows into gpt (5 rows), rnn (5 rows)" in capsys.readouterr().err
    assert call("fit", models, "--each", "model") == 0


def test_nine_rows_with_surfaces_and_no_valley(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n, d = (grid.ravel() for grid in np.meshgrid([1e7, 1e8, 1e9], [1e9, 1e10, 1e11]))
    e, a, b, alpha, beta = BESIROGLU
    nine = pd.DataFrame({"N": n, "D": d, "loss": e + a / n**alpha + b / d**beta})
    assert call("fit", written(tmp_path / "nine.csv", nine), "--draws", "0") == 1
    assert "no law: 1 budget has an optimum" in capsys.readouterr().out
    huge = nine.astype(object)
    huge.loc[0, "N"] = "1" + "0" * 400
    assert call("fit", written(tmp_path / "huge.csv", huge), "--draws", "0") == 1
    assert "N must be a positive number (got 1000" in capsys.readouterr().out
    (tmp_path / "huge.json").write_text(json.dumps([{"N": 10**400, "D": 10**9, "loss": 3}, *nine.to_dict("records")]))
    assert len(read_table(tmp_path / "huge.json").points) == 9


def test_what_was_assumed_is_said_by_predict_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = ["crashed", *["finished"] * 24]
    path = written(tmp_path / "runs.csv", RUNS.assign(state=status).rename(columns={"loss": "val_bpb"}))
    words = ("1 of 25 rows are left out by 'state': 1 crashed", "stay in bits")
    for command in (["predict", "1e20", path], ["compare", path, path]):
        assert call(*command, "--draws", "100") == 0
        out = capsys.readouterr().out
        assert all(part in out for part in words), command
        assert call(*command, "--draws", "100", "--json") == 0
        codes = {flag["code"] for flag in json.loads(capsys.readouterr().out)["warnings"]}
        assert {"left_out_rows", "assumed"} <= codes


def many(number: int, **more: object) -> Points:
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7, 10, number), 10 ** rng.uniform(9, 12, number)
    e, a, b, alpha, beta = BESIROGLU
    loss = e + a / n**alpha + b / d**beta
    return points_from(6 * n * d, 6 * n * d, n, d, loss, labelled=False, **more)


def test_very_many_rows_are_averaged_in_small_cells() -> None:
    points = many(8_000)
    assert binned(points.pick(np.arange(5_000)))[1] == 0.0
    few, width = binned(points)
    assert len(few) <= 4_000 and few.weights.sum() == pytest.approx(8_000)
    e, a, b, alpha, beta = BESIROGLU
    exact = e + a / few.params**alpha + b / few.tokens**beta
    assert np.abs(few.loss / exact - 1).max() < alpha**2 * width**2 / 8  # the mean of a convex curve
    order = np.random.default_rng(1).permutation(8_000)
    again = binned(points.pick(order))[0]
    assert np.allclose(again.loss, few.loss, rtol=1e-12) and (again.weights == few.weights).all()
    runs = many(8_000, run=np.arange(8_000) % 7)
    kept = binned(runs)[0]
    assert kept.num_runs == 7 and len(kept) <= 4_000 and kept.weights.sum() == pytest.approx(8_000)


def test_a_table_of_very_many_rows(tmp_path: Path) -> None:
    points = many(6_000)
    table = pd.DataFrame({"N": points.params, "D": points.tokens, "loss": points.loss})
    table.to_parquet(tmp_path / "runs.parquet")
    read = read_table(tmp_path / "runs.parquet")
    assert "6,000 rows were averaged in" in " ".join(map(str, read.flags)) and len(read.points) <= 4_000


def test_optima_say_what_was_left_out_and_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optima = pd.DataFrame({"C": [*BUDGETS, 1e21], "N_opt": [1e8, 2e8, 3e8, 6e8, 1e9, 1.0]})
    path = tmp_path / "optima.csv"
    path.write_bytes(optima.assign(status=["done"] * 5 + ["crashed"], by="Zürich").to_csv(index=False).encode("cp1252"))
    assert call("fit", path) == 0
    out = capsys.readouterr().out
    assert "5 rows" in out
    assert "warning: 1 of 6 rows are left out by 'status': 1 crashed" in out
    assert "note: it is not UTF-8 and was read as Windows-1252" in out
    assert call("fit", path, "--json") == 0
    codes = [flag["code"] for flag in json.loads(capsys.readouterr().out)["warnings"]]
    assert codes[:2] == ["left_out_rows", "assumed"] and codes[-1] == "optima"
    assert call("fit", path, "--pool", "nope") == 2
    assert "--pool nope: there is no such column" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_each_part_has_a_report_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = ("a/b", "a-b", "..")
    runs = [RUNS.head(15).assign(set=name, loss=RUNS.loss[:15] * (1 + 0.1 * i)) for i, name in enumerate(parts)]
    path = written(tmp_path / "runs.csv", pd.concat(runs))
    assert call("fit", path, "--each", "set", "--draws", "0", "--report", tmp_path / "rep") == 0
    capsys.readouterr()
    assert {p.name for p in (tmp_path / "rep").iterdir()} == {"a%2Fb", "a-b", "%2E%2E"}
    assert {p.name for p in tmp_path.iterdir()} == {"runs.csv", "rep"}
