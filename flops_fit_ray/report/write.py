"""Writing what a directory's views are: tables, analysis, figures, page. Each file whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

from flops_fit_ray.analysis import fit_to_json
from flops_fit_ray.layout import write_bytes, write_json
from flops_fit_ray.report.figures import draw_laws, draw_valleys, for_page, law_bands, to_png, to_svg, valley_curves
from flops_fit_ray.report.page import render
from flops_fit_ray.sweep import Sweep


def write_report(sweep: Sweep) -> Path:
    """Write results, analysis, figures and report of a sweep, complete or not. Returns the page's path."""
    write_tables(sweep)
    write_json(sweep.paths.analysis, fit_to_json(sweep.fit))
    valleys = draw_valleys(valley_curves(sweep.fit), sweep.loss_name)
    figures = {"valleys": valleys, "laws": draw_laws(law_bands(sweep.fit))}
    drawn = {}
    for name, figure in figures.items():
        drawn[name] = to_svg(figure)
        write_bytes(sweep.paths.figure(name, "svg"), drawn[name].encode())
        write_bytes(sweep.paths.figure(name, "png"), to_png(figure))
    page = render(sweep, {name: for_page(svg) for name, svg in drawn.items()})
    write_bytes(sweep.paths.report, page.encode())
    return sweep.paths.report


def write_tables(sweep: Sweep) -> None:
    """results.parquet and results.csv, one row per experiment."""
    frame = sweep.to_frame()
    parquet = io.BytesIO()
    frame.to_parquet(parquet, index=False)
    write_bytes(sweep.paths.results_parquet, parquet.getvalue())
    write_bytes(sweep.paths.results_csv, frame.to_csv(index=False).encode())
