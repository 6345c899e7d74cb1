"""Commands that read a sweep or a table of runs: fit, predict, compare, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flops_fit_ray.cli._common import LocalPath, StoragePathType, echo, json_option, open_directory
from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED, FitError, SpecError
from flops_fit_ray.fit_options import CHOICES, FIT_DEFAULTS, LIMITS, PINS, FitOptions, check_pins
from flops_fit_ray.storage.storage_path import StoragePath, local_path, storage_path

if TYPE_CHECKING:
    from flops_fit_ray.analysis import SweepFit
    from flops_fit_ray.planning import Plan
    from flops_fit_ray.sweep.directory import Sweep
    from flops_fit_ray.sweep.recommend import Recommendation
    from flops_fit_ray.tables import Table

MIN_DRAWS, MAX_REFITTED = 400, 4_000_000  # draws; rows times draws, which take about 3 seconds

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _number(name: str) -> click.ParamType[Any]:
    """Return the parameter type with the limits of a setting."""
    limits = LIMITS[name]
    low, high = (a if a is not None else b for a, b in ((limits.ge, limits.gt), (limits.le, limits.lt)))
    if limits.whole:
        return click.IntRange(None if low is None else int(low), None if high is None else int(high))
    return click.FloatRange(low, high, min_open=limits.gt is not None, max_open=limits.lt is not None)


def _choice(name: str) -> click.Choice[str]:
    return click.Choice(CHOICES[name])


_FIT_OPTIONS = [
    click.option("--method", type=_choice("method"),
                 help=f"Method of the reported laws [default: {FitOptions.method}, valleys where there are two]."),
    click.option("--curve", type=_choice("curve"), help=f"The curve of a valley [default: {FitOptions.curve}]."),
    click.option("--window", type=_number("window"), help="Fit only the sizes nearest to the lowest loss, this many."),
    click.option("--law-weights", type=_choice("law_weights"),
                 help=f"Weights of the minima in their power law [default: {FitOptions.law_weights}]."),
    click.option("--delta", type=_number("delta"), help=f"Of the Huber loss [default: {FitOptions.delta:g}]."),
    click.option("--undertuned", type=_number("undertuned"),
                 help="Weight of runs above the Huber surface: below 1 they pull less "
                      f"[default: {FitOptions.undertuned:g}]."),
    click.option("--pin", "pins", multiple=True, metavar="NAME=VALUE",
                 help=f"Hold a parameter of the surface: {', '.join(PINS)}."),
    click.option("--draws", "--bootstrap", "draws", type=_number("draws"),
                 help="Bootstrap draws for intervals; 0: no intervals "
                      f"[default: {FitOptions.draws}; above {MAX_REFITTED // FitOptions.draws:,} rows fewer]."),
    click.option("--seed", type=_number("seed"), help=f"Of the bootstrap [default: {FitOptions.seed}]."),
    click.option("--confidence", type=_number("confidence"),
                 help=f"Of the intervals [default: {FitOptions.confidence}]."),
]  # fmt: skip
_TABLE_OPTIONS = [
    click.option("--column", "columns", multiple=True, metavar="params=NAME",
                 help="What a column is: params, tokens, flops, loss, budget, run, weight, seconds."),
    click.option("--unit", "units", multiple=True, metavar="tokens=B", help="What one of a column's units is worth: "
                 "k, M, B, T, EFLOP, PF-days or a number."),
    click.option("--where", multiple=True, metavar="NAME=VALUE", help="Only the rows whose column has this value."),
]  # fmt: skip


def _with(options: Sequence[Callable[[Any], Any]]) -> Callable[[_Function], _Function]:
    def add(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


@click.command()
@click.argument("source", required=False, type=StoragePathType())
@click.option(
    "--at", type=float, multiple=True, metavar="C", help="Answer at C FLOPs; the first is the panel's target."
)
@_with([*_TABLE_OPTIONS, *_FIT_OPTIONS])
@click.option("--report", "report_to", type=LocalPath(), help="Of a table: write report and figures here.")
@json_option
def fit(
    source: StoragePath | None, at: tuple[float, ...], report_to: Path | None, as_json: bool, **options: Any
) -> int:
    """Fit valleys, surfaces and laws to a sweep's completed experiments, or to any table of runs.

    SOURCE is a sweep directory, or a .csv, .tsv, .parquet, .jsonl or .json file with a row per run: loss, and two of
    N, D and C. Columns are found by common names.
    """
    from flops_fit_ray.analysis import analyse
    from flops_fit_ray.console.fit_text import analysis_text, card_text, minima_text, table_text
    from flops_fit_ray.sweep.minima import metrics_at_minima
    from flops_fit_ray.sweep.validity import analysis_document, validity_card

    opened = _open_source(source, options)
    if report_to is not None and opened.table is None:
        raise click.UsageError("--report is for tables; `flops-fit-ray report DIRECTORY` writes that of a sweep")
    analysis = analyse(opened.fit, at)
    card = validity_card(opened.fit, opened.sweep)
    if as_json:
        echo(json.dumps(analysis_document(analysis, card, opened.table), indent=1))
    else:
        if opened.table is not None:
            click.echo(table_text(opened.table))
        table = minima_text(metrics_at_minima(opened.sweep)) if opened.sweep is not None else ""
        metrics = f"at the minima:\n{table}\n\n" if table else ""
        click.echo(f"{analysis_text(analysis)}\n\n{metrics}{card_text(card)}")
    if report_to is not None and opened.table is not None:
        from flops_fit_ray.report import write_table_report

        path = write_table_report(opened.table, analysis, report_to, _command_of(opened.table, options))
        click.echo(f"report: {path}", err=as_json)
    return EXIT_FAILED if opened.fit.problem else EXIT_DONE


@click.command()
@click.argument("words", nargs=-1, metavar="BUDGET [SOURCE]")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="A wall-clock budget on one device instead.")
@click.option("--spec", "spec_to", type=LocalPath(), help="Of a sweep: write the spec of that one run here.")
@_with([*_TABLE_OPTIONS, *_FIT_OPTIONS])
@json_option
def predict(
    words: tuple[str, ...],
    hours: float | None,
    spec_to: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer N, D and loss for BUDGET FLOPs, with intervals and the extrapolation factor.

    Of a sweep also the nearest size, steps, batch, learning rate and hours; with --spec as a spec that `run` takes.
    With --hours instead of BUDGET: the best model for that time, by the surface and the measured speed.
    """
    budget, source = _budget_and_source(words, hours)
    opened = _open_source(source, options)
    if budget is None:
        _predict_hours(opened, hours, as_json)
        return
    from flops_fit_ray import analysis
    from flops_fit_ray.console.fit_text import prediction_text, recommendation_text

    prediction = analysis.predict(opened.fit, budget)
    confidence = opened.fit.options.confidence
    content = analysis.prediction_to_json(prediction, confidence)
    lines = [f"{flag}" for flag in (opened.table.flags if opened.table else ()) if flag.severity != "info"]
    lines.append(prediction_text(prediction, confidence))
    if opened.sweep is not None:
        from flops_fit_ray.sweep.recommend import recommend

        advice = recommend(opened.sweep, opened.fit, prediction)
        content["run"] = advice.to_json()
        lines.append(recommendation_text(advice))
        if spec_to is not None:
            made, missing = _write_spec(advice, spec_to)
            content |= {"spec": str(spec_to), "plan": None if made is None else made.to_json(), "missing": missing}
            lines.append(f"spec: {spec_to}{_planned_words(made)}" + (f"\nnot ready yet: {missing}" if missing else ""))
    elif spec_to is not None:
        raise click.UsageError("--spec needs a sweep directory: a table does not know the model")
    echo(json.dumps(content) if as_json else "\n".join(lines))


@click.command()
@click.argument("first", type=StoragePathType())
@click.argument("second", type=StoragePathType())
@click.option("--at", type=float, metavar="C", help="FLOPs [default: the largest C that both were fitted to].")
@click.option("--figure", type=LocalPath(), help="Draw both here (.svg, .png, .pdf).")
@_with([*_TABLE_OPTIONS, *_FIT_OPTIONS])
@json_option
def compare(
    first: StoragePath, second: StoragePath, at: float | None, figure: Path | None, as_json: bool, **options: Any
) -> None:
    """Compare two sweeps or tables: exponents, and N_opt, D_opt and loss at one C, with intervals of the difference."""
    from flops_fit_ray.analysis import compare as compare_fits
    from flops_fit_ray.analysis import comparison_to_json
    from flops_fit_ray.console.fit_text import comparison_text

    method = options["method"]
    fits = [_open_source(source, options).fit for source in (first, second)]
    for name, one in zip((first, second), fits, strict=True):
        if one.problem:
            raise SpecError(str(name), [f"there is no law: {one.problem}"])
    where = at if at is not None else min(one.fitted_range[1] for one in fits)
    comparison = compare_fits(fits[0], fits[1], where, None if method in (None, "auto") else method)
    echo(json.dumps(comparison_to_json(comparison)) if as_json else comparison_text(comparison, first, second))
    if figure is not None:
        from flops_fit_ray.report.figures import comparison_bands, draw_comparison, save

        save(draw_comparison(comparison_bands(fits, [str(first), str(second)], comparison)), figure)
        click.echo(f"figure: {figure}", err=as_json)


@click.command()
@click.argument("directory", required=False, type=StoragePathType())
@json_option
def report(directory: StoragePath | None, as_json: bool) -> None:
    """Write report.html, tables and figures of a sweep, complete or not. For a table: `fit TABLE --report DIR`."""
    from flops_fit_ray.report import write_report
    from flops_fit_ray.storage.paths import SCHEMA_VERSION

    path = write_report(open_directory(directory))
    echo(json.dumps({"schema_version": SCHEMA_VERSION, "report": str(path)}) if as_json else f"report: {path}")


def _write_spec(advice: Recommendation, path: Path) -> tuple[Plan | None, str]:
    """Write the spec with the nearest size that the model takes. Returns its plan, or the reason why there is none."""
    from flops_fit_ray.planning import make_plan
    from flops_fit_ray.spec import read_spec
    from flops_fit_ray.training.preflight.model_size import measure_spec

    if path.exists():
        raise click.UsageError(f"--spec {path}: is there already; nothing was written")
    sizes = advice.candidates or ((advice.size,) if advice.size is not None else ())
    refused: SpecError | None = None
    for size in sizes or (None,):
        advice.write(path, size)
        spec = read_spec(path)
        try:
            measurements = measure_spec(spec, path.absolute().parent)
        except SpecError as e:
            refused = refused or e
            continue
        try:
            return make_plan(spec, measurements), ""
        except SpecError as e:  # the model is right; the rest, such as too little data, is for its owner to mend
            return None, str(e)
    path.unlink()
    assert refused is not None
    raise SpecError(str(path), [*refused.faults, "put the spec beside the files that the sweep's spec names"])


def _planned_words(plan: Plan | None) -> str:
    if plan is None:
        return ""
    e = plan.experiments[0]
    return f": size {e.size}, N = {e.params:,}, D = {e.tokens:,}, {e.steps:,} steps, lr {e.recipe.lr:.3g}"


class _Opened:
    """Fit of a sweep or of a table."""

    def __init__(self, fit: SweepFit, *, sweep: Sweep | None = None, table: Table | None = None) -> None:
        self.fit, self.sweep, self.table = fit, sweep, table


def _open_source(source: StoragePath | None, options: Mapping[str, Any]) -> _Opened:
    from flops_fit_ray.analysis import fit_sweep

    if source is not None and not source.is_dir() and source.suffix:
        from flops_fit_ray.tables import TableOptions, read_table

        reading = TableOptions(
            columns=dict(_pairs("--column", options["columns"])),
            units=dict(_pairs("--unit", options["units"])),
            where=_pairs("--where", options["where"]),
        )
        table = read_table(local_path(source), reading)
        draws = min(FIT_DEFAULTS.draws, max(MIN_DRAWS, MAX_REFITTED // len(table.points)))
        base = replace(FIT_DEFAULTS, draws=draws)
        return _Opened(fit_sweep(table.points, _fit_options(base, options)), table=table)
    for name in ("columns", "units", "where"):
        if options[name]:
            raise click.UsageError(f"--{name.removesuffix('s')} is for tables, and {source} is a sweep")
    sweep = open_directory(source)
    wanted = _fit_options(sweep.fit_options, options)
    fitted = sweep.fit if wanted == sweep.fit_options else fit_sweep(sweep.points, wanted, sweep.curves)
    return _Opened(fitted, sweep=sweep)


def _fit_options(base: FitOptions, options: Mapping[str, Any]) -> FitOptions:
    names = {*CHOICES, *LIMITS}
    given: dict[str, Any] = {name: value for name, value in options.items() if name in names and value is not None}
    pins: dict[str, float] = {}
    for name, value in _pairs("--pin", options["pins"]):
        try:
            pins[name] = float(value)
        except ValueError as e:
            raise click.UsageError(f"--pin {name}={value}: must be a number") from e
    try:
        check_pins(pins)
    except FitError as e:
        raise click.UsageError(f"--pin: {e}") from e
    if pins:
        given["pins"] = pins
    return replace(base, **given)


def _pairs(option: str, values: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for value in values:
        name, equals, right = value.partition("=")
        if not (name and equals and right):
            raise click.UsageError(f"{option} {value}: must be NAME=VALUE")
        pairs.append((name.strip(), right.strip()))
    return pairs


def _budget_and_source(words: Sequence[str], hours: float | None) -> tuple[float | None, StoragePath | None]:
    """Parse BUDGET [SOURCE], or with --hours [SOURCE] alone."""
    rest = list(words)
    budget = None
    if hours is None:
        if not rest:
            raise click.UsageError("give BUDGET in FLOPs, or --hours")
        first = rest.pop(0)
        try:
            budget = float(first)
        except ValueError as e:
            raise click.UsageError(f"BUDGET {first!r} is not a valid float; give FLOPs, for example 1e21") from e
    if len(rest) > 1:
        raise click.UsageError(f"{' '.join(words)}: too many; give {'BUDGET and ' if hours is None else ''}one SOURCE")
    return budget, storage_path(rest[0]) if rest else None


def _predict_hours(opened: _Opened, hours: float | None, as_json: bool) -> None:
    from flops_fit_ray.analysis import isotime, predict_for_time, timed_to_json
    from flops_fit_ray.console.fit_text import timed_text

    timed = isotime(opened.fit)
    if timed is None:
        raise FitError("a wall-clock budget needs a surface, and the seconds of 3 runs of 2 sizes; see `fit`")
    assert hours is not None
    answer = predict_for_time(timed, 3600 * hours, opened.fit.options.confidence)
    echo(json.dumps(timed_to_json(answer, timed)) if as_json else timed_text(answer, timed, opened.fit))


def _command_of(table: Table, options: Mapping[str, Any]) -> str:
    import shlex

    words = ["flops-fit-ray", "fit", str(table.path)]
    names = {"columns": "column", "units": "unit", "pins": "pin"}
    for name, value in options.items():
        flag = "--" + names.get(name, name).replace("_", "-")
        for one in value if isinstance(value, tuple) else [value]:
            if one is not None:
                words += [flag, str(one)]
    return shlex.join(words)
