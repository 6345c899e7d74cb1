"""Table and fingerprint of the records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from flops_fit_ray.ledger._records import ExperimentResult, Failure
from flops_fit_ray.planning import Experiment
from flops_fit_ray.storage.codec import columns_of, numbers_of

if TYPE_CHECKING:
    import pandas as pd
    from pyarrow.parquet import ParquetFile

MAX_CURVE_ROWS, MAX_CURVE_COLUMNS = 1_000_000, 64  # far more than are ever written


def results_sha256(results: Iterable[ExperimentResult]) -> str:
    """Return the SHA-256 of keys, tokens and losses: equal for an interrupted and an uninterrupted sweep."""
    lines = sorted(
        f"{r.key} {r.tokens_seen} {r.loss.hex()} {r.loss_stderr.hex() if r.loss_stderr is not None else '-'}"
        for r in results
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


_MARKS = {**columns_of(Failure), **columns_of(ExperimentResult)}
COLUMNS = sorted(_MARKS, key=lambda name: _MARKS[name].order)
_NUMBERS = {name: kind for name, kind in numbers_of(ExperimentResult).items() if name in _MARKS}
_DTYPES = {int: "Int64", float: "float64"}


def results_table(
    experiments: Sequence[Experiment],
    outcomes: Iterable[ExperimentResult | Failure],
    states: Mapping[str, str] = MappingProxyType({}),
) -> pd.DataFrame:
    """Return one row per experiment of the plan, in its order, with `COLUMNS`; cells without a value are empty.

    `states` has the status of those, by key, that have no outcome and are more than planned: they run, wait for
    another, or are damaged.

    Metrics follow as columns of their own, `metric_` and the name.
    """
    import pandas as pd

    known, rows = {outcome.key: outcome for outcome in outcomes}, []
    for e in experiments:
        row: dict[str, Any] = {name: getattr(e, name) for name, mark in _MARKS.items() if mark.planned}
        outcome = known.get(e.key)
        row |= {"status": states.get(e.key, "planned")} if outcome is None else vars(outcome)
        metrics = {f"metric_{name}": value for name, value in (row.get("metrics") or {}).items()}
        if e.axis is not None:
            row["size"] = e.plain_size  # numbers stay numbers: the value on the axis is in a column of its own
        rows.append({column: row.get(column) for column in COLUMNS} | metrics)
    names = [name for row in rows for name in row if name.startswith("metric_")]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *dict.fromkeys(names)])
    return frame.astype({name: _DTYPES[number] for name, number in _NUMBERS.items()})


def is_curve(file: ParquetFile) -> bool:
    """Tell whether a file may be unpacked as a curve: numbers alone, and not more of them than one can have.

    A file of some kilobytes can hold a billion rows, or one long text a million times.
    """
    meta = file.metadata
    kinds = {meta.schema.column(i).physical_type for i in range(min(meta.num_columns, MAX_CURVE_COLUMNS))}
    within = 0 <= meta.num_rows <= MAX_CURVE_ROWS and meta.num_columns <= MAX_CURVE_COLUMNS
    flat = all(meta.schema.column(i).max_repetition_level == 0 for i in range(min(meta.num_columns, MAX_CURVE_COLUMNS)))
    return within and flat and kinds <= {"BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE"}
