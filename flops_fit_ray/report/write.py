"""Writer of all files of a report: tables, analysis, figures, pages. Each file is written atomically."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flops_fit_ray.analysis import Analysis, Points
from flops_fit_ray.ledger import ExperimentResult, Failure
from flops_fit_ray.report.figures import (
    contours,
    draw_contours,
    draw_curves,
    draw_laws,
    draw_panel,
    draw_residuals,
    draw_valleys,
    for_page,
    law_bands,
    lay_out,
    panel_numbers,
    residuals,
    to_png,
    to_svg,
    training_curves,
    valley_curves,
)
from flops_fit_ray.report.page import render, render_markdown, render_table, summary_to_json
from flops_fit_ray.storage.atomic import write_bytes, write_json
from flops_fit_ray.storage.paths import ReportPaths
from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.validity import analysis_document, validity_card
from flops_fit_ray.tables import Table

MAX_PAGE_VALLEYS = 40  # with more, the runs are scattered over C and have no budgets
MAX_PAGE_CURVES = 60  # runs; with more, the figure is only in its own file, to keep the page small

Replaced = Sequence[tuple[float, float, float]]  # budget, N and loss of runs replaced by a rerun


def write_report(sweep: Sweep) -> StoragePath:
    """Write results, analysis, figures and report of a sweep, complete or not, and return the page's path."""
    write_tables(sweep)
    card = validity_card(sweep.fit, sweep)
    write_json(sweep.paths.analysis, analysis_document(sweep.analysis, card))
    drawn = _write_figures(sweep.paths, sweep.analysis, sweep.curves, sweep.loss_name, sweep.replaced_points)
    write_bytes(sweep.paths.report, render(sweep, card, drawn).encode())
    write_bytes(sweep.paths.report_markdown, render_markdown(sweep, card, drawn).encode())
    write_json(sweep.paths.summary, summary_to_json(sweep))
    return sweep.paths.report


def drawn_page(sweep: Sweep) -> str:
    """Return the page of a sweep and write nothing."""
    drawn = dict(_drawn(sweep.analysis, sweep.curves, sweep.loss_name, sweep.replaced_points))
    return render(sweep, validity_card(sweep.fit, sweep), drawn)


def write_table_report(table: Table, analysis: Analysis, directory: Path, command: str) -> StoragePath:
    """Write analysis, figures and report of a table of runs, and return the page's path.

    Raises:
        StorageError: the directory cannot be written.
    """
    paths = ReportPaths(directory.absolute())
    card = validity_card(analysis.fit, table=table)
    write_json(paths.analysis, analysis_document(analysis, card, table))
    drawn = _write_figures(paths, analysis, table.points if table.points.run is not None else None, "loss")
    write_bytes(paths.report, render_table(table, analysis, card, drawn, command).encode())
    return paths.report


def write_tables(sweep: Sweep) -> None:
    """Write results.parquet and results.csv, one row per experiment, and results.json."""
    frame = sweep.to_frame()
    parquet = io.BytesIO()
    frame.to_parquet(parquet, index=False)
    write_bytes(sweep.paths.results_parquet, parquet.getvalue())
    write_bytes(sweep.paths.results_csv, frame.to_csv(index=False).encode())
    write_bytes(sweep.paths.results_json, (json.dumps(_training_results(sweep), indent=1) + "\n").encode())


def _training_results(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the runs that the fit is of, then those that failed, under the names of flops-fit's results.json."""
    planned = {e.key: e for e in sweep.plan.experiments}
    ended: list[ExperimentResult | Failure] = [*sweep.standing, *sweep.failures]
    return [
        {
            "experiment_id": one.key,
            "compute_budget": planned[one.key].budget,
            "model_size": planned[one.key].params,
            "num_tokens": one.tokens_seen,
            "final_loss": one.loss if isinstance(one, ExperimentResult) else None,
            "actual_flops": one.tokens_seen * planned[one.key].flops_per_token,
            "wall_time_seconds": one.seconds,
            "timestamp": datetime.fromtimestamp(one.finished_at, UTC).isoformat(),
            "status": "completed" if isinstance(one, ExperimentResult) else "failed",
            "error_message": None if isinstance(one, ExperimentResult) else f"{one.status}: {one.error}",
        }
        for one in ended
    ]


def _write_figures(
    paths: ReportPaths, analysis: Analysis, curves: Points | None, loss_name: str, replaced: Replaced = ()
) -> dict[str, str]:
    """Write every figure that has data as SVG and PNG, and return the SVG elements for the page by name."""
    drawn = {}
    for name, draw in _figures(analysis, curves, loss_name, replaced):
        figure = lay_out(draw())
        svg = to_svg(figure)
        write_bytes(paths.figure(name, "svg"), svg.encode())
        write_bytes(paths.figure(name, "png"), to_png(figure))
        if _belongs(name, curves):
            drawn[name] = for_page(svg, name)
    return drawn


def _drawn(analysis: Analysis, curves: Points | None, loss_name: str, replaced: Replaced) -> Iterator[tuple[str, str]]:
    for name, draw in _figures(analysis, curves, loss_name, replaced):
        if _belongs(name, curves):
            yield name, for_page(to_svg(lay_out(draw())), name)


def _belongs(name: str, curves: Points | None) -> bool:
    """Return True if a figure is small enough for the page."""
    return name != "curves" or curves is None or curves.num_runs <= MAX_PAGE_CURVES


def _figures(
    analysis: Analysis, curves: Points | None, loss_name: str, replaced: Replaced
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    fit = analysis.fit
    if len(budgets := valley_curves(fit, replaced)) <= MAX_PAGE_VALLEYS:
        yield "valleys", lambda: draw_valleys(budgets, loss_name)
    yield "laws", lambda: draw_laws(law_bands(fit))
    surface, rest, panel = contours(fit), residuals(fit), analysis.sensitivity
    if surface is not None and rest is not None:
        yield "surface", lambda: draw_contours(surface, loss_name)
        yield "residuals", lambda: draw_residuals(rest)
    if panel is not None and panel.levers and fit.params_opt is not None:
        interval = fit.params_opt.interval(panel.budget, fit.options.confidence)
        yield "sensitivity", lambda: draw_panel(panel_numbers(panel, interval))
    if runs := training_curves(curves):
        yield "curves", lambda: draw_curves(runs)
