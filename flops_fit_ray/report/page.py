"""A sweep as one HTML page: no network, no script. Words and numbers only; the drawing comes in as SVG."""

from __future__ import annotations

from collections.abc import Mapping

import jinja2
from markupsafe import Markup

from flops_fit_ray import text
from flops_fit_ray.analysis import SweepFit
from flops_fit_ray.planning import DataFacts
from flops_fit_ray.spec import dump_spec
from flops_fit_ray.sweep import Sweep


def answer(fit: SweepFit, loss_name: str) -> str:
    """The answer in one sentence, at the largest budget that has an optimum."""
    if not fit.optima:
        return "No budget has an optimum yet: " + (fit.problem or "no experiment is completed") + "."
    valley, intervals = fit.optima[-1]
    bounds = ("", "")
    if intervals is not None:
        bounds = (
            f" {text.interval(intervals.params_opt.low, intervals.params_opt.high)}",
            f" {text.interval(intervals.tokens_opt.low, intervals.tokens_opt.high)}",
        )
    return (
        f"With C = {text.flops(valley.budget)} FLOPs the best model has N = {text.count(valley.params_opt)} parameters"
        f"{bounds[0]} and trains on D = {text.count(valley.tokens_opt)} tokens{bounds[1]}, "
        f"D/N = {valley.tokens_opt / valley.params_opt:.3g}; {loss_name} {valley.loss_opt:.4f}."
    )


def render(sweep: Sweep, figures: Mapping[str, str]) -> str:
    """The page. `figures` are SVG elements named valleys and laws."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flops_fit_ray.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(count=text.count, flops=text.flops, duration=text.duration)
    return environment.get_template("report.html.j2").render(
        sweep=sweep,
        fit=sweep.fit,
        answer=answer(sweep.fit, sweep.loss_name),
        metrics=sorted({name for r in sweep.results for name in r.metrics}),
        warnings=sweep.warnings,
        valleys=list(zip(sweep.fit.valleys, sweep.fit.intervals, strict=True)),
        percent=f"{100 * sweep.fit.options.confidence:g} %",
        figures={name: Markup(svg) for name, svg in figures.items()},  # noqa: S704 - drawn by us
        done=len(sweep.results),
        total=len(sweep.plan.experiments),
        by_key={r.key: r for r in sweep.results},
        failed={f.key: f for f in sweep.failures},
        seconds=sum(r.seconds for r in sweep.results),
        provenance=_provenance(sweep),
        spec=dump_spec(sweep.spec),
        command=sweep.command,
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
