"""A sweep as one HTML page: no network, no script. Words and numbers only; the drawing comes in as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from flops_fit_ray import text
from flops_fit_ray.analysis import Analysis, Interval, predict
from flops_fit_ray.planning import DataFacts
from flops_fit_ray.spec import dump_spec
from flops_fit_ray.sweep import Sweep
from flops_fit_ray.tables import Table
from flops_fit_ray.validity import Line

MOST_VALLEYS = 40  # rows


def answer(analysis: Analysis, loss_name: str) -> str:
    """The answer in one sentence, at the largest budget that has an optimum, or at the largest C of a surface."""
    fit = analysis.fit
    if fit.problem and (fit.default != "valley" or not fit.optima):
        return f"No budget has an optimum yet: {fit.problem}."
    valley, intervals = fit.optima[-1] if fit.optima else (None, None)
    within: list[Interval | None]
    if fit.default == "valley" and valley is not None:
        within = [intervals.params_opt, intervals.tokens_opt] if intervals else [None, None]
        found = (valley.budget, valley.params_opt, valley.tokens_opt, valley.loss_opt)
    else:
        p = predict(fit, fit.fitted_range[1])
        within, found = [p.params_interval, p.tokens_interval], (p.budget, p.params, p.tokens, p.loss)
    bounds = [f" {text.interval(i.low, i.high)}" if i else "" for i in within]
    budget, params, tokens, loss = found
    said = (
        f"With C = {text.flops(budget)} FLOPs the best model has N = {text.count(params)} parameters"
        f"{bounds[0]} and trains on D = {text.count(tokens)} tokens{bounds[1]}, "
        f"D/N = {tokens / params:.3g}; {loss_name} {loss:.4f}."
    )
    far = [flag.message for p in analysis.predictions for flag in p.warnings if flag.severity == "severe"]
    return " ".join([said, *far])


def render(sweep: Sweep, card: Sequence[Line], figures: Mapping[str, str]) -> str:
    """The page of a sweep. `figures` are SVG elements by their names."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            **_of_fit(sweep.analysis, card, figures, sweep.loss_name),
            sweep=sweep,
            answer=_one_run(sweep) or answer(sweep.analysis, sweep.loss_name),
            metrics=sorted({name for r in sweep.results for name in r.metrics}),
            warnings=[] if sweep.spec.is_one_run else _shown(sweep.analysis, sweep.own_warnings),
            done=len(sweep.results),
            total=len(sweep.plan.experiments),
            by_key={r.key: r for r in sweep.results},
            failed={f.key: f for f in sweep.failures},
            replaced={r.key for r in sweep.replaced},
            seconds=sweep.device_seconds,
            saved=_saved(sweep),
            provenance=_provenance(sweep),
            spec=dump_spec(sweep.spec),
            command=sweep.command,
        )
    )


def render_table(
    table: Table, analysis: Analysis, card: Sequence[Line], figures: Mapping[str, str], command: str
) -> str:
    """The page of a table of runs."""
    return (
        _environment()
        .get_template("table.html.j2")
        .render(
            **_of_fit(analysis, card, figures, "loss"),
            table=table,
            answer=answer(analysis, "loss"),
            warnings=[*map(str, table.flags), *_shown(analysis, ())],
            command=command,
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flops_fit_ray.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(count=text.count, flops=text.flops, duration=text.duration, exp=math.exp)
    return environment


def _of_fit(analysis: Analysis, card: Sequence[Line], figures: Mapping[str, str], loss_name: str) -> dict[str, Any]:
    fit = analysis.fit
    names = ("valleys", "laws", "surface", "residuals", "sensitivity", "curves")
    shown = [
        (v, i)
        for v, i in zip(fit.valleys, fit.intervals, strict=True)
        if fit.points.labelled or v.status != "too_few"  # a run near no budget is no valley
    ]
    return {
        "analysis": analysis,
        "fit": fit,
        "card": card,
        "timed": analysis.isotime,
        "valleys": shown[:MOST_VALLEYS],
        "more_valleys": max(0, len(shown) - MOST_VALLEYS),
        "percent": f"{100 * fit.options.confidence:g} %",
        "figures": {name: Markup(figures.get(name, "")) for name in names},  # noqa: S704 - drawn by us
        "loss_name": loss_name,
    }


def _shown(analysis: Analysis, of_plan: Sequence[str]) -> list[str]:
    """Warnings each once; notes stay in the JSON, and where they belong in the page."""
    loud = [flag.message for flag in analysis.warnings if flag.severity != "info"]
    return list(dict.fromkeys([*loud, *of_plan]))


def _saved(sweep: Sweep) -> float:
    """The part of the FLOPs that trunks have spared."""
    whole = sum(r.flops for r in sweep.results)
    return 1 - sweep.flops_spent / whole if whole else 0.0


def _one_run(sweep: Sweep) -> str:
    """What a single training run came to; empty for a sweep."""
    if not sweep.spec.is_one_run:
        return ""
    if not sweep.results:
        return "One training run, not finished yet."
    r = sweep.results[0]
    return (
        f"One training run: N = {text.count(r.params)} parameters on D = {text.count(r.tokens_seen)} tokens, "
        f"C = {text.flops(r.flops)} FLOPs; {sweep.loss_name} {r.loss:.4f}."
    )


def _provenance(sweep: Sweep) -> list[tuple[str, str]]:
    devices = sorted({f"{r.device} ({r.host})" for r in sweep.results})
    versions = sorted({", ".join(f"{k} {v}" for k, v in r.versions.items()) for r in sweep.results})
    size = sweep.plan.survey.sizes[0]
    data = sweep.plan.survey.data
    return [
        ("versions", "; ".join(versions) or "nothing has run"),
        ("devices", "; ".join(devices) or "nothing has run"),
        ("seed", str(sweep.spec.train.seed)),
        ("N is", size.params_source),
        ("FLOPs are", f"{size.flops_source}, forward and backward"),
        ("one token is", data.token_unit),
        ("training data", f"{_length(data)}, {data.fingerprint}"),
        ("held-out data", f"{f'{data.eval_samples:,} samples of ' if data.eval_samples else ''}{data.eval_source}"),
        ("precision", ", ".join(sorted({f"{r.precision}, {r.attention} attention" for r in sweep.results})) or "-"),
        ("MFU is of", "; ".join(sorted({r.peak_source for r in sweep.results})) or "-"),
        ("results", f"sha256 {sweep.results_sha256}"),
    ]


def _length(data: DataFacts) -> str:
    if data.train_samples is None:
        return "a stream of unknown length"
    return f"{data.train_samples:,} samples, {data.tokens_per_epoch:,} tokens"
