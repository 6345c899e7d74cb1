"""Tables as people have them: each kind is read right, or refused with the way out; nothing is guessed in silence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flops_fit_ray import fit_table
from flops_fit_ray.analysis import FitOptions, analyse, fit_minima, fit_sweep, predict
from flops_fit_ray.analysis._extrapolation import hold_outs
from flops_fit_ray.console.fit_text import analysis_text
from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning.simulation import lr_penalty
from flops_fit_ray.sweep.validity import validity_card
from flops_fit_ray.tables import Table, TableOptions, read_table
from tests.surfaces import BESIROGLU, BUDGETS, SYMMETRIC, optimum, sweep_on

POINTS = sweep_on(BESIROGLU, BUDGETS)
RUNS = pd.DataFrame({"N": POINTS.params, "D": POINTS.tokens, "C": POINTS.flops, "loss": POINTS.loss})
BARE = RUNS.drop(columns="C")
RATES = (1e-4, 3e-4, 1e-3, 3e-3)


def read(tmp_path: Path, table: pd.DataFrame, **options: object) -> Table:
    table.to_csv(tmp_path / "runs.csv", index=False)
    return read_table(tmp_path / "runs.csv", TableOptions(**options))  # type: ignore[arg-type]


def refusal(tmp_path: Path, table: pd.DataFrame, **options: object) -> str:
    with pytest.raises(SpecError) as caught:
        read(tmp_path, table, **options)
    assert len(caught.value.faults) == 1
    return str(caught.value.faults[0])


def said(table: Table) -> str:
    return " | ".join(map(str, table.flags))


def swept(best: int, seeds: int = 1) -> pd.DataFrame:
    """The sweep with four learning rates at each (N, D), of which number `best` has the losses of the surface."""
    parts = [
        BARE.assign(lr=rate, seed=seed, loss=RUNS.loss + 0.05 * abs(i - best) + 0.001 * seed)
        for i, rate in enumerate(RATES)
        for seed in range(seeds)
    ]
    return pd.concat(parts)


@pytest.mark.parametrize(
    ("epochs", "words"),
    [(-1, "35 rows whose 'epochs' is not above 0 (-1): their data"), (None, "35 rows without 'epochs': their data")],
)
def test_epochs_that_are_none_are_said(tmp_path: Path, epochs: float | None, words: str) -> None:
    assert words in said(read(tmp_path, RUNS.assign(epochs=epochs)))


def test_the_best_of_a_swept_setting_is_taken_and_said(tmp_path: Path) -> None:
    table = read(tmp_path, swept(best=2))
    assert len(table.points) == 35 and np.allclose(np.sort(table.points.loss), np.sort(RUNS.loss))
    assert "'lr' is swept: the best of each of 35 (N, D) is kept, 35 of 140 rows" in said(table)
    assert table.left_out == {"other_settings": 105}
    card = {item.item: item for item in validity_card(fit_sweep(table.points, FitOptions(draws=0)), table=table)}
    assert card["learning rate"].verdict == "PASS"
    assert "0 of 35 (N, D) where it was swept have their best at the edge" in card["learning rate"].words
    edge = read(tmp_path, swept(best=3))
    assert [(s.column, s.kind, s.swept, s.at_edge) for s in edge.settings] == [("lr", "learning rate", 35, 35)]
    card = {item.item: item for item in validity_card(fit_sweep(edge.points, FitOptions(draws=0)), table=edge)}
    assert card["learning rate"].verdict == "WARN"


def too_low(noise: float = 0.001) -> pd.DataFrame:
    """A sweep of three rates at each (N, D), the best of which lies above them: the more so the smaller N is."""
    points = sweep_on(SYMMETRIC, BUDGETS)
    rng = np.random.default_rng(1)
    parts = []
    for rate in (1e-4, 2e-4, 4e-4):
        ratio = rate / (5e-3 * (points.params / 1e8) ** -0.2)
        cost = np.array([lr_penalty(float(r)) for r in ratio]) + noise * rng.standard_normal(len(points))
        parts.append(pd.DataFrame({"N": points.params, "D": points.tokens, "lr": rate, "loss": points.loss + cost}))
    return pd.concat(parts)


def test_several_rates_of_one_cell_are_probes(tmp_path: Path) -> None:
    """All minima are too large, as small models have the worst rates: only the other rates can tell."""
    runs, target, few = too_low(), 10 * BUDGETS[-1], FitOptions(draws=0)
    table, blind = read(tmp_path, runs), read(tmp_path, runs.query("lr == 4e-4"))
    assert "three rates or more at 35 of them are read for how far the best one may be off" in said(table)
    assert np.array_equal(table.points.loss, blind.points.loss)
    laws = [fit_minima(one.points, FitOptions(draws=400)).method.params_opt for one in (table, blind)]
    within = [None if law is None else law.interval(target, 0.95) for law in laws]
    true = optimum(SYMMETRIC, target)[0]
    assert [one is not None and one.holds(true) for one in within] == [True, False]
    fit = fit_sweep(table.points, FitOptions(draws=40))
    made = analyse(fit)
    part = made.rate_part
    assert part is not None and part.tried == 35 and "from 35 (N, D) with three rates or more" in part.words
    assert part.outside and part.flag.severity == "warning" and "lies outside of it, as the rates are off" in part.words
    assert not replace(part, params=true).outside
    assert part.flag in predict(fit, target).warnings  # where its N stands outside of the interval beside it
    assert analysis_text(made).count("lies outside of it") == 1
    # What is observed at a held-out budget has the costs of its rates in it, as what is predicted has
    assert [one.inside for one in hold_outs(fit)] == [True] * 6
    card = {item.item: item.words for item in validity_card(fit, table=table)}
    assert "35 of 35 (N, D) where it was swept have their best at the edge" in card["learning rate"]
    assert "if all rates were the best" in card["learning rate"] and "taken as the best" not in card["learning rate"]
    # Another setting beside it: only rows that share it with the best row are compared
    both = read(tmp_path, pd.concat([runs.assign(wd=0.1), runs.assign(wd=0.3, loss=runs.loss + 0.05)]))
    tried = [one.points.tried for one in (table, both)]
    assert tried[0] is not None and tried[1] is not None and np.array_equal(tried[0].loss, tried[1].loss)
    # Two rates leave the best open, and so does one that is no rate
    for others in (runs.query("lr > 1e-4"), runs.assign(lr=runs.lr.where(runs.lr < 4e-4, 0.0))):
        open_rates = read(tmp_path, others)
        assert open_rates.points.tried is None and open_rates.points.lr is None
        card = {item.item: item.words for item in validity_card(fit_sweep(open_rates.points, few), table=open_rates)}
        assert card["learning rate"].endswith("taken as the best one, as no (N, D) has losses at three rates")
    named = read(tmp_path, runs.assign(lr=runs.lr.map({1e-4: "low", 2e-4: "middle", 4e-4: "high"})))
    card = {item.item: item.words for item in validity_card(fit_sweep(named.points, few), table=named)}
    assert card["learning rate"].startswith("the table has no number for it; ")


@pytest.mark.parametrize("column", [{"lr": 1e-3}, {}], ids=["one rate", "no column"])
def test_a_rate_that_nothing_tests_is_said_once(tmp_path: Path, column: dict[str, float]) -> None:
    table = read(tmp_path, BARE.assign(**column))
    card = validity_card(fit_sweep(table.points, FitOptions(draws=0)), table=table)
    words = " ".join(item.words for item in card)
    assert words.count("each run's learning rate is taken as the best one; nothing in the table tests it") == 1
    assert {item.item: item.verdict for item in card}["learning rate"] == ("WARN" if column else "UNKNOWN")


def test_a_rate_that_diverged_was_tried(tmp_path: Path) -> None:
    runs = swept(best=2)
    runs.loc[runs.lr == RATES[3], "loss"] = np.nan
    table = read(tmp_path, runs)
    assert table.settings[0].at_edge == 0 and len(table.refused) == 35 and len(table.points) == 35


def test_seeds_stay_seeds(tmp_path: Path) -> None:
    table = read(tmp_path, swept(best=1, seeds=2))
    assert len(table.points) == 70  # both seeds of the best rate
    noise = fit_sweep(table.points, FitOptions(draws=0)).seeds
    assert noise is not None and noise.df == 35
    assert noise.sigma == pytest.approx(0.001 / np.sqrt(2))
    alone = read(tmp_path, swept(best=1, seeds=2).query("lr == 3e-4").drop(columns="lr"))
    assert len(alone.points) == 70 and alone.left_out == {}


def test_a_phase_of_probes_is_no_kind_of_run(tmp_path: Path) -> None:
    """Other rates were tried at few (N, D), in rows with another label: they are the same cells."""
    rng = np.random.default_rng(0)
    main = BARE.assign(lr=1e-3, phase="main", loss=RUNS.loss + 0.002 * rng.standard_normal(35))
    probes = pd.concat([main[::5].assign(lr=rate, phase="probe", loss=main.loss[::5] + off) for rate, off in
                        ((3e-4, 0.02), (3e-3, 0.03))])  # fmt: skip
    table = read(tmp_path, pd.concat([main, probes]))
    assert len(table.points) == 35 and np.allclose(np.sort(table.points.loss), np.sort(main.loss))
    assert (table.settings[0].swept, table.settings[0].at_edge) == (7, 0)


def test_a_schedule_is_no_sweep(tmp_path: Path) -> None:
    tokens = np.geomspace(1e9, 2e9, 200)
    curves = [
        pd.DataFrame({"N": n, "D": tokens, "lr": 1e-3 * 0.5 ** np.linspace(0, 5, 200), "loss": 3 + 1e9 / tokens})
        for n in (1e7, 2e7, 4e7)
    ]
    assert len(read(tmp_path, pd.concat(curves)).points) == 600
    named = pd.concat([curve.assign(run=f"r{i}", lr=curve.lr.round(4)) for i, curve in enumerate(curves)])
    table = read(tmp_path, named)
    assert len(table.points) == 600 and table.settings == ()


def test_best_of_is_chosen_or_off(tmp_path: Path) -> None:
    runs = swept(best=2).rename(columns={"lr": "mu"})
    assert "'mu' splits the rows into 0.0001 (35 rows)" in refusal(tmp_path, runs)
    assert len(read(tmp_path, runs, best_of=["mu"]).points) == 35
    assert len(read(tmp_path, swept(best=2), best_of=["none"], pool=["lr"]).points) == 140
    rates = swept(best=2)
    two = pd.concat([rates.assign(batch_size=b, loss=rates.loss + 0.1 * (b != 64)) for b in (32, 64, 128)])
    table = read(tmp_path, two)
    assert len(table.points) == 35 and "'lr', 'batch_size' are swept" in said(table)
    # Whole batches change D a little: it is the same (N, D)
    rounded = pd.concat(
        [BARE.assign(D=RUNS.D * (1 + e), batch_size=b) for b, e in ((32, 0), (64, 0.002), (128, -0.003))]
    )
    assert len(read(tmp_path, rounded).points) == 35


@pytest.mark.parametrize("column", ["status", "State", "metrics.status"])
def test_what_has_not_finished_is_left_out_and_counted(tmp_path: Path, column: str) -> None:
    done = ["Succeeded", "TERMINATED", "finished", "done", "success"] * 7
    assert len(read(tmp_path, RUNS.assign(**{column: done})).points) == 35
    done[3], done[5], done[6] = "crashed", "Crashed", "running"
    table = read(tmp_path, RUNS.assign(**{column: done}))
    assert f"3 of 35 rows are left out by {column!r}: 2 crashed, 1 running" in said(table)
    assert table.rows == 35 and table.left_out == {"unfinished": 3}
    assert len(read(tmp_path, RUNS.assign(**{column: done}), where=[(column, "running")]).points) == 1


def test_a_state_of_the_union_is_no_status(tmp_path: Path) -> None:
    assert len(read(tmp_path, RUNS.assign(state=["CA", "NY"] * 17 + ["TX"])).points) == 35
    marked = read(tmp_path, RUNS.assign(diverged=[True] + [False] * 34))
    assert "1 of 35 rows are left out by 'diverged': 1 diverged" in said(marked)


def test_copies_and_earlier_steps_count_once(tmp_path: Path) -> None:
    table = read(tmp_path, pd.concat([RUNS, RUNS, RUNS]))
    assert len(table.points) == 35 and "70 of 105 rows are exact copies of others" in said(table)
    steps = pd.concat([RUNS.assign(step=step, loss=RUNS.loss + (900 - step) / 1e3) for step in (300, 900, 600)])
    table = read(tmp_path, steps)
    assert np.allclose(np.sort(table.points.loss), np.sort(RUNS.loss))
    assert "70 of 105 rows are earlier steps ('step')" in said(table)


@pytest.mark.parametrize("column", ["dataset", "vocabulary", "sparsity"])
def test_a_column_that_splits_the_rows_must_be_chosen(tmp_path: Path, column: str) -> None:
    values = (0.0, 0.5) if column == "sparsity" else ("web", "code")
    both = pd.concat([RUNS.assign(**{column: values[0]}), RUNS.assign(**{column: values[1]}, loss=RUNS.loss * 1.04)])
    assert f"{column!r} splits the rows into {values[1] if column != 'sparsity' else '0.0'} (35 rows)" in refusal(
        tmp_path, both
    )
    assert len(read(tmp_path, both, where=[(column, str(values[1]))]).points) == 35
    assert len(read(tmp_path, both, pool=[column]).points) == 70


def test_a_column_that_explains_nothing_splits_nothing(tmp_path: Path) -> None:
    noise = 0.003 * np.random.default_rng(0).standard_normal((2, 35))
    same = pd.concat([RUNS.assign(dataset=name, loss=RUNS.loss + noise[i]) for i, name in enumerate(("web", "code"))])
    assert len(read(tmp_path, same).points) == 70
    shapes = RUNS.assign(
        depth=(RUNS.N**0.2).round(), kind=[f"{n:.2g}" for n in RUNS.N], host=["a", "b", "c", "d", "e"] * 7
    )
    assert len(read(tmp_path, shapes).points) == 35
    few = RUNS.iloc[:9].assign(model=["rnn", "gpt", "rnn"] * 3)
    assert "too few rows to tell" in refusal(tmp_path, few)


@pytest.mark.parametrize(
    ("scale", "way"),
    [
        ({"N": 1e6}, "--unit params=M would mend it"),
        ({"D": 1e9}, "--unit tokens=B would mend it"),
        ({"N": 1e6, "D": 1e9}, "--unit params=M --unit tokens=B would mend it"),
        ({"C": 1e18}, "--unit flops=EFLOP would mend it"),
        ({"C": 8.64e19}, "--unit flops=PF-days would mend it"),
        ({"C": 1e9}, "--unit flops=GFLOP would mend it"),
        ({"N": 1e3}, "--unit params=k would mend it"),
        ({"N": 1e6, "C": 0}, "--unit params=M would mend it"),
        ({"N": 1e6, "D": 1e9, "C": 0}, "--unit params=M --unit tokens=B would mend it"),
        ({"N": 1e6, "D": 0}, "--unit params=M would mend it"),
    ],
)
def test_units_that_cannot_be_are_refused_with_those_that_mend_them(
    tmp_path: Path, scale: dict[str, float], way: str
) -> None:
    table = RUNS.drop(columns=[name for name, by in scale.items() if by == 0])
    for name in scale.keys() & set(table):
        table[name] = RUNS[name] / scale[name]
    words = refusal(tmp_path, table)
    assert f": {way}; if all is right as it is, --unit " in words
    units = dict(pair.split("=") for pair in way.removesuffix(" would mend it").replace("--unit ", "").split())
    mended = read(tmp_path, table, units=units).points
    assert np.allclose(np.sort(mended.params), np.sort(RUNS.N)) and np.allclose(np.sort(mended.flops), np.sort(RUNS.C))
    as_it_is = {"params": "1", "tokens": "1", "flops": "1"}
    assert len(read(tmp_path, table, units=as_it_is).points) == 35


def test_other_quantities_are_not_taken_for_n_d_c_and_loss(tmp_path: Path) -> None:
    width = BARE.rename(columns={"N": "size"}).assign(size=(RUNS.N / 96) ** 0.5 // 1)
    assert "'size' was not taken for params: " in refusal(tmp_path, width)
    derived = read(tmp_path, width.assign(C=RUNS.C))
    assert derived.derived == "N is computed as C/(6·D)"
    named = width.rename(columns={"size": "params"}).assign(C=RUNS.C)
    assert "'params' may be a width or a depth" in refusal(tmp_path, named)
    layers = BARE.assign(L=[8, 9, 10, 11, 12] * 7, d=512, n_layer=8).rename(columns={"loss": "val_bpb", "D": "tokens"})
    table = read(tmp_path, layers)
    assert (table.columns["loss"], table.columns["tokens"]) == ("val_bpb", "tokens")
    rate = BARE.assign(tflops=np.linspace(100, 120, 35))
    assert "or leave C out with --column flops=none" in refusal(tmp_path, rate)
    assert read(tmp_path, rate, columns={"flops": "none"}).derived == "C is computed as 6·N·D"
    assert "two columns could be tokens, 'tokens' and 'D'" in refusal(tmp_path, BARE.assign(tokens=524288))
    assert "'budget' labels runs of C from 1e+18 to 1e+20 as one budget" in refusal(tmp_path, RUNS.assign(budget=5))


def test_scores_are_no_losses(tmp_path: Path) -> None:
    assert "is it an accuracy? use an error, such as 1 - loss" in refusal(tmp_path, RUNS.assign(loss=1 - RUNS.loss / 6))
    assert "an accuracy in percent?" in refusal(tmp_path, RUNS.assign(loss=100 - 15 * RUNS.loss))
    assert "all losses are negative" in refusal(tmp_path, RUNS.assign(loss=-RUNS.loss))
    assert "--column params_opt=N fits N_opt(C)" in refusal(tmp_path, RUNS.assign(loss=1.0))
    assert read(tmp_path, RUNS.assign(loss=10.0, final_loss=RUNS.loss)).columns["loss"] == "final_loss"
    table = read(tmp_path, RUNS.assign(train_loss=RUNS.loss - 0.1, val_loss=RUNS.loss + 0.1))
    assert "the loss is 'val_loss'; also there: 'loss', 'train_loss'" in said(table)


@pytest.mark.parametrize(
    "names",
    [
        {"N": "parameter_count", "D": "throughput/total_tokens", "C": "throughput/total_gflops", "loss": "val/loss"},
        {"N": "total_parameter_count", "D": "num_train_tokens", "C": "total_flos", "loss": "eval_loss"},
        {"N": "params_M", "D": "train/tokens", "C": "exaFLOPs", "loss": "val_bpb"},
        {"N": "config.params_active", "D": "summary.tokens", "C": "C [PF-days]", "loss": "metrics/validation loss"},
        {"N": "modelSize", "D": "trainTokens (B)", "C": "numFLOPs", "loss": "perplexity"},
        {"N": "N (millions)", "D": "tokens_in_billions", "C": "flops_per_token", "loss": "loss (bits)"},
    ],
)
def test_names_and_units_in_headers(tmp_path: Path, names: dict[str, str]) -> None:
    scale = {"params_M": 1e6, "N (millions)": 1e6, "trainTokens (B)": 1e9, "tokens_in_billions": 1e9, "exaFLOPs": 1e18,
             "throughput/total_gflops": 1e9, "C [PF-days]": 8.64e19, "loss (bits)": np.log(2)}  # fmt: skip
    columns = {theirs: RUNS[ours] / scale.get(theirs, 1) for ours, theirs in names.items()}
    if names["C"] == "flops_per_token":
        columns["flops_per_token"] = 6 * RUNS.N
    if names["loss"] == "perplexity":
        columns["perplexity"] = np.exp(RUNS.loss)
    table = read(tmp_path, pd.DataFrame(columns).assign(**{"throughput/mfu": 0.4, "tokens_per_second": 1e5}))
    for ours, theirs in (("params", "N"), ("tokens", "D"), ("flops", "C"), ("loss", "loss")):
        assert np.allclose(np.sort(getattr(table.points, ours)), np.sort(RUNS[theirs]))
    if names["loss"] == "perplexity":
        assert "the loss is the natural logarithm of 'perplexity'" in said(table)


def test_shuffled_rows_are_the_same_points_to_the_bit(tmp_path: Path) -> None:
    """A fit is a function of its points: with these the same, so is every answer, draws included."""
    rng = np.random.default_rng(3)
    runs = swept(best=2, seeds=2).assign(loss=lambda t: t.loss + 0.003 * rng.standard_normal(len(t)))
    runs["run"] = [f"r{i}" for i in range(len(runs))]
    tables = [read(tmp_path, runs.sample(frac=1, random_state=seed)) for seed in range(4)]
    for table in tables[1:]:
        for name in ("budget", "flops", "params", "tokens", "loss", "runs"):
            assert (getattr(table.points, name) == getattr(tables[0].points, name)).all(), name
        assert table.settings == tables[0].settings and said(table) == said(tables[0])
    fit = fit_table(tmp_path / "runs.csv", draws=0).fit
    assert "other_settings_left_out" in {flag.code for flag in fit.warnings}  # the Python door says it too


def test_one_cell_with_repeats_is_no_budget(tmp_path: Path) -> None:
    """Six rows with one C label a budget only if they have three sizes."""
    table = read(tmp_path, swept(best=2), best_of=["none"], pool=["lr"])
    assert table.points.labelled  # seven sizes share each C
    scattered = swept(best=2).assign(D=lambda t: t.D * (1 + 1e-6 * t.N.rank(method="dense")))
    table = read(tmp_path, scattered, best_of=["none"], pool=["lr"])
    assert not table.points.labelled and len(np.unique(table.points.budget)) == 5
    near = sweep_on(BESIROGLU, [1e18, 1.2e18, 1.44e18], sizes=5)  # closer than runs of one budget may be: labelled by C
    columns = {"N": near.params, "D": near.tokens, "C": near.flops, "loss": near.loss}
    assert len(np.unique(read(tmp_path, pd.DataFrame(columns)).points.budget)) == 3
