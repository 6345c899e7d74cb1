"""The validity card of a sweep: what its spec and its results say of each check."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flops_fit_ray.analysis import FitOptions, analyse, fit_sweep
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.validity import analysis_document, validity_card
from flops_fit_ray.tables import read_table
from tests.surfaces import HOFFMANN, sweep_on
from tests.sweeps import make_sweep, reference_parts, reference_spec


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    spec = reference_spec(fit={"draws": 0})
    return make_sweep(tmp_path_factory.mktemp("known"), spec, reference_parts(spec))


def card(sweep: Sweep, **train: Any) -> dict[str, tuple[str, str]]:
    changed = sweep.spec.model_copy(update={"train": sweep.spec.train.model_copy(update=train)})
    return {item.item: (item.verdict, item.words) for item in validity_card(sweep.fit, replace(sweep, spec=changed))}


def test_the_learning_rate_is_judged_by_where_it_is_from(sweep: Sweep) -> None:
    unchecked = "; no other rates were tried at the minima"
    one = f"one rate for all sizes: larger models usually need a lower one{unchecked}"
    assert card(sweep)["learning rate"] == ("WARN", one)
    assert card(sweep, lr="auto")["learning rate"] == ("WARN", "a general rule, not measured on this model")
    assert card(sweep, lr="rules:mine")["learning rate"] == ("PASS", f"your own rule{unchecked}")


def test_repeated_data_are_judged_by_their_epochs(sweep: Sweep) -> None:
    assert card(sweep)["data"][0] == "PASS" and sweep.fit.repetition is None
    often = tuple(replace(e, epochs=8.0) for e in sweep.plan.experiments)
    again = replace(sweep, plan=replace(sweep.plan, experiments=often))
    assert again.points.unique == pytest.approx(again.points.tokens / 8)
    verdict, words = card(again)["data"]
    assert verdict == "FAIL" and words.startswith("at most 8 epochs; 21 of 21 losses are of data seen more than once")


def test_the_schedule_is_judged_by_its_end(sweep: Sweep) -> None:
    ends = {name: card(sweep, schedule=name)["schedule ends at D"] for name in ("cosine", "constant", "rules:mine")}
    assert ends["cosine"] == ("PASS", "cosine, decayed over the steps of each experiment's own D")
    assert ends["constant"][0] == "FAIL" and ends["rules:mine"][0] == "WARN"


def test_the_evaluation_names_its_samples_and_the_largest_standard_error(sweep: Sweep) -> None:
    assert sweep.plan.measurements.data.eval_samples == 500  # 5 % of 10,000
    words = "one held-out set of 500 samples for all models, standard error up to 0.3, shared by all models"
    for loss, found in ((40, ("PASS", words)), (20, ("WARN", f"{words}; 1.5 % of the loss: hold out more"))):
        results = tuple(replace(r, loss=loss, loss_stderr=0.1 + i / 100) for i, r in enumerate(sweep.results))
        assert card(replace(sweep, results=results))["evaluation"] == found


def test_the_analysis_of_a_table_warns_of_its_rows_and_of_its_fit(tmp_path: Path) -> None:
    points = sweep_on(HOFFMANN, [1e18, 3e18, 1e19])  # three budgets are too few to trust an exponent
    frame = pd.DataFrame({"N": points.params, "D": points.tokens, "C": points.flops, "loss": points.loss})
    frame.loc[len(frame)] = [1e9, 1e9, 6e18, None]
    frame.to_csv(tmp_path / "runs.csv", index=False)
    table = read_table(tmp_path / "runs.csv")
    fit = fit_sweep(table.points, FitOptions(draws=0))
    codes = [flag["code"] for flag in analysis_document(analyse(fit), validity_card(fit), table)["warnings"]]
    assert fit.warnings and {"refused_rows", *(flag.code for flag in fit.warnings)} <= set(codes)
