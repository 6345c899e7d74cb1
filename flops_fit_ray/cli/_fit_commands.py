"""Commands that read a sweep or a table of runs: fit, compare, report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flops_fit_ray.cli._common import POSITIVE, LocalPath, StoragePathType, echo, json_option, open_directory
from flops_fit_ray.cli._next import MOST_NEXT, NextWanted, choose_next, next_wanted
from flops_fit_ray.cli._put import put_text
from flops_fit_ray.cli._sources import (
    FIT_OPTIONS,
    TABLE_OPTIONS,
    Opened,
    command_of,
    fit_options_of,
    open_source,
    opened_sweep,
    opened_table,
    reading_of,
    with_options,
)
from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED, FlopsFitError, SpecError
from flops_fit_ray.fit_options import FIT_DEFAULTS
from flops_fit_ray.storage.storage_path import StoragePath, local_path
from flops_fit_ray.sweep.sources import is_table, path_or_law, shadowed

if TYPE_CHECKING:
    from flops_fit_ray.analysis import Analysis, NextRuns, PublishedLaw, SweepFit
    from flops_fit_ray.flags import Flag
    from flops_fit_ray.sweep.directory import Sweep
    from flops_fit_ray.sweep.validity import CardItem
    from flops_fit_ray.tables import Loaded, Optima, Table


@click.command()
@click.argument("source", required=False, type=StoragePathType())
@click.option(
    "--at", type=POSITIVE, multiple=True, metavar="C", help="Answer at C FLOPs; the first is the panel's target."
)
@with_options([*TABLE_OPTIONS, *FIT_OPTIONS])
@click.option("--each", metavar="NAME", help="Of a table: fit the rows of every value of this column apart.")
@click.option("--report", "report_to", type=LocalPath(), help="Of a table: write report and figures here.")
@click.option(
    "--next",
    "count",
    type=click.IntRange(min=1, max=MOST_NEXT),
    metavar="RUNS",
    help="Name the runs that would narrow N_opt at the target most for their FLOPs.",
)
@click.option("--target", type=POSITIVE, metavar="C", help="Of --next [default: that of --at, or 10x the largest C].")
@click.option("--at-most", type=POSITIVE, metavar="FLOPS", help="Of all runs of --next [default: twice those so far].")
@json_option
def fit(
    source: StoragePath | None,
    at: tuple[float, ...],
    each: str | None,
    report_to: Path | None,
    count: int | None,
    target: float | None,
    at_most: float | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Fit valleys, surfaces and laws to a sweep's completed experiments, or to any table of runs.

    SOURCE is a sweep directory, or a .csv, .tsv, .parquet, .jsonl or .json file with a row per run: loss, and two of
    N, D and C. Columns are found by common names. What was assumed is said, row by row where it matters; units that
    cannot be, and columns that split the rows, are refused with the option that mends it. A table of optima (C, n_opt)
    gets power laws.
    """
    following = next_wanted(count, target, at_most, at)
    if each is None:
        code, content = _fit_one(source, at, report_to, as_json, options, following)
        if as_json:
            echo(json.dumps(content, indent=1))
        return code
    if source is None or not is_table(source):
        raise click.UsageError(f"--each is for tables, and {source} is a sweep")
    from flops_fit_ray.storage.paths import SCHEMA_VERSION, file_name
    from flops_fit_ray.tables import load, values_of

    codes, contents = [], {}
    path = local_path(source)
    file = load(path)
    for value in values_of(path, file, each, reading_of(options)):
        if not as_json:
            put_text(f"{each} = {value}")
        try:
            code, contents[value] = _fit_one(
                source,
                at,
                None if report_to is None else report_to / file_name(value),
                as_json,
                options | {"where": (*options["where"], f"{each}={value}")},
                following,
                file,
            )
        except FlopsFitError as e:  # the others are fitted all the same
            code, contents[value] = e.exit_code, {"error": str(e)}
            put_text(f"error: {e}", err=as_json)
        codes.append(code)
        if not as_json:
            put_text()
    if as_json:
        echo(json.dumps({"schema_version": SCHEMA_VERSION, "each": each, "fits": contents}, indent=1))
    return max(codes, default=EXIT_DONE)


def _fit_one(
    source: StoragePath | None,
    at: tuple[float, ...],
    report_to: Path | None,
    as_json: bool,
    options: Mapping[str, Any],
    following: NextWanted | None = None,
    file: Loaded | None = None,
) -> tuple[int, dict[str, Any]]:
    """Fit one sweep or table, print it unless it is wanted as JSON, and return the exit code and the content.

    Args:
        following: what was asked of --next.
        file: the table, loaded; None: it is loaded here.
    """
    from flops_fit_ray.analysis import analyse
    from flops_fit_ray.sweep.validity import analysis_document, validity_card
    from flops_fit_ray.tables import Optima, load, read_loaded

    if source is not None and (file is not None or is_table(source)):
        local = local_path(source)
        table = read_loaded(local, load(local) if file is None else file, reading_of(options))
        if isinstance(table, Optima):
            if report_to is not None:
                raise click.UsageError("--report needs a table of runs, and this is one of optima")
            if following is not None:
                raise click.UsageError("--next needs a table of runs, and this is one of optima")
            return EXIT_DONE, _show_optima(table, at, as_json, options)
        opened = opened_table(table, options)
    else:
        opened = opened_sweep(source, options)
    if report_to is not None and opened.table is None:
        raise click.UsageError("--report is for tables; `flops-fit-ray report DIRECTORY` writes that of a sweep")
    chosen = None if following is None else choose_next(opened, following)
    analysis = analyse(opened.fit, at)
    card = validity_card(opened.fit, opened.sweep, opened.table)
    if not as_json:
        _print_fit(opened, analysis, card, chosen)
    if report_to is not None and opened.table is not None:
        from flops_fit_ray.report import write_table_report

        path = write_table_report(opened.table, analysis, report_to, command_of(opened.table, options))
        put_text(f"report: {path}", err=as_json)
    content = analysis_document(analysis, card, opened.table) if as_json else {}
    if chosen is not None:
        content["next_runs"] = chosen.to_json()
    return EXIT_FAILED if opened.fit.problem else EXIT_DONE, content


def _print_fit(opened: Opened, analysis: Analysis, card: Sequence[CardItem], chosen: NextRuns | None) -> None:
    from flops_fit_ray.console.fit_text import analysis_text, card_text, minima_text, table_text
    from flops_fit_ray.console.next_text import next_runs_text
    from flops_fit_ray.sweep.minima import metrics_at_minima

    if opened.table is not None:
        put_text(table_text(opened.table))
    table_of_minima = minima_text(metrics_at_minima(opened.sweep, opened.fit)) if opened.sweep is not None else ""
    metrics = f"at the minima:\n{table_of_minima}\n\n" if table_of_minima else ""
    put_text(f"{analysis_text(analysis)}\n\n{metrics}{card_text(card)}")
    if chosen is not None:
        put_text(f"\n{next_runs_text(chosen)}")


def _show_optima(optima: Optima, at: Sequence[float], as_json: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    from flops_fit_ray.analysis.prediction import check_budget

    for c in at:
        check_budget(c)
    confidence = fit_options_of(FIT_DEFAULTS, options).confidence
    targets = list(at) or [10 * float(optima.flops.max())]
    if not as_json:
        for line in optima.lines(targets, confidence):
            put_text(line)
    return optima.to_json(targets, confidence)


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--at", type=POSITIVE, metavar="C", help="FLOPs [default: the largest C that both were fitted to].")
@click.option("--figure", type=LocalPath(), help="Draw both here (.svg, .png, .pdf).")
@with_options([*TABLE_OPTIONS, *FIT_OPTIONS])
@json_option
def compare(first: str, second: str, at: float | None, figure: Path | None, as_json: bool, **options: Any) -> None:
    """Compare two sweeps or tables: is the second better, and by how much compute?

    The effective speedup is the factor of C by which the first reaches the loss of the second, with its interval, over
    the budgets of both and at C, and what would decide it where it is not told; exponents, N_opt, D_opt and loss at C
    beside each other. Losses of different kinds are not compared; other data are said.

    FIRST and SECOND are sweep directories, tables of runs, or names of published laws (`laws` lists them).
    """
    from flops_fit_ray.analysis import common_budget, comparison_to_json
    from flops_fit_ray.analysis import compare as compare_fits
    from flops_fit_ray.console.fit_text import comparison_text

    method = options["method"]
    sides = [_side(name, options) for name in (first, second)]
    where = at if at is not None else common_budget(sides[0].of, sides[1].of)
    known = []
    if sides[0].source is not None and sides[1].source is not None:
        from flops_fit_ray.sweep.comparability import comparability

        known = comparability(sides[0].source, sides[1].source)
    wanted = None if method in (None, "auto") else method
    comparison = compare_fits(sides[0].of, sides[1].of, where, wanted, known=known)
    content = comparison_to_json(comparison)
    assumed = [flag.to_json() | {"message": f"{side.name}: {flag}"} for side in sides for flag in side.assumed]
    content["warnings"] = [*assumed, *content["warnings"]]
    notes = [f"note: {flag['message']} [{flag['code']}]" for flag in assumed]
    notes += [f"note: {hidden}" for hidden in (shadowed(first), shadowed(second)) if hidden]
    echo(json.dumps(content) if as_json else "\n".join([comparison_text(comparison, first, second), *notes]))
    if figure is not None:
        from flops_fit_ray.report.figures import comparison_bands, draw_comparison, save

        bands = comparison_bands([side.of for side in sides], [first, second], comparison)
        save(draw_comparison(bands, comparison.speedup), figure)
        put_text(f"figure: {figure}", err=as_json)


@dataclass(frozen=True)
class _Side:
    """One of the two that are compared: a fit or a published law, its name, and what its table rests on."""

    of: SweepFit | PublishedLaw
    name: str
    assumed: Sequence[Flag] = ()
    source: Sweep | Table | None = None


def _side(name: str, options: Mapping[str, Any]) -> _Side:
    """Open one side of a comparison.

    Raises:
        SpecError: there is nothing of this name, or no law in it.
    """
    path, law = path_or_law(name)
    if law is not None:
        return _Side(law, name)
    opened = open_source(path, options)
    if opened.fit.problem:
        raise SpecError(name, [f"there is no law: {opened.fit.problem}"])
    return _Side(opened.fit, name, opened.assumed, opened.sweep or opened.table)


@click.command()
@click.argument("directory", required=False, type=StoragePathType())
@json_option
def report(directory: StoragePath | None, as_json: bool) -> None:
    """Write report.html, tables and figures of a sweep, complete or not. For a table: `fit TABLE --report DIR`."""
    from flops_fit_ray.report import write_report
    from flops_fit_ray.storage.paths import SCHEMA_VERSION

    path = write_report(open_directory(directory))
    echo(json.dumps({"schema_version": SCHEMA_VERSION, "report": str(path)}) if as_json else f"report: {path}")
