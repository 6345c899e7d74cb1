"""Any table of runs becomes points: names, units, what is missing, what is refused and on which line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flops_fit_ray import fit_table
from flops_fit_ray.analysis import FitOptions, fit_sweep, group_by_nearness
from flops_fit_ray.errors import SpecError
from flops_fit_ray.tables import TableOptions, read_table
from tests.surfaces import BESIROGLU, BUDGETS, sweep_on

POINTS = sweep_on(BESIROGLU, BUDGETS, sizes=5)
QUICK = FitOptions(draws=0)


def frame(**names: str) -> pd.DataFrame:
    """The sweep as a table whose columns are called as asked."""
    return pd.DataFrame({theirs: getattr(POINTS, ours) for ours, theirs in names.items()})


def written(path: Path, table: pd.DataFrame) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True, double_precision=15)
    elif path.suffix == ".json":
        path.write_text(json.dumps(table.to_dict(orient="records")))
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".parquet", ".jsonl", ".json"])
def test_every_format_gives_the_same_points(tmp_path: Path, suffix: str) -> None:
    table = frame(budget="budget", flops="flops", params="params", tokens="tokens", loss="loss")
    read = read_table(written(tmp_path / f"runs{suffix}", table)).points
    for name in ("budget", "flops", "params", "tokens", "loss"):
        assert np.allclose(getattr(read, name), getattr(POINTS, name), rtol=1e-14)
    assert read.labelled


@pytest.mark.parametrize(
    "names",
    [
        {"params": "N", "tokens": "D", "flops": "C", "loss": "loss"},
        {"params": "n_params", "tokens": "Training Tokens", "flops": "Total-FLOPs", "loss": "Validation Loss"},
        {"params": "model_size", "tokens": "num_tokens", "budget": "compute_budget", "loss": "final_loss"},
    ],
)
def test_common_names_are_known(tmp_path: Path, names: dict[str, str]) -> None:
    read = read_table(written(tmp_path / "runs.csv", frame(**names))).points
    assert np.allclose(read.params, POINTS.params) and np.allclose(read.tokens, POINTS.tokens)
    assert np.allclose(read.flops, POINTS.flops, rtol=1e-9)


def test_columns_can_be_named_and_the_names_win(tmp_path: Path) -> None:
    table = frame(params="weights", tokens="seen", flops="C", loss="nats").assign(loss=99.0)
    path = written(tmp_path / "runs.csv", table)
    with pytest.raises(SpecError, match="has no column for params and tokens"):
        read_table(path)
    read = read_table(path, TableOptions(columns={"params": "weights", "tokens": "seen", "loss": "nats"}))
    assert np.allclose(read.points.loss, POINTS.loss)
    assert read.columns["loss"] == "nats"
    with pytest.raises(SpecError, match="did you mean 'seen'") as caught:
        read_table(path, TableOptions(columns={"tokens": "seem", "prams": "weights"}))
    assert len(caught.value.faults) == 3  # both mistakes, and what is missing for them


def test_units_in_headers_cells_and_options(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "Params (M)": POINTS.params / 1e6,
            "tokens": [f"{d / 1e9:.12g}B" for d in POINTS.tokens],
            "flops": POINTS.flops / 1e18,
            "loss": POINTS.loss,
        }
    )
    path = written(tmp_path / "runs.csv", table)
    read = read_table(path, TableOptions(units={"flops": "EFLOP"})).points
    assert np.allclose(read.params, POINTS.params)
    assert np.allclose(read.tokens, POINTS.tokens)
    assert np.allclose(read.flops, POINTS.flops)
    with pytest.raises(SpecError, match="--unit flops=parsec"):
        read_table(path, TableOptions(units={"flops": "parsec"}))


@pytest.mark.parametrize("missing", ["params", "tokens", "flops"])
def test_one_of_c_n_and_d_follows_from_the_others(tmp_path: Path, missing: str) -> None:
    names = {n: n for n in ("params", "tokens", "flops", "loss") if n != missing}
    read = read_table(written(tmp_path / "runs.csv", frame(**names)))
    assert np.allclose(getattr(read.points, missing), getattr(POINTS, missing), rtol=1e-12)
    assert "is computed as" in read.derived
    assert "derived_column" in {flag.code for flag in read.flags}


@pytest.mark.parametrize("missing", ["params", "tokens"])
def test_a_budget_is_c_where_two_are_missing(tmp_path: Path, missing: str) -> None:
    names = {n: n for n in ("params", "tokens", "budget", "loss") if n != missing}
    read = read_table(written(tmp_path / "runs.csv", frame(**names)))
    assert np.allclose(getattr(read.points, missing), getattr(POINTS, missing), rtol=1e-12)
    assert read.derived.startswith("C of a run is taken as its budget; ")


def test_two_missing_are_too_many(tmp_path: Path) -> None:
    path = written(tmp_path / "runs.csv", frame(params="params", loss="loss"))
    with pytest.raises(SpecError, match="has no column for tokens and flops"):
        read_table(path)


def test_budgets_are_found_by_nearness_and_shown(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    spent = POINTS.flops * rng.uniform(0.93, 1.07, len(POINTS))
    table = frame(params="N", tokens="D", loss="loss").assign(C=spent)
    read = read_table(written(tmp_path / "runs.csv", table))
    assert not read.points.labelled
    assert len(np.unique(read.points.budget)) == 5
    assert "grouped by C into 5 groups" in " ".join(map(str, read.flags))
    fit = fit_sweep(read.points, QUICK)
    assert fit.default == "valley" and len(fit.optima) == 5
    assert fit.valleys[0].flops == pytest.approx(spent[:5].mean())


def test_a_label_is_a_label_and_c_is_what_was_spent(tmp_path: Path) -> None:
    spent = POINTS.flops * np.repeat([1.1, 1.05, 1.0, 1.02, 1.07], 5)
    table = frame(params="N", tokens="D", loss="loss", budget="budget").assign(C=spent)
    read = read_table(written(tmp_path / "runs.csv", table)).points
    assert sorted(set(read.budget)) == BUDGETS
    assert np.allclose(read.flops, spent)
    words = table.assign(budget=[f"scale {b:g}" for b in POINTS.budget])
    named = read_table(written(tmp_path / "named.csv", words)).points
    assert len(np.unique(named.budget)) == 5 and named.labelled
    assert np.allclose(named.budget, spent)


def test_runs_scattered_over_c_do_not_chain_budgets_together() -> None:
    rng = np.random.default_rng(1)
    cost = np.concatenate(
        [c * rng.uniform(0.95, 1.05, 10) for c in (1e18, 3e18, 1e19)] + [10 ** rng.uniform(18, 19, 12)]
    )
    label = group_by_nearness(cost)
    for value in np.unique(label):
        assert cost[label == value].max() / cost[label == value].min() <= 1.25 * (1 + 1e-9)
    for i in range(3):
        assert len(np.unique(label[10 * i : 10 * i + 10])) == 1


def test_bad_rows_are_refused_one_by_one_with_their_line(tmp_path: Path) -> None:
    table = frame(params="N", tokens="D", flops="C", loss="loss").astype(object)
    table.loc[2, "loss"] = "nan"
    table.loc[4, "N"] = "-5"
    table.loc[6, "D"] = ""
    table.loc[7, "loss"] = "diverged"
    read = read_table(written(tmp_path / "runs.csv", table))
    assert [(r.line, r.reason) for r in read.refused] == [
        (4, "loss must be a positive number (got nan)"),
        (6, "N must be a positive number (got -5)"),
        (8, "D is empty"),
        (9, "loss must be a positive number (got diverged)"),
    ]
    assert len(read.points) == len(POINTS) - 4
    assert "4 of 25 rows are not used: line 4: loss must be" in " ".join(map(str, read.flags))
    assert read.to_json()["refused"][0] == {"line": 4, "reason": "loss must be a positive number (got nan)"}
    table["loss"] = "?"
    with pytest.raises(SpecError, match="no row can be used"):
        read_table(written(tmp_path / "none.csv", table))


def test_rows_can_be_chosen(tmp_path: Path) -> None:
    table = frame(params="N", tokens="D", flops="C", loss="loss").assign(set=["a", "b"] * 12 + ["a"], used=[True] * 25)
    path = written(tmp_path / "runs.csv", table)
    assert len(read_table(path, TableOptions(where=[("set", "a"), ("used", "true")])).points) == 13
    with pytest.raises(SpecError, match="no row has that value; the column has a, b"):
        read_table(path, TableOptions(where=[("set", "c")]))
    with pytest.raises(SpecError, match="there is no such column"):
        read_table(path, TableOptions(where=[("sets", "a")]))


def test_only_completed_rows_count(tmp_path: Path) -> None:
    table = frame(params="N", tokens="D", flops="C", loss="loss").assign(status=["completed"] * 20 + ["failed"] * 5)
    assert len(read_table(written(tmp_path / "runs.csv", table)).points) == 20
    with pytest.raises(SpecError, match="has no completed row"):
        read_table(written(tmp_path / "none.csv", table.assign(status="failed")))


@pytest.mark.parametrize("shape", ["list", "results", "by_id", "columns"])
def test_results_of_a_sequential_runner(tmp_path: Path, shape: str) -> None:
    columns = {
        "compute_budget": POINTS.budget,
        "model_size": POINTS.params,
        "num_tokens": POINTS.tokens,
        "actual_flops": POINTS.flops,
        "final_loss": POINTS.loss,
    }
    rows = [
        {name: float(column[i]) for name, column in columns.items()}
        | {"experiment_id": f"exp_{i}", "wall_time_seconds": 3.5, "status": "completed"}
        for i in range(len(POINTS))
    ]
    content: object = rows
    if shape == "results":
        content = {"results": rows, "version": "0.1"}
    if shape == "by_id":
        content = {str(row["experiment_id"]): row for row in rows}
    if shape == "columns":
        content = {name: [row[name] for row in rows] for name in rows[0]}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    read = read_table(path).points
    assert sorted(set(read.budget)) == BUDGETS
    assert np.allclose(read.params, POINTS.params, rtol=1e-6)
    assert read.seconds is not None and set(read.seconds) == {3.5}


def test_runs_with_several_losses_stay_together(tmp_path: Path) -> None:
    table = frame(params="N", tokens="D", flops="C", loss="loss").assign(run_id=[f"r{i % 5}" for i in range(25)])
    read = read_table(written(tmp_path / "runs.csv", table)).points
    assert read.num_runs == 5 and list(read.runs[:6]) == [0, 1, 2, 3, 4, 0]


def test_other_definitions_of_n_are_kept(tmp_path: Path) -> None:
    table = frame(params="params", tokens="D", flops="C", loss="loss").assign(
        params_total=POINTS.params * 2, params_non_embedding=POINTS.params
    )
    read = read_table(written(tmp_path / "runs.csv", table)).points
    assert list(read.params_as) == ["params_total"]  # the other is the same number


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("runs.csv", "", "cannot be read as a table"),
        ("runs.parquet", "no parquet", "cannot be read as a table"),
        ("runs.json", "{", "cannot be read as a table"),
        ("runs.json", '"text"', "must be a list of rows"),
        ("runs.jsonl", "{]", "cannot be read as a table"),
        ("runs.csv", "N,D,C,loss\n", "has no rows"),
        ("runs.xlsx", "x", "is not a readable table"),
    ],
)
def test_what_is_no_table_is_said_in_one_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(SpecError, match=words):
        read_table(path)
    with pytest.raises(SpecError, match="no such file"):
        read_table(tmp_path / "nowhere.csv")


def test_ten_thousand_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7, 10, 10_000), 10 ** rng.uniform(9, 12, 10_000)
    e, a, b, alpha, beta = BESIROGLU
    loss = e + a / n**alpha + b / d**beta + 0.01 * rng.standard_normal(10_000)
    path = written(tmp_path / "runs.csv", pd.DataFrame({"n": n, "d": d, "loss": loss}))
    fit = fit_sweep(read_table(path).points, QUICK)
    assert fit.default == "surface_huber"  # scattered runs are no budgets
    assert fit.params_opt is not None
    assert fit.params_opt.exponent == pytest.approx(beta / (alpha + beta), abs=0.01)


def test_the_python_door(tmp_path: Path) -> None:
    table = frame(params="N", tokens="D", flops="C", loss="nats").assign(kind=["a"] * 20 + ["b"] * 5)
    path = written(tmp_path / "runs.csv", table)
    analysis = fit_table(path, [1e21], columns={"loss": "nats"}, where={"kind": "a"}, draws=0, curve="cubic")
    assert len(analysis.fit.points) == 20 and analysis.predictions[0].budget == 1e21
    assert analysis.fit.valleys[0].curve == "cubic"
    with pytest.raises(SpecError, match="did you mean 'window'"):
        fit_table(path, columns={"loss": "nats"}, windw=3)


CELL = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True).map(str),
    st.sampled_from(["", "nan", "1.5B", "-3", "0", "1e400", "x", "1,000", "7M", " 2 "]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=12))
def test_no_cell_gets_past_the_door(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    """Whatever a table holds: it is refused, or its points are positive and finite, and every row is accounted for."""
    path = tmp_path / "runs.csv"
    pd.DataFrame(rows, columns=["N", "D", "loss"]).to_csv(path, index=False)
    try:
        read = read_table(path, TableOptions(units={"params": "1", "tokens": "1"}))
    except SpecError as e:
        assert e.faults
        return
    assert len(read.points) + len(read.refused) + sum(read.left_out.values()) == len(rows)
    for name in ("params", "tokens", "flops", "loss"):
        values = getattr(read.points, name)
        assert np.isfinite(values).all() and (values > 0).all()


def test_what_follows_must_be_a_number_too(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("N,D,loss\n1e200,1e200,3\n1e6,1e9,3\n")
    read = read_table(path)
    assert [(r.line, r.reason) for r in read.refused] == [
        (2, "C is computed as 6·N·D and is inf, not a positive number")
    ]


def test_checkpoints_of_runs_give_the_envelope(tmp_path: Path) -> None:
    e, a, b, alpha, beta = BESIROGLU
    n, d = np.repeat(np.geomspace(1e7, 3e9, 40), 40), np.tile(np.geomspace(1e8, 3e11, 40), 40)
    table = pd.DataFrame({"N": n, "D": d, "loss": e + a / n**alpha + b / d**beta, "run": np.repeat(np.arange(40), 40)})
    fit = fit_table(written(tmp_path / "runs.csv", table), draws=50, method="envelope").fit
    assert fit.points.num_runs == 40 and fit.default == "envelope"
    assert fit.params_opt is not None
    assert fit.params_opt.exponent == pytest.approx(beta / (alpha + beta), abs=0.03)
    assert {"envelope_fitted", "checkpoints"} <= {flag.code for flag in fit.warnings}
