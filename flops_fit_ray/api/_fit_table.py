"""The Python door to a table: `fit_table(...) -> Analysis`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from flops_fit_ray.analysis import Analysis, FitOptions, analyse, fit_sweep
from flops_fit_ray.errors import SpecError, faults_of_arguments
from flops_fit_ray.formatting import did_you_mean
from flops_fit_ray.storage.storage_path import expanded


@faults_of_arguments("fit_table")
def fit_table(
    path: str | Path,
    at: Sequence[float] = (),
    *,
    columns: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    best_of: Sequence[str] = (),
    pool: Sequence[str] = (),
    metrics: Sequence[str] = (),
    **options: Any,
) -> Analysis:
    """Fit any table of runs, as `flops-fit-ray fit TABLE` does.

    Args:
        path: .csv, .tsv, .parquet, .jsonl or .json; a row is a run with its loss and two of N, D and C.
        at: C in FLOPs to answer at; the first is the target of the sensitivity panel.
        columns: ours to the table's, for example {"loss": "val nats"}; ours are params, tokens, flops, loss, budget,
            run, weight, seconds.
        units: what one of a column's units is worth, for example {"tokens": "B"}.
        where: only the rows whose columns have these values.
        best_of: columns with settings that were swept, of which the best row of each (N, D) is kept; by default those
            called lr, batch_size and alike; ["none"] keeps all rows.
        pool: columns whose values are one law all the same.
        metrics: columns beside the loss, for `Analysis.predict_metric`.
        options: fields of `FitOptions`, such as method, curve, window, pins, draws, seed, confidence.

    Raises:
        SpecError: the table cannot be read, its units cannot be, a column splits its rows, or an option is unknown.
        FitError: a budget or an option has no meaning.
    """
    from flops_fit_ray.tables import TableOptions, read_table

    known = {f.name for f in fields(FitOptions)}
    unknown = sorted(set(options) - known)
    if unknown:
        hint = did_you_mean(unknown[0], known) or f"known: {', '.join(sorted(known))}"
        raise SpecError("fit_table", [f"{unknown[0]}: unknown option; {hint}"])
    reading = TableOptions(
        columns=columns or {},
        units=units or {},
        where=tuple((where or {}).items()),
        best_of=best_of,
        pool=pool,
        metrics=metrics,
    )
    table = read_table(Path(expanded(str(path), "path")), reading)
    fit = fit_sweep(table.points, FitOptions(**options))
    return analyse(replace(fit, warnings=(*table.flags, *fit.warnings)), at)
