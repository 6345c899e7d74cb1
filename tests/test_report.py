"""The directory's views: right numbers, complete tables, a page that stands alone, also on a partial sweep."""

import html
import io
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from flops_fit_ray import Result
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.console.status_text import status_text
from flops_fit_ray.errors import DirectoryError
from flops_fit_ray.formatting import duration
from flops_fit_ray.ledger import COLUMNS
from flops_fit_ray.planning import Rates, plan_from_json, priced
from flops_fit_ray.report import write_report
from flops_fit_ray.report.facts import ADVICE, costs
from flops_fit_ray.report.figures import draw_valleys, law_bands, to_png, to_svg, valley_curves
from flops_fit_ray.report.figures._style import Drawing
from flops_fit_ray.report.page import answer_sentence, render, render_markdown, summary_to_json
from flops_fit_ray.spec import FitSection
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import STATUSES, Sweep, open_sweep
from flops_fit_ray.sweep.minima import metrics_at_minima
from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from tests.parts import BIGRAM, Bigram, spec_of, text, user_parts_of
from tests.records import FAILURE
from tests.streams import Stateful
from tests.sweeps import make_sweep, reference_parts, reference_spec


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    spec = reference_spec()
    return make_sweep(tmp_path_factory.mktemp("known"), spec, reference_parts(spec))


@pytest.fixture(scope="module")
def written(sweep: Sweep) -> Sweep:
    """The same with its report, drawn once."""
    write_report(sweep)
    return sweep


class Closed(HTMLParser):
    """Fails on a tag that is not closed, and collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_known_exponent_comes_out(sweep: Sweep) -> None:
    law = sweep.fit.params_opt
    assert sweep.complete and law is not None and (interval := law.exponent_interval(0.95)) is not None
    assert law.exponent == pytest.approx(0.5, abs=0.06)
    assert interval.low < 0.5 < interval.high


def test_the_page_stands_alone(written: Sweep) -> None:
    sweep = written
    page = local_path(sweep.paths.report).read_text()
    parser = Closed()
    parser.feed(page)
    assert parser.open == []
    assert all(target.startswith("#") for target in parser.fetched)
    assert "<script" not in page
    assert len(page) < 500_000
    assert answer_sentence(sweep.analysis, "held-out loss") in page
    assert "provisional" not in page
    for result in sweep.results:
        assert f"{result.loss:.4f}" in page
        assert f"{result.tokens_seen:,}" in page
        assert result.steps_per_second is not None
        assert f"<td>{result.steps_per_second:.3g}</td><td>{result.samples_per_second:.3g}</td>" in page
    assert "all-reduces" not in page  # nothing was trained by several workers


def test_tables_and_analysis_are_what_the_contract_says(written: Sweep) -> None:
    sweep = written
    parquet, csv = (
        pd.read_parquet(local_path(sweep.paths.results_parquet)),
        pd.read_csv(local_path(sweep.paths.results_csv)),
    )
    contract = [
        "key",
        "budget",
        "size",
        "params",
        "tokens",
        "tokens_seen",
        "flops",
        "loss",
        "loss_stderr",
        "status",
        "seconds",
        "seed",
        "attempts",
    ]
    assert set(contract) <= set(COLUMNS) == set(parquet.columns) == set(csv.columns)
    assert list(parquet["key"]) == [e.key for e in sweep.plan.experiments]
    assert (parquet["tokens"] == parquet["tokens_seen"]).all()
    assert list(parquet["loss"]) == [r.loss for r in sweep.results]
    assert np.allclose(csv["loss"], parquet["loss"], rtol=1e-15)
    analysis = json.loads(sweep.paths.analysis.read_bytes())
    assert analysis["n_opt"]["exponent"] == sweep.fit.params_opt.exponent  # type: ignore[union-attr]
    names = {p.name for p in local_path(sweep.paths.report.parent).rglob("figures/*")}
    drawn = ("valleys", "laws", "surface", "residuals", "sensitivity", "curves")
    assert names == {f"{name}.{suffix}" for name in drawn for suffix in ("svg", "png")}


def test_markdown_and_summary_say_what_the_page_says(written: Sweep) -> None:
    sweep = written
    markdown, content = (
        local_path(sweep.paths.report_markdown).read_text(),
        json.loads(sweep.paths.summary.read_bytes()),
    )
    said = answer_sentence(sweep.analysis, "held-out loss")
    assert said in markdown and content["answer"] == said
    beside = sweep.analysis.published
    assert beside is not None and beside.words in markdown
    assert beside.words in html.unescape(local_path(sweep.paths.report).read_text())
    law = sweep.fit.params_opt
    assert law is not None and content["n_opt"]["exponent"] == law.exponent and law.formula in markdown
    assert content["results_sha256"] == sweep.results_sha256 and sweep.results_sha256 in markdown
    assert len(content["valleys"]) == len(sweep.fit.valleys)
    assert not content["provisional"] and content["failures"] == []
    for name in ("valleys", "laws"):
        assert f"(figures/{name}.svg)" in markdown and sweep.paths.figure(name, "svg").exists()
    widths = [line.count("|") for line in markdown.splitlines() if line.startswith("|")]
    blocks = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    assert widths and all(len({line.count("|") for line in block}) == 1 for block in blocks)  # whole tables


def test_the_page_of_many_experiments_stays_small(sweep: Sweep, tmp_path: Path) -> None:
    def copies(things: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(replace(thing, key=f"{thing.key}-{i}") for thing in things for i in range(60))

    many = replace(
        sweep,
        plan=replace(sweep.plan, experiments=copies(sweep.plan.experiments)),
        results=copies(sweep.results[:14]),
        failures=tuple(replace(FAILURE, key=e.key, error="E" * 5000) for e in copies(sweep.plan.experiments[14:])),
    )
    page = render(replace(many, spec=many.spec.model_copy(update={"fit": FitSection(draws=200)})), (), {})
    assert len(page) < 250_000
    assert "and 1010 more, all in results.csv" in page and "and 360 more." in page


def test_the_cost_is_planned_and_real(sweep: Sweep) -> None:
    rates = Rates(step_seconds={"any": (1e6, 1.0)})
    plan = priced(sweep.plan, "auto", rates=rates)
    again = plan_from_json(json.loads(json.dumps(plan.to_json())))
    assert again.price == plan.price and again == plan
    hours = {line.what: (line.planned, line.real) for line in costs(replace(sweep, plan=plan))}
    assert plan.price is not None and plan.price.device_seconds is not None
    assert hours["training, sum over devices"][0] == duration(plan.price.device_seconds)
    assert hours["training, sum over devices"][1] == duration(sweep.device_seconds)
    assert costs(sweep)[2].planned.startswith("not known")


def test_notebooks_show_results_plans_and_figures(sweep: Sweep) -> None:
    shown = Result(sweep)._repr_html_()
    parser = Closed()
    parser.feed(shown)
    assert parser.open == [] and "<svg" in shown and answer_sentence(sweep.analysis, "held-out loss") in shown
    assert all(target.startswith("#") for target in parser.fetched) and "<script" not in shown
    plan = sweep.plan._repr_html_()
    assert "21 experiments" in plan and plan.count("<tr") == 22
    figure = Result(sweep).plot()
    assert isinstance(figure, Drawing) and figure._repr_png_().startswith(b"\x89PNG")


def test_figures_show_the_fit(sweep: Sweep) -> None:
    curves, (n_opt, d_opt) = valley_curves(sweep.fit), law_bands(sweep.fit)
    for curve, valley in zip(curves, sweep.fit.valleys, strict=True):
        assert curve.minimum == (valley.params_opt, valley.loss_opt)
        assert curve.interval is not None and curve.interval[0] < valley.params_opt < curve.interval[1]
        assert curve.curve_loss.min() == pytest.approx(valley.loss_opt, rel=1e-4)
    assert (n_opt.band_low < n_opt.line).all() and (n_opt.line < n_opt.band_high).all()
    assert d_opt.line_budget[-1] == pytest.approx(10 * d_opt.budget.max())
    drawing = draw_valleys(curves)
    assert to_svg(drawing) == to_svg(draw_valleys(curves))
    assert to_png(drawing).startswith(b"\x89PNG")


@pytest.mark.usefixtures("rough_figures")
def test_a_partial_sweep_has_a_provisional_page(tmp_path: Path) -> None:
    spec = reference_spec()
    for only in (0, 7, 9):
        sweep = make_sweep(tmp_path / str(only), spec, reference_parts(spec), only=only)
        page = local_path(write_report(sweep)).read_text()
        assert f"provisional, {only} of 21 experiments" in page
        waiting = {0: 10, 7: 5, 9: 5}[only]  # sizes of a larger budget whose smaller one is open
        assert sweep.counts == {
            **dict.fromkeys(STATUSES, 0), "completed": only, "waiting": waiting, "planned": 21 - only - waiting
        }  # fmt: skip
        assert "There is no law" in page
        assert f"# known (provisional, {only} of 21 experiments)" in local_path(sweep.paths.report_markdown).read_text()
        content = json.loads(sweep.paths.summary.read_bytes())
        assert content["provisional"] and content["status"]["completed"] == only


@pytest.mark.usefixtures("rough_figures")
def test_failures_are_listed_escaped_and_left_out_of_the_fit(tmp_path: Path) -> None:
    spec = spec_of()
    calls = iter(range(10**9))

    def fragile(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape[0] == 8 and next(calls) == 100:
            raise ValueError("<b>my own bug</b>")
        return torch.nn.functional.mse_loss(outputs, targets)

    sweep = make_sweep(tmp_path, spec, user_parts_of(spec, loss=fragile))
    assert sweep.counts["failed"] == 1 and sweep.counts["completed"] == 5
    (failure,) = sweep.failures
    assert failure.error == "ValueError: <b>my own bug</b>"
    assert "in fragile" in failure.traceback and failure.attempts == 1
    page = local_path(write_report(sweep)).read_text()
    short = local_path(sweep.paths.report_markdown).read_text()
    assert "# sweep (5 of 6 experiments)" in short and "ValueError: &lt;b>my own bug&lt;/b>" in short
    assert ADVICE["failed"] in short and ADVICE["failed"] in page
    (told,) = json.loads(sweep.paths.summary.read_bytes())["failures"]
    assert told["key"] == failure.key and told["advice"] == ADVICE["failed"]
    assert "sweep · 5 of 6 experiments" in page  # nothing is left to run, so it is not provisional
    assert "ValueError: &lt;b&gt;my own bug&lt;/b&gt;" in page and "<b>my own bug" not in page
    assert sum(len(v.loss) for v in sweep.fit.valleys) == 5


def test_what_is_no_sweep_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match="no such directory"):
        open_sweep(tmp_path / "none")
    with pytest.raises(DirectoryError, match="is not a sweep directory"):
        open_sweep(tmp_path)
    spec = reference_spec()
    sweep = make_sweep(tmp_path / "s", spec, reference_parts(spec), only=0)
    local_path(sweep.paths.plan).write_text("{}")
    with pytest.raises(DirectoryError, match="cannot be read as a plan"):
        open_sweep(tmp_path / "s")


@pytest.mark.usefixtures("rough_figures")
def test_a_sweep_without_held_out_data_says_so_wherever_it_speaks_of_losses(tmp_path: Path) -> None:
    spec = spec_of(
        data={"train": "tests.parts:text", "max_epochs": 9, "eval_fraction": 0},
        model=BIGRAM,
        loss="cross_entropy",
        budgets=[2e6, 4e6],
    )
    user = user_parts_of(spec, model=Bigram, train=Stateful())
    sweep = make_sweep(tmp_path, spec, user)
    page = local_path(write_report(sweep)).read_text()
    assert {r.loss_kind for r in sweep.results} == {"training, smoothed"}
    assert sweep.loss_name == "training loss, smoothed"
    assert "there is no held-out data: losses are training losses" in page
    assert "a stream of unknown length" in page
    assert "held-out loss" not in page.lower()
    assert set(sweep.to_frame()["loss_kind"]) == {"training, smoothed"}


@pytest.mark.usefixtures("rough_figures")
def test_metrics_are_columns_of_the_report_and_the_tables(tmp_path: Path) -> None:
    spec = spec_of(
        data={"train": "tests.parts:text", "max_epochs": 9, "bytes_per_token": 2},
        model=BIGRAM,
        loss="cross_entropy",
        budgets=[2e6, 4e6],
    )
    sweep = make_sweep(tmp_path, spec, user_parts_of(spec, model=Bigram, train=text()))
    page = local_path(write_report(sweep)).read_text()
    assert "<th>bits_per_byte</th><th>perplexity</th>" in page
    frame = sweep.to_frame()
    assert list(frame["metric_perplexity"]) == pytest.approx([math.exp(loss) for loss in frame["loss"]])
    assert list(frame["metric_bits_per_byte"]) == pytest.approx([loss / math.log(2) / 2 for loss in frame["loss"]])
    points = pd.read_parquet(local_path(sweep.paths.curve(sweep.results[0].key)))
    assert list(points.columns) == ["step", "tokens", "train_loss", "lr", "grad_norm", "eval_loss", "seconds"]
    assert points["eval_loss"].iloc[-1] == sweep.results[0].loss


def test_metrics_at_the_minima_are_read_off_the_curves_of_the_valleys(sweep: Sweep, tmp_path: Path) -> None:
    """A metric that is linear in the loss has its value at N_opt exactly; what follows from a loss is that of L_opt."""
    results = tuple(
        replace(r, metrics={"double": 2 * r.loss + 1, **({"some": 1.0} if i % 2 else {})})
        for i, r in enumerate(sweep.results)
    )
    data = sweep.spec.data.model_copy(update={"bytes_per_token": 4.0})
    for spec, nats in (
        (sweep.spec.model_copy(update={"loss": "mine:loss", "data": data}), None),
        (sweep.spec.model_copy(update={"loss": "mine:loss", "data": data, "loss_unit": "nats"}), 1.0),
        (sweep.spec.model_copy(update={"loss": "mine:loss", "data": data, "loss_unit": "bits"}), math.log(2)),
        (sweep.spec.model_copy(update={"loss": "cross_entropy", "data": data}), 1.0),
    ):
        known = replace(sweep, paths=SweepPaths(tmp_path), results=results, spec=spec)
        frame = Result(known).metrics_at_minima()
        valleys = [v for v in sweep.fit.valleys if v.status == "interior"]
        assert len(valleys) >= 3 and list(frame["params"]) == [v.params_opt for v in valleys]
        assert list(frame["double"]) == pytest.approx([2 * v.loss_opt + 1 for v in valleys], rel=1e-9)
        derived = {"perplexity", "bits_per_byte"} if nats else set()
        assert set(frame) == {"budget", "params", "loss", "double", *derived}
        if nats:
            assert list(frame["perplexity"]) == pytest.approx([math.exp(nats * v.loss_opt) for v in valleys])
            assert list(frame["bits_per_byte"]) == pytest.approx([nats * v.loss_opt / math.log(2) / 4 for v in valleys])
    cubic = known.fitted(replace(known.fit_options, curve="cubic", draws=0))  # as `fit --curve cubic` does
    minima = [v.params_opt for v in cubic.valleys if v.status == "interior"]
    assert [m.params for m in metrics_at_minima(known, cubic)] == minima != list(frame["params"])
    page, lines = render(known, (), {}), io.StringIO()
    assert "Metrics at the minima" in page and "<th>double</th><th>perplexity</th>" in page
    assert "| C | N_opt | bits_per_byte | double | perplexity |\n|---|---|---|---|---|\n| " in render_markdown(
        known, (), {}
    )
    assert summary_to_json(known)["metrics_at_minima"][0]["metrics"]["double"] == frame["double"][0]
    PlainConsole(lines).result(known, 1.0)
    assert "at the minima:\n" in lines.getvalue() and "bits_per_byte  double  perplexity" in lines.getvalue()


def test_status_says_what_can_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    spec = reference_spec()
    sweep = make_sweep(tmp_path, spec, reference_parts(spec), only=3)
    assert "checkpoints" not in status_text(sweep)
    finished, begun = sweep.plan.experiments[0].key, sweep.plan.experiments[5].key
    for key in (finished, begun):
        CheckpointStore(sweep.paths.checkpoints(key).directory, key=key).save({"step": 1}, 1)
    assert "checkpoints: 1 unfinished experiments resume from one" in status_text(sweep)
    sweep.paths.checkpoints(begun).note(1).unlink()  # it was being written when its writer ended
    assert "checkpoints" not in status_text(sweep)
