"""The Python door to a comparison of two sweeps, tables or published laws: `compare(...) -> Comparison`."""

from __future__ import annotations

import numbers
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from flops_fit_ray import analysis
from flops_fit_ray.analysis import Analysis, Comparison, FitOptions, PublishedLaw, SweepFit
from flops_fit_ray.errors import ArgumentError
from flops_fit_ray.formatting import did_you_mean
from flops_fit_ray.result import Result
from flops_fit_ray.storage.storage_path import expanded, local_path
from flops_fit_ray.sweep.sources import is_table, path_or_law

if TYPE_CHECKING:
    from flops_fit_ray.sweep.directory import Sweep
    from flops_fit_ray.tables import Table

Source: TypeAlias = "Result | Analysis | SweepFit | PublishedLaw | str | Path"


def compare(
    first: Source, second: Source, budget: float | None = None, *, method: str | None = None, **options: Any
) -> Comparison:
    """Compare two sweeps: exponents, N_opt, D_opt and loss at one C, and by how much compute the second is better.

    Read `.speedup` (`.at`, `.verdict`, `.words`, `.curve`, `.deciding`), `.differences` and `.warnings`.

    Args:
        first, second: a result of `find_optimal` or `fit_table`, a sweep directory, a table, or the name of a
            published law (`flops-fit-ray laws`).
        budget: C in FLOPs; by default the largest that both were fitted to.
        method: of both laws, such as valley or surface_huber; by default one that both have.
        options: fields of `FitOptions` for directories and tables, such as draws, seed, confidence.

    Raises:
        ArgumentError: an argument has no meaning, or an option is unknown.
        SpecError: a source is not there or cannot be read.
        FitError: one has no law, or the budget is not a positive number.
    """
    known = FitOptions.__dataclass_fields__
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ArgumentError(
            "compare", [f"{unknown[0]}: unknown option; {did_you_mean(unknown[0], known) or 'see FitOptions'}"]
        )
    if method not in (None, *analysis.METHODS):
        raise ArgumentError("compare", [f"method: must be one of {', '.join(analysis.METHODS)} (got {method!r})"])
    if budget is not None and not _is_number(budget):
        raise ArgumentError("compare", [f"budget: must be a number of FLOPs, for example 1e21 (got {budget!r})"])
    (one, of_one), (other, of_other) = (_opened(source, options) for source in (first, second))
    flags = []
    if of_one is not None and of_other is not None:
        from flops_fit_ray.sweep.comparability import comparability

        flags = comparability(of_one, of_other)
    where = float(budget) if budget is not None else analysis.common_budget(one, other)
    return analysis.compare(one, other, where, next((m for m in analysis.METHODS if m == method), None), known=flags)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _opened(source: object, options: dict[str, Any]) -> tuple[SweepFit | PublishedLaw, Sweep | Table | None]:
    """Return the fit or the law of a source, and the sweep or the table that it is of."""
    if isinstance(source, SweepFit | PublishedLaw):
        return source, None
    if isinstance(source, Analysis):
        return source.fit, None
    if isinstance(source, Result):
        return source.fit, source._sweep
    if not isinstance(source, str | Path):
        wanted = "a result, an analysis, a path or the name of a published law"
        raise ArgumentError("compare", [f"must be {wanted} (got {source!r})"])
    path, law = path_or_law(expanded(str(source), "path"))
    if law is not None:
        return law, None
    if is_table(path):
        from flops_fit_ray.tables import read_table

        table = read_table(local_path(path))
        return analysis.fit_sweep(table.points, FitOptions(**options)), table
    from flops_fit_ray.sweep.directory import open_sweep

    sweep = open_sweep(path)
    return sweep.fitted(replace(sweep.fit_options, **options)) if options else sweep.fit, sweep
