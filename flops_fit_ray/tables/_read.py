"""Reading of a file as a table, and of a table as points. Bad rows are reported with their line; the rest is used."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flops_fit_ray.analysis import Flag, Points, group_by_nearness
from flops_fit_ray.analysis.arrays import Bools, Floats
from flops_fit_ray.errors import SpecError
from flops_fit_ray.tables._columns import (
    DONE,
    OTHER_FLOPS,
    OTHER_PARAMS,
    ColumnMap,
    TableOptions,
    find_columns,
    normal,
    numbers,
)

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json")
FLOPS_PER_TOKEN_AND_PARAM = 6  # C = 6·N·D (Kaplan et al. 2020, section 2.1): used where one of the three is missing
MAX_SHOWN = 5
MIN_ALIKE, MOSTLY_ALIKE = 3, 0.9  # runs with one C, and their share of all runs, from which C labels the budgets
DEFAULTS = TableOptions()


@dataclass(frozen=True, kw_only=True)
class RejectedRow:
    """A row that is not used, and the reason."""

    line: int  # of the file, the header being line 1; of parquet and JSON the row, from 1
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """The points of a file, and how they were read."""

    path: Path
    points: Points
    rows: int
    refused: tuple[RejectedRow, ...]
    columns: dict[str, str]  # ours -> theirs
    derived: str  # the quantity that was computed from the others, and how; empty if none

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Notes on unused rows, computed columns and inferred budgets."""
        flags = []
        if self.refused:
            shown = "; ".join(f"line {r.line}: {r.reason}" for r in self.refused[:MAX_SHOWN])
            more = f"; and {len(self.refused) - MAX_SHOWN} more" if len(self.refused) > MAX_SHOWN else ""
            message = f"{len(self.refused)} of {self.rows} rows are not used: {shown}{more}"
            flags.append(Flag("refused_rows", "warning", message))
        if self.derived:
            flags.append(Flag("derived_column", "info", self.derived))
        if not self.points.labelled:
            budgets = len(np.unique(self.points.budget))
            message = f"no column labels the budgets: runs were grouped by C into {budgets} group(s); see `valleys`"
            flags.append(Flag("budgets_by_nearness", "info", message))
        return tuple(flags)

    def to_json(self) -> dict[str, Any]:
        """Return the description of the table as a JSON object."""
        return {
            "path": str(self.path),
            "rows": self.rows,
            "used": len(self.points),
            "refused": [{"line": r.line, "reason": r.reason} for r in self.refused],
            "columns": self.columns,
            "derived": self.derived,
        }


def read_table(path: Path, options: TableOptions = DEFAULTS) -> Table:
    """Read a table of runs.

    Raises:
        SpecError: it cannot be read, lacks a column, or no row can be used; all faults at once.
    """
    frame, first = _load(path)
    frame, lines = _keep(path, frame, np.arange(len(frame)) + first, options.where)
    columns = find_columns(str(path), list(frame.columns), options)
    rows = len(frame)
    values = {name: numbers(frame[theirs]) * columns.scale[name] for name, theirs in columns.taken.items()
              if name != "run"}  # fmt: skip
    if "budget" in values and "flops" in values and np.isnan(values["budget"]).all():  # labels that are not numbers
        values["budget"] = _mean_flops(frame[columns.taken["budget"]], values["flops"])
    derived = _derive(values)
    refused = _row_faults(frame, values, columns, derived)
    good = np.array([reason == "" for reason in refused], dtype=bool)
    if not good.any():
        shown = [f"line {line}: {reason}" for line, reason in zip(lines, refused, strict=True)][:MAX_SHOWN]
        raise SpecError(str(path), ["no row can be used", *shown])
    points = _points(frame, values, columns, good)
    return Table(
        path=path,
        points=points,
        rows=rows,
        refused=tuple(
            RejectedRow(line=int(line), reason=reason) for line, reason in zip(lines, refused, strict=True) if reason
        ),
        columns=dict(columns.taken),
        derived=derived,
    )


def _load(path: Path) -> tuple[pd.DataFrame, int]:
    """Load the file, CSV cells as text, and return it with the line number of its first row."""
    import pandas as pd

    name = path.name.removesuffix(".gz").lower()
    kind = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    if kind is None:
        raise SpecError(str(path), [f"is not a readable table; use one of {', '.join(SUFFIXES)}"])
    if not path.exists():
        raise SpecError(str(path), ["no such file"])
    try:
        if kind == ".parquet":
            return pd.read_parquet(path), 1
        if kind in (".csv", ".tsv"):
            separator = "\t" if kind == ".tsv" else ","
            frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, skip_blank_lines=False)
            return frame, 2
        if kind == ".json":
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            return pd.DataFrame(_records(json.loads(content))), 1
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            return pd.DataFrame([json.loads(line) for line in file if line.strip()]), 1
    except (OSError, ValueError, TypeError, AttributeError) as e:  # pandas and pyarrow raise subclasses of these
        raise SpecError(str(path), [f"cannot be read as a table: {str(e).splitlines()[0]}"]) from e


def _records(content: Any) -> Any:
    """Rows of a JSON document: a list, a mapping of columns, or a mapping that contains one (as flops-fit writes)."""
    if isinstance(content, dict):
        for key in ("results", "experiments", "runs", "rows", "data"):
            if isinstance(content.get(key), list | dict):
                return _records(content[key])
        if content and all(isinstance(value, dict) for value in content.values()):
            return list(content.values())
    if not isinstance(content, list | dict):
        raise ValueError("a JSON table must be a list of rows or an object of columns")
    return content


def _keep(path: Path, frame: pd.DataFrame, lines: Any, where: Sequence[tuple[str, str]]) -> tuple[pd.DataFrame, Any]:
    """Keep the rows that match `where` and, if there is a status column, are completed."""
    keep = np.ones(len(frame), dtype=bool)
    for column, value in where:
        if column not in frame:
            raise SpecError(str(path), [f"--where {column}={value}: there is no such column; it has "
                                        f"{', '.join(map(str, frame.columns))}"])  # fmt: skip
        keep &= _equal(frame[column], value)
        if not keep.any():
            seen = ", ".join(sorted({str(v) for v in frame[column]})[:8])
            raise SpecError(str(path), [f"--where {column}={value}: no row has that value; the column has {seen}"])
    for column in frame.columns:
        if normal(column) == "status":
            keep &= np.array([str(value).lower() in DONE for value in frame[column]])
    if not keep.any():
        raise SpecError(str(path), ["has no rows" if not len(frame) else "has no completed row"])
    return frame[keep].reset_index(drop=True), lines[keep]


def _equal(column: pd.Series[Any], value: str) -> Bools:
    cells = np.array([str(cell).strip().lower() == value.strip().lower() for cell in column])
    try:
        number = float(value)
    except ValueError:
        return cells
    return np.asarray(cells | (numbers(column) == number))


def _row_faults(frame: pd.DataFrame, values: dict[str, Floats], columns: ColumnMap, derived: str) -> list[str]:
    """Reason why each row cannot be used; empty where it can."""
    reasons = [""] * len(frame)
    for name, numeric in values.items():
        if name == "seconds" or name not in columns.taken:
            continue
        for i in np.flatnonzero(~(np.isfinite(numeric) & (numeric > 0))):
            cell = frame[columns.taken[name]].iloc[i]
            shown = "is empty" if str(cell).strip() == "" else f"must be a positive number (got {cell})"
            reasons[i] = "; ".join(filter(None, [reasons[i], f"{columns.taken[name]} {shown}"]))
    for numeric in (values[name] for name in values if name not in columns.taken):
        for i in np.flatnonzero(~(np.isfinite(numeric) & (numeric > 0))):
            reasons[i] = reasons[i] or f"{derived} and is {numeric[i]:g}, not a positive number"
    return reasons


def _points(frame: pd.DataFrame, values: dict[str, Floats], columns: ColumnMap, good: Bools) -> Points:
    picked = {name: numeric[good] for name, numeric in values.items()}
    budget = picked.get("budget")
    run = None
    if "run" in columns.taken:
        run = np.unique(frame[columns.taken["run"]].astype(str)[good], return_inverse=True)[1].astype(np.int64)
    seconds = picked.get("seconds")
    return Points(
        budget=group_by_nearness(picked["flops"]) if budget is None else budget,
        flops=picked["flops"],
        params=picked["params"],
        tokens=picked["tokens"],
        loss=picked["loss"],
        run=run,
        weight=picked.get("weight"),
        seconds=None if seconds is None or not (seconds > 0).any() else np.where(seconds > 0, seconds, np.nan),
        params_as=_others(frame, OTHER_PARAMS, picked["params"], good),
        flops_as=_others(frame, OTHER_FLOPS, picked["flops"], good),
        labelled=budget is not None or _repeats(picked["flops"]),
    )


def _repeats(flops: Floats) -> bool:
    """Return True if C labels the budgets: nearly all runs share exactly one C with two or more others."""
    count = np.unique(flops, return_counts=True)[1]
    return bool(count[count >= MIN_ALIKE].sum() >= MOSTLY_ALIKE * len(flops))


def _mean_flops(labels: pd.Series[Any], flops: Floats) -> Floats:
    """Mean C of the runs of each budget, for budgets with labels that are not numbers."""
    which = np.unique(labels.astype(str), return_inverse=True)[1].reshape(-1)
    known = np.isfinite(flops)
    number = np.bincount(which[known], minlength=which.max() + 1)
    mean = np.bincount(which[known], weights=flops[known], minlength=which.max() + 1) / np.maximum(number, 1)
    return np.asarray(mean[which])


def _derive(values: dict[str, Floats]) -> str:
    """Compute the missing one of C, N and D by C = 6·N·D, and return how."""
    six = FLOPS_PER_TOKEN_AND_PARAM
    origin = ""
    with np.errstate(all="ignore"):  # a row whose result is not a number is reported
        if "flops" not in values and "tokens" not in values:
            values["flops"] = values["budget"]
            origin = "C of a run is taken as its budget; "
        if "flops" not in values:
            values["flops"] = six * values["params"] * values["tokens"]
            return "C is computed as 6·N·D"
        if "tokens" not in values:
            values["tokens"] = values["flops"] / (six * values["params"])
            return f"{origin}D is computed as C/(6·N)"
        if "params" not in values:
            values["params"] = values["flops"] / (six * values["tokens"])
            return "N is computed as C/(6·D)"
    return ""


def _others(frame: pd.DataFrame, names: Sequence[str], main: Floats, good: Bools) -> dict[str, Floats]:
    """Columns with other definitions of a quantity, where they are complete and differ from `main`."""
    others = {}
    for column in frame.columns:
        if normal(column) not in names:
            continue
        numeric = numbers(frame[column])[good]
        if (np.isfinite(numeric) & (numeric > 0)).all() and not np.allclose(numeric, main, rtol=1e-3):
            others[str(column)] = numeric
    return others
