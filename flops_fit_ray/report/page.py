"""HTML page and Markdown report of a sweep. Self-contained: no network, no script; figures come in as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import (
    Analysis,
    Interval,
    laws_to_json,
    n_opt_to_json,
    predict,
    prediction_to_json,
)
from flops_fit_ray.report.facts import ADVICE, costs, provenance
from flops_fit_ray.report.figures import draw_valleys, for_page, to_svg, valley_curves
from flops_fit_ray.spec import dump_spec
from flops_fit_ray.storage.paths import SCHEMA_VERSION
from flops_fit_ray.sweep.axis_runs import SweepAxis, axes_of
from flops_fit_ray.sweep.axis_words import axis_head, axis_lines, axis_rows, axis_verdict
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.minima import metrics_at_minima
from flops_fit_ray.sweep.scores import scores_of
from flops_fit_ray.sweep.validity import CardItem
from flops_fit_ray.tables import Table

MAX_VALLEYS, MAX_ROWS, MAX_FAILURES = 40, 250, 60  # rows, so that browsers open the page of 10,000 experiments


@dataclass(frozen=True, kw_only=True)
class BestModel:
    """Best N and D at one C with their loss, and the intervals that are known."""

    budget: float
    params: float
    tokens: float
    loss: float
    params_interval: Interval | None
    tokens_interval: Interval | None
    loss_interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; an interval is [low, high]."""
        return {k: [v.low, v.high] if isinstance(v, Interval) else v for k, v in vars(self).items()}


def best_model(analysis: Analysis) -> BestModel | None:
    """Return the answer at the largest budget with an optimum, or the largest C of a surface; None without either."""
    fit = analysis.fit
    if fit.problem and (fit.default != "valley" or not fit.optima):
        return None
    valley, intervals = fit.optima[-1] if fit.optima else (None, None)
    if fit.default == "valley" and valley is not None:
        return BestModel(
            budget=valley.budget,
            params=valley.params_opt,
            tokens=valley.tokens_opt,
            loss=valley.loss_opt,
            params_interval=intervals.params_opt if intervals else None,
            tokens_interval=intervals.tokens_opt if intervals else None,
            loss_interval=intervals.loss_opt if intervals else None,
        )
    p = predict(fit, fit.fitted_range[1])
    return BestModel(
        budget=p.budget,
        params=p.params,
        tokens=p.tokens,
        loss=p.loss,
        params_interval=p.params_interval,
        tokens_interval=p.tokens_interval,
        loss_interval=p.loss_interval,
    )


def answer_sentence(analysis: Analysis, loss_name: str) -> str:
    """Return the answer in one sentence."""
    a = best_model(analysis)
    if a is None:
        return f"No budget has an optimum yet: {analysis.fit.problem}."
    bounds = [f" {fmt.interval(i.low, i.high)}" if i else "" for i in (a.params_interval, a.tokens_interval)]
    sentence = (
        f"With C = {fmt.flops(a.budget)} FLOPs the best model has N = {fmt.count(a.params)} parameters"
        f"{bounds[0]} and trains on D = {fmt.count(a.tokens)} tokens{bounds[1]}, "
        f"D/N = {a.tokens / a.params:.3g}; {loss_name} {a.loss:.4f}."
    )
    far = [flag.message for p in analysis.predictions for flag in p.warnings if flag.severity == "severe"]
    return " ".join([sentence, *far])


def render(sweep: Sweep, card: Sequence[CardItem], figures: Mapping[str, str]) -> str:
    """Render the page of a sweep. `figures` are SVG elements by name."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            **_of_sweep(sweep, card, figures),
            metrics=sorted({name for r in sweep.results for name in r.metrics}),
            by_key={r.key: r for r in sweep.results},
            replaced={r.key for r in sweep.replaced},
            saved=_saved(sweep),
            spec=dump_spec(sweep.spec),
        )
    )


def render_markdown(sweep: Sweep, card: Sequence[CardItem], figures: Mapping[str, str]) -> str:
    """Render the report as Markdown, for a merge request or a wiki: no table of experiments, figures as links."""
    # Markdown, so no HTML escaping; values in tables pass the filter `cell`
    environment = _environment(autoescape=False, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.md.j2").render(**_of_sweep(sweep, card, figures))


def render_short(sweep: Sweep) -> str:
    """Render an HTML fragment for notebooks: the answer, the valleys, the laws."""
    curves = valley_curves(sweep.fit, sweep.replaced_points)
    drawn = for_page(to_svg(draw_valleys(curves, sweep.loss_name)), f"v{sweep.results_sha256[:8]}") if curves else ""
    return _environment().get_template("short.html.j2").render(**_of_sweep(sweep, (), {"valleys": drawn}))


def summary_to_json(sweep: Sweep) -> dict[str, Any]:
    """Return the content of summary.json: the answer with its intervals, progress and cost of the sweep."""
    fit = sweep.fit
    return {
        "schema_version": SCHEMA_VERSION,
        "name": sweep.plan.name,
        "answer": _answer(sweep),
        "provisional": not sweep.complete,
        "status": sweep.counts,
        "valleys": n_opt_to_json(fit),
        "metrics_at_minima": [asdict(minimum) for minimum in metrics_at_minima(sweep)],
        **laws_to_json(fit.answer, fit),
        "predictions": [prediction_to_json(p, fit.options.confidence) for p in sweep.analysis.predictions],
        "forecasts": scores_of(sweep).to_json(),
        "axes": [axis.to_json() for axis in axes_of(sweep)],
        "problem": fit.problem,
        "warnings": list(sweep.warnings),
        "flops_planned": sweep.plan.flops,
        "flops_spent": sweep.flops_spent,
        "device_seconds": sweep.device_seconds,
        "failures": [
            {"key": f.key, "status": f.status, "error": f.error, "advice": ADVICE[f.status]} for f in sweep.failures
        ],
        "results_sha256": sweep.results_sha256,
        "command": sweep.command,
    }


def _cell(text: str) -> str:
    """Escape text for a cell of a Markdown table, so that it cannot end the cell or begin a tag."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def render_table(
    table: Table, analysis: Analysis, card: Sequence[CardItem], figures: Mapping[str, str], command: str
) -> str:
    """Render the page of a table of runs."""
    return (
        _environment()
        .get_template("table.html.j2")
        .render(
            **_of_fit(analysis, card, figures, "loss"),
            table=table,
            answer=answer_sentence(analysis, "loss"),
            warnings=[*map(str, table.flags), *_shown(analysis, ())],
            command=command,
        )
    )


def _answer(sweep: Sweep) -> str:
    return _one_run(sweep) or answer_sentence(sweep.analysis, sweep.loss_name)


def _of_sweep(sweep: Sweep, card: Sequence[CardItem], figures: Mapping[str, str]) -> dict[str, Any]:
    """Return the values that the HTML and the Markdown report of a sweep share."""
    failed = {f.key: f for f in sweep.failures}
    return {
        **_of_fit(sweep.analysis, card, figures, sweep.loss_name),
        "sweep": sweep,
        "minima": (minima := metrics_at_minima(sweep)),
        "metrics_beyond": sweep.analysis.metrics,
        "minima_metrics": sorted({name for minimum in minima for name in minimum.metrics}),
        "answer": _answer(sweep),
        "forecasts": scores_of(sweep).lines,
        "axes": [(axis, *_axis_words(axis)) for axis in axes_of(sweep)],
        "warnings": [] if sweep.spec.is_one_run else _shown(sweep.analysis, sweep.own_warnings),
        "done": len(sweep.results),
        "total": len(sweep.plan.experiments),
        "failed": failed,
        "failed_rows": [(e, failed[e.key]) for e in sweep.plan.experiments if e.key in failed][:MAX_FAILURES],
        "most_rows": MAX_ROWS,
        "teams": any(r.all_reduce_share is not None for r in sweep.results),
        "advice": ADVICE,
        "costs": costs(sweep),
        "provenance": provenance(sweep),
        "command": sweep.command,
    }


def _axis_words(axis: SweepAxis) -> tuple[str, list[str], list[list[str]], list[str]]:
    """Return the verdict, the head and rows of the table, and the lines below it."""
    if axis.fit is None:
        return axis.problem, [], [], []
    return axis_verdict(axis.fit), axis_head(axis.fit), axis_rows(axis.fit), axis_lines(axis.fit)


def _environment(*, autoescape: bool = True, **blocks: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flops_fit_ray.report"),
        autoescape=autoescape,  # noqa: S701 - only Markdown does without
        undefined=jinja2.StrictUndefined,
        finalize=fmt.printable_value,
        **blocks,  # type: ignore[arg-type] # mypy looks for the bool among options of other types
    )
    environment.filters.update(
        count=fmt.count,
        flops=fmt.flops,
        duration=fmt.duration,
        exp=math.exp,
        within=lambda i: fmt.interval(i.low, i.high),
        cell=_cell,
    )
    return environment


def _of_fit(analysis: Analysis, card: Sequence[CardItem], figures: Mapping[str, str], loss_name: str) -> dict[str, Any]:
    fit = analysis.fit
    names = ("valleys", "laws", "surface", "residuals", "sensitivity", "curves")
    shown = [
        (v, i)
        for v, i in zip(fit.valleys, fit.intervals, strict=True)
        if fit.points.labelled or v.status != "too_few"  # without budgets, a lone run is no valley
    ]
    return {
        "analysis": analysis,
        "served": analysis.served,
        "fit": fit,
        "card": card,
        "timed": analysis.isotime,
        "valleys": shown[:MAX_VALLEYS],
        "more_valleys": max(0, len(shown) - MAX_VALLEYS),
        "percent": f"{100 * fit.options.confidence:g} %",
        "figures": {name: Markup(figures.get(name, "")) for name in names},  # noqa: S704 - drawn by us
        "loss_name": loss_name,
    }


def _shown(analysis: Analysis, of_plan: Sequence[str]) -> list[str]:
    """Return each warning once; notes are not repeated at the top of the page."""
    warnings = [flag.text for flag in analysis.warnings if flag.severity != "info"]
    return list(dict.fromkeys([*warnings, *of_plan]))


def _saved(sweep: Sweep) -> float:
    """Return the share of FLOPs saved by shared trunks."""
    whole = sum(r.flops for r in sweep.results)
    return 1 - sweep.flops_spent / whole if whole else 0.0


def _one_run(sweep: Sweep) -> str:
    """Return the result of a single training run in one sentence; empty for a sweep."""
    if not sweep.spec.is_one_run:
        return ""
    if not sweep.results:
        return "One training run, not completed yet."
    r = max(sweep.results, key=lambda result: result.tokens_seen)
    return (
        f"One training run: N = {fmt.count(r.params)} parameters on D = {fmt.count(r.tokens_seen)} tokens, "
        f"C = {fmt.flops(r.flops)} FLOPs; {sweep.loss_name} {r.loss:.4f}."
    )
