"""An adaptive sweep from plan to report, really trained: what its directory holds, and what readers make of it."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flops_fit_ray.cli import main
from flops_fit_ray.errors import SpecError
from flops_fit_ray.formatting import count
from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.planning import plan_from_json, stated_rate
from flops_fit_ray.report import write_report
from flops_fit_ray.report.figures import draw_valleys, valley_curves
from flops_fit_ray.report.write import write_tables
from flops_fit_ray.spec import LrRule
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.sweep.extend import better_lr, extend_spec
from flops_fit_ray.sweep.recorded import (
    Addition,
    Origin,
    record_origin,
    record_rates,
    recorded_constants,
    recorded_rates,
)
from flops_fit_ray.sweep.validity import validity_card
from flops_fit_ray.tables import read_table
from tests.sweeps import adaptive_reference_spec, grow_sweep, reference_parts, reference_spec


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    spec = adaptive_reference_spec(lr_check="all", rerun_outliers=False)
    return grow_sweep(tmp_path_factory.mktemp("sweep"), spec, reference_parts(spec))


def test_it_finds_the_known_exponent_with_sizes_of_its_own(sweep: Sweep) -> None:
    assert sweep.complete and sweep.plan.final and sweep.plan.forecast == ()
    law = sweep.fit.params_opt
    assert law is not None and (interval := law.exponent_interval(0.95)) is not None
    assert interval.low < 0.5 < interval.high
    assert all(v.status == "interior" for v in sweep.fit.valleys)
    assert (sweep.to_frame()["tokens"] == sweep.to_frame()["tokens_seen"]).all()


def test_the_fit_rests_on_the_grid_and_its_seeds(sweep: Sweep) -> None:
    roles = [r.role for r in sweep.results]
    assert roles.count("lr_check") == 6 and roles.count("seed") == 4
    assert {r.role for r in sweep.standing} == {"grid", "seed"}
    assert len(sweep.points) == len(sweep.results) - 6
    assert sweep.fit.options.reach == sweep.plan.reach == pytest.approx(4 * 2**0.5)  # all valleys of the same width
    assert sweep.fit.seeds is not None and sweep.fit.seeds.df >= 4
    assert sweep.points.num_runs < len(sweep.points)


def test_it_is_gone_on_with_and_nothing_runs_again(sweep: Sweep) -> None:
    files = {p: local_path(p).stat().st_mtime_ns for p in sweep.paths.root.glob("experiments/*/result.json")}
    again = grow_sweep(sweep.paths.root, sweep.spec, reference_parts(sweep.spec))
    assert {p: local_path(p).stat().st_mtime_ns for p in sweep.paths.root.glob("experiments/*/result.json")} == files
    assert again.results_sha256 == sweep.results_sha256


def test_one_more_budget_keeps_every_result(sweep: Sweep, tmp_path: Path) -> None:
    root = shutil.copytree(local_path(sweep.paths.root), tmp_path / "wider")
    wider = grow_sweep(root, extend_spec(sweep.spec, budgets=[3.2e6]), reference_parts(sweep.spec))
    assert {r.key for r in sweep.results} <= {r.key for r in wider.results}
    new = {r.key for r in wider.results} - {r.key for r in sweep.results}
    assert {r.budget for r in wider.results if r.key in new} == {3.2e6}
    old = {r.key for r in sweep.results}
    assert any(r.parent in old for r in wider.results if r.key in new)  # a kept trunk was gone on from
    assert wider.flops_spent < 0.96 * sum(r.flops for r in wider.results)


def test_a_budget_that_its_law_puts_beyond_the_data_is_refused_before_it_is_paid_for(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sweep.results_sha256
    law = sweep.fit.params_opt
    assert law is not None
    with pytest.raises(SystemExit) as ended:
        main(["extend", str(sweep.paths.root), "--budget", "1e8"])
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert f"C = 1e8 has its minimum predicted at N = {count(law.at(1e8))}, and the smallest model that" in said
    assert "so that its valley would have no minimum: give at least" in said and "or a C up to" in said
    again = open_sweep(sweep.paths.root)
    assert again.results_sha256 == before and again.spec == sweep.spec


@pytest.mark.usefixtures("rough_figures")
def test_the_card_and_the_report_speak_of_it(sweep: Sweep) -> None:
    card = {line.item: line for line in validity_card(sweep.fit, sweep)}
    limited = [check for check in sweep.lr_checks if check.better]
    said = "LR-limited" if limited else "6 checks with other rates at minima"
    assert len(sweep.lr_checks) == 6 and said in card["learning rate"].words
    assert "shared along trunks" in card["noise"].words
    write_report(sweep)
    page = local_path(sweep.paths.report).read_text()
    assert "fewer FLOPs than as separate runs" in page and "around the predicted N" in page and "first valley" in page
    assert "0.5 times the learning rate, at the minimum" in page


def test_a_rate_that_is_clearly_better_is_called_so(sweep: Sweep) -> None:
    check = sweep.lr_checks[0]
    better = replace(check, gain=10 * (check.sigma or 1.0))
    assert better.better and not replace(check, gain=0.0).better
    assert "LR-limited: at C = 50000" in better.words(None)
    lucky = sweep.lr_checks[0]
    results = tuple(
        replace(r, loss=r.loss - 10 * (lucky.sigma or 1.0)) if r.role == "lr_check" and r.budget == 5e4 else r
        for r in sweep.results
    )
    tuned = replace(sweep, results=results)
    assert any("LR-limited" in w for w in tuned.warnings)
    card = {line.item: line for line in validity_card(tuned.fit, tuned)}
    assert card["learning rate"].verdict == "FAIL" and "train.lr: {base: " in card["learning rate"].words
    assert "lr={'base': " in replace(tuned, base=None).lr_limited[0]  # of a program


def test_a_batch_size_that_is_clearly_better_is_called_so(sweep: Sweep, tmp_path: Path) -> None:
    asked = sweep.spec.model_copy(update={"grid": sweep.spec.grid.model_copy(update={"batch_check": "all"})})
    root = shutil.copytree(local_path(sweep.paths.root), tmp_path / "checked")
    checked = grow_sweep(root, asked, reference_parts(asked))
    assert len(checked.results) == len(sweep.results) + 6
    assert [(v.params_opt, v.loss_opt) for v in checked.fit.valleys] == [
        (v.params_opt, v.loss_opt) for v in sweep.fit.valleys
    ]
    checks = checked.batch_checks
    assert [(c.batch_size, c.grid_batch_size, c.lr_factor) for c in checks] == [(2, 4, 0.5), (8, 4, 2.0)] * 3
    # SGD far below the critical batch size: with a rate in proportion the batch size makes no difference
    assert all(abs(c.gain) < 1e-4 for c in checks) and checked.batch_limited == ()
    card = {line.item: line for line in validity_card(checked.fit, checked)}
    steps = min(e.steps for e in sweep.plan.experiments)  # those of checks are fewer
    assert f"batches of 4 samples; {steps} steps in the shortest run" in card["batch and steps"].words
    assert "6 checks with other batch sizes at minima gain" in card["batch and steps"].words

    write_tables(checked)  # whose rows a fit of the table leaves out as the sweep's own does
    (flag,) = (f for f in read_table(local_path(checked.paths.results_csv)).flags if f.code == "other_values_left_out")
    assert flag.message.startswith("6 of 27 rows")

    lower = {r.key: r.loss - ((r.role, r.budget) == ("batch_check", 2e5)) for r in checked.results}
    limited = replace(checked, results=tuple(replace(r, loss=lower[r.key]) for r in checked.results))
    first, second = limited.batch_limited
    assert (
        first.startswith("batch-limited: at C = 200000, size ") and "batches of 2 samples instead of 4, at 0.5" in first
    )
    assert second.endswith("to train all with them, train.batch_size: 8, --new")
    assert replace(limited, base=None).batch_limited[1].endswith("batch_size=8, new=True")  # of a program
    card = {line.item: line for line in validity_card(limited.fit, limited)}
    assert card["batch and steps"].verdict == "FAIL" and {first, second} <= {
        w.partition(" [")[0] for w in limited.warnings
    }


def test_rates_that_the_checks_ask_for_are_trained_on_request(sweep: Sweep, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="none of 6 checks found a clearly better"):
        better_lr(
            replace(sweep, results=tuple(replace(r, loss=9) if r.role == "lr_check" else r for r in sweep.results))
        )
    with pytest.raises(SpecError, match="set grid.lr_check to all"):
        better_lr(replace(sweep, results=tuple(r for r in sweep.results if r.role != "lr_check")))
    by_key = {r.key: r for r in sweep.results}

    def as_if(r: ExperimentResult) -> ExperimentResult:
        """Twice the rate of every checked minimum is the best there."""
        of = by_key.get(str(r.of))
        return r if r.role != "lr_check" or of is None else replace(r, loss=of.loss + (-1 if r.lr > of.lr else 1))

    limited = replace(sweep, results=tuple(map(as_if, sweep.results)), plan=replace(sweep.plan, lr=None))
    rule, found = better_lr(limited)
    middle = [by_key[str(r.of)] for r in sweep.results if r.role == "lr_check"]
    ratios = [rule.base * (r.params / rule.at) ** rule.exponent / r.lr for r in middle]
    assert math.prod(ratios) ** (1 / len(ratios)) == pytest.approx(2, rel=0.1)
    again = extend_spec(sweep.spec, lr=rule)
    assert again.train.lr == rule and again.grid.lr_check == "all"
    assert extend_spec(reference_spec(), lr=rule).grid.lr_check == "lower"
    # What the rates rest on is kept beside them, and is a part of the intervals as probes are
    record_origin(SweepPaths(tmp_path), Origin(command="", added=(Addition(lr=found),)))
    trained = replace(sweep, paths=SweepPaths(tmp_path), spec=again, plan=replace(sweep.plan, lr=None), results=())
    trained = replace(trained, results=tuple(r for r in sweep.results if r.role == "grid"))
    assert trained.lr_again == found and {lr for _, _, lr, _ in found.tried} == {r.lr for r in sweep.results}
    rates = trained.fit.rates
    assert rates is not None and trained.points.lr is not None
    card = {line.item: line for line in validity_card(trained.fit, trained)}["learning rate"]
    assert card.verdict == "WARN" and "that the checks of the sweep before asked for: lr ~ N^" in card.words
    own = again.train.model_copy(update={"lr": LrRule(base=rule.base / 2, at=rule.at, exponent=rule.exponent)})
    owned = replace(trained, spec=again.model_copy(update={"train": own}))  # a rate of the user's own is the best
    assert owned.lr_again is None and owned.points.tried is None and owned.fit.rates is None


def test_a_rerun_stands_for_what_it_repeats_and_both_are_drawn(sweep: Sweep) -> None:
    first = next(r for r in sweep.results if r.role == "grid")
    rerun = replace(first, key="f" * 16, role="rerun", of=first.key, loss=first.loss * 0.9)
    with_both = replace(sweep, results=(*sweep.results, rerun))
    assert [r.key for r in with_both.replaced] == [first.key]
    assert first.key not in {r.key for r in with_both.standing} and rerun in with_both.standing
    curves = valley_curves(sweep.fit, with_both.replaced_points)
    assert sum(len(c.replaced) for c in curves) == 1
    assert [len(set(c.params)) for c in curves] == [5, 3, 3]
    assert [bool(c.used.all()) for c in curves] == [True] * 3  # the window holds all sizes of each valley
    axes = draw_valleys(curves).axes[0]
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert len(crosses) == 1 and float(np.asarray(crosses[0].get_ydata())[0]) == first.loss


def test_the_plan_on_disk_is_the_plan_with_its_decisions(sweep: Sweep) -> None:
    content = json.loads(sweep.paths.plan.read_bytes())
    assert plan_from_json(content) == sweep.plan
    contract = {"role", "reason", "of", "parent", "start_step", "flops_executed"}
    assert all(contract <= e.keys() for e in content["experiments"])
    assert recorded_constants(sweep.paths) == sweep.plan.constants
    for r in sweep.results:
        assert Ledger(sweep.paths).planned(r.key).key == r.key
    write_json(sweep.paths.plan, {**content, "frame": {}})
    assert recorded_constants(sweep.paths) == sweep.plan.constants  # which lie beside the plan, too
    aside = sweep.paths.origin.rename(sweep.paths.root / "aside")
    assert recorded_constants(sweep.paths) is None
    aside.rename(sweep.paths.origin)
    write_json(sweep.paths.plan, content)
    assert open_sweep(sweep.paths.root).plan == sweep.plan


def test_rates_belong_to_their_sweep(sweep: Sweep) -> None:
    rates = stated_rate(1e9, 2)
    record_rates(sweep.paths, sweep.plan.constants, rates)
    assert recorded_rates(sweep.paths, sweep.plan.constants) == rates
    assert recorded_rates(sweep.paths, replace(sweep.plan.constants, identity="other")) is None
    content = read_json(sweep.paths.rates) or {}
    write_json(sweep.paths.rates, {**content, "rates": {}})
    assert recorded_rates(sweep.paths, sweep.plan.constants) is None
