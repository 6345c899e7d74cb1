"""The Python door to a second axis: `compare_axis(...) -> AxisFit`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, get_args

from flops_fit_ray.analysis import AxisFit, AxisScale, FitOptions, fit_axis
from flops_fit_ray.errors import ArgumentError
from flops_fit_ray.result import Result
from flops_fit_ray.storage.storage_path import expanded, local_path
from flops_fit_ray.sweep.axis_runs import axis_runs
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.sweep.sources import is_table, path_or_law

AxisSource: TypeAlias = "Result | str | Path"


def compare_axis(
    sources: AxisSource | Sequence[AxisSource],
    of: str,
    *,
    reference: float | str | None = None,
    scale: AxisScale | None = None,
    confidence: float = FitOptions.confidence,
    draws: int = FitOptions.draws,
    seed: int = FitOptions.seed,
) -> AxisFit:
    """Compare the values of a second axis (depth, experts, sparsity, ...) at equal C, each at its best N.

    Read `.told`, `.p_value` and `.budgets`, of which each has `.values` (`.difference`, `.compute`), `.slope`
    (d ln L / d axis) and `.best`.

    Args:
        sources: one or more results of `find_optimal`, sweep directories, or tables of runs.
        of: an argument of the model, or a column of the table.
        reference: the value that others are compared with; by default the one with most runs.
        scale: log, linear or kinds; by default chosen by the values.

    Raises:
        ArgumentError: an argument has no meaning.
        SpecError: a source is not there, cannot be read, or has no such axis.
        FitError: the runs do not tell the axis from size and noise, or a setting of the fit is beyond its limits.
    """
    if scale not in (None, *get_args(AxisScale)):
        raise ArgumentError("compare_axis", [f"scale: must be one of {', '.join(get_args(AxisScale))} (got {scale!r})"])
    if draws < 1:
        raise ArgumentError("compare_axis", [f"draws: must be 1 or more (got {draws!r})"])
    given = [sources] if isinstance(sources, Result | str | Path) else list(sources)
    if not given:
        raise ArgumentError("compare_axis", ["sources: name a sweep or a table"])
    runs = axis_runs([_opened(source) for source in given], of)
    return fit_axis(
        runs.points, of, runs.values, reference=reference, scale=scale, confidence=confidence, draws=draws, seed=seed,
        known=runs.flags,
    )  # fmt: skip


def _opened(source: AxisSource) -> Sweep | Path:
    if isinstance(source, Result):
        return source._sweep
    if not isinstance(source, str | Path):
        raise ArgumentError("compare_axis", [f"must be a result or a path (got {source!r})"])
    path, law = path_or_law(expanded(str(source), "path"))
    if law is not None:
        raise ArgumentError("compare_axis", [f"{source} is a published law, and has no runs"])
    return local_path(path) if is_table(path) else open_sweep(path)
