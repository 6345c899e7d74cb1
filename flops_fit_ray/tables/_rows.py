"""Choice of rows: what was asked for, what has finished, copies, last steps, and the best of swept settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flops_fit_ray.analysis.arrays import Bools, Floats, Ints
from flops_fit_ray.errors import SpecError
from flops_fit_ray.tables._cells import numbers
from flops_fit_ray.tables._columns import NONE, unknown_column
from flops_fit_ray.tables._load import Loaded
from flops_fit_ray.tables._names import BATCHES, PROGRESS, RATES, REPEATS, SETTINGS, STATUS, last_of, normal

if TYPE_CHECKING:
    import pandas as pd

DONE = ("completed", "complete", "done", "finished", "finish", "success", "succeeded", "successful", "ok", "terminated",
        "passed", "converged", "exited", "true", "yes")  # fmt: skip
NOT_DONE = ("failed", "failure", "fail", "crashed", "crash", "killed", "running", "error", "errored", "pending",
            "queued", "preempted", "preempting", "cancelled", "canceled", "stopped", "timeout", "timed_out", "oom",
            "out_of_memory", "diverged", "interrupted", "scheduled", "starting", "aborted", "nan", "not_started",
            "in_progress", "waiting", "paused", "incomplete", "unknown", "false", "no")  # fmt: skip
GOOD_MARKS = ("completed", "finished", "is_finished", "success", "succeeded", "done")  # columns of true and false
BAD_MARKS = ("diverged", "crashed", "failed", "killed", "nan")
SAME_TOKENS = 1e-2  # relative: rounded to whole batches, D is that of one cell


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A column with a setting of training, and where the best of its values lie in the cells (N, D)."""

    column: str
    kind: str  # "learning rate", "batch" or "": what it is called on the validity card
    values: tuple[float, float]  # smallest and largest
    swept: int  # cells with several values
    at_edge: int  # of those: the lowest loss is at the smallest or the largest value that was tried there

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"column": self.column, "smallest": self.values[0], "largest": self.values[1], "cells": self.swept,
                "at_edge": self.at_edge}  # fmt: skip


def keep_where(source: Path, loaded: Loaded, where: Sequence[tuple[str, str]]) -> Loaded:
    """Keep the rows that have these values.

    Raises:
        SpecError: there is no such column or value.
    """
    frame = loaded.frame
    keep = np.ones(len(frame), dtype=bool)
    for column, value in where:
        if column not in frame:
            raise SpecError(str(source), [f"--where {column}={value}: {unknown_column(column, frame.columns)}"])
        keep &= _equal(frame[column], value)
        if not keep.any():
            seen = ", ".join(sorted({str(v) for v in frame[column]})[:8])
            raise SpecError(str(source), [f"--where {column}={value}: no row has that value; the column has {seen}"])
    return _picked(loaded, keep)


def keep_finished(source: Path, loaded: Loaded, where: Sequence[tuple[str, str]]) -> tuple[Loaded, str]:
    """Keep the rows of finished runs; return them, and in words how many of which status are left out.

    Raises:
        SpecError: no row is left.
    """
    frame = loaded.frame
    if not len(frame):
        raise SpecError(str(source), ["has no rows"])
    keep = np.ones(len(frame), dtype=bool)
    words = []
    for place, column in enumerate(frame.columns):
        if column in {name for name, _ in where}:
            continue
        cells = _statuses(column, frame.iloc[:, place])
        if cells is None:
            continue
        finished = np.array([cell in DONE for cell in cells])
        if not (~finished & keep).any():
            continue
        counts = Counter(cell or "empty" for cell in cells[~finished & keep])
        parts = ", ".join(f"{number} {cell}" for cell, number in sorted(counts.items(), key=lambda item: -item[1])[:8])
        words.append(f"{sum(counts.values())} of {len(frame)} rows are left out by {column!r}: {parts}")
        keep &= finished
    if not keep.any():
        raise SpecError(str(source), [f"has no completed row: {'; '.join(words)}"])
    return _picked(loaded, keep), "; ".join(words)


def _statuses(column: str, cells: pd.Series[Any]) -> Any:
    """Return the status (rows,) of each row in lower case, None where the column is no status."""
    name = last_of(column)
    if name in STATUS:
        status = np.array([normal(str(cell)) for cell in cells], dtype=object)
        return status if np.isin(status, (*DONE, *NOT_DONE)).any() else None
    if name in (*GOOD_MARKS, *BAD_MARKS):
        marks = np.array([str(cell).strip().lower() for cell in cells], dtype=object)
        marks[np.isin(marks, ("1", "1.0", "yes", "y", "t"))] = "true"
        marks[np.isin(marks, ("0", "0.0", "no", "n", "f", ""))] = "false"
        if set(marks) <= {"true", "false"}:
            return marks if name in GOOD_MARKS else np.where(marks == "true", name, "true")
    return None


def _equal(column: pd.Series[Any], value: str) -> Bools:
    cells = np.array([str(cell).strip().lower() == value.strip().lower() for cell in column])
    try:
        number = float(value)
    except ValueError:
        return cells
    return np.asarray(cells | (numbers(column) == number))


def _picked(loaded: Loaded, keep: Bools) -> Loaded:
    if keep.all():
        return loaded
    return replace(loaded, frame=loaded.frame[keep].reset_index(drop=True), lines=loaded.lines[keep])


def copies(frame: pd.DataFrame) -> Bools:
    """Mark (rows,) exact copies of earlier rows; numbers of rows are no difference."""
    names = [i for i, name in enumerate(frame.columns) if not name.lower().startswith(("unnamed:", "index"))]
    return np.asarray(frame.iloc[:, names].astype(str).duplicated(), dtype=bool)


def settings_of(frame: pd.DataFrame, taken: Sequence[str], best_of: Sequence[str]) -> list[str]:
    """Return the columns whose best value is taken in every cell: those of `best_of`, else by common names."""
    if list(best_of) == [NONE]:
        return []
    if best_of:
        return list(best_of)
    return [column for column in frame.columns if column not in taken and last_of(column) in SETTINGS]


def last_steps(frame: pd.DataFrame, taken: Sequence[str], exact: Ints) -> tuple[Bools, str]:
    """Keep (rows,) the last step where runs have several rows of the same N and D; return it in words.

    Args:
        exact: (rows,) label of equal N, D and run.
    """
    keep = np.ones(len(frame), dtype=bool)
    for column in frame.columns:
        if column in taken or last_of(column) not in PROGRESS:
            continue
        names = [c for c in frame.columns if last_of(c) in (*SETTINGS, *REPEATS)]
        group = labels(exact, *(codes(frame[name]) for name in names))
        step = np.nan_to_num(numbers(frame[column]), nan=-np.inf)
        last = np.full(int(group.max()) + 1, -np.inf)
        np.maximum.at(last, group, step)
        keep &= step == last[group]
        if not keep.all():
            return keep, (f"{int((~keep).sum())} of {len(keep)} rows are earlier steps ({column!r}) of runs with the "
                          "same N and D: the last of each is kept")  # fmt: skip
    return keep, ""


def best_settings(
    frame: pd.DataFrame, loss: Floats, cell: Ints, swept: Sequence[str]
) -> tuple[Bools, tuple[Setting, ...], str]:
    """Keep (rows,) the setting with the lowest mean loss in every cell; rows that repeat it, such as seeds, all stay.

    Args:
        loss: (rows,) infinite where a run has none: its settings were tried.
        cell: (rows,) label of equal N, D and kind of run.
        swept: the columns with settings.

    Returns:
        The rows to keep, the settings, and in words what was left out; empty if nothing.
    """
    varied = [column for column in swept if frame[column].astype(str).nunique() > 1]
    keep = np.ones(len(frame), dtype=bool)
    if varied:
        combination = labels(cell, *(codes(frame[column]) for column in varied))
        count = np.bincount(combination)
        with np.errstate(invalid="ignore"):
            mean = np.bincount(combination, weights=loss) / count
        # The lowest mean of each cell; equal ones by the order of the settings' values, not of the rows
        of_cell = np.zeros(len(count), dtype=np.int64)
        of_cell[combination] = cell
        order = np.lexsort((np.arange(len(count)), mean, of_cell))
        first = order[np.unique(of_cell[order], return_index=True)[1]]
        keep = np.isin(combination, first)
    settings = tuple(one for column in swept if (one := _setting(frame, column, cell, keep)) is not None)
    if keep.all():
        return keep, settings, ""
    cells = int(cell.max()) + 1
    names = ", ".join(map(repr, varied))
    verb = "is" if len(varied) == 1 else "are"
    return (
        keep,
        settings,
        (
            f"{names} {verb} swept: the best of each of {cells} (N, D) is kept, {int(keep.sum())} of {len(keep)} rows "
            "(--best-of none keeps all of them as repeats)"
        ),
    )


def _setting(frame: pd.DataFrame, column: str, cell: Ints, best: Bools) -> Setting | None:
    values = numbers(frame[column])
    if not np.isfinite(values).all():
        return None
    number = int(cell.max()) + 1
    low, high = np.full(number, np.inf), np.full(number, -np.inf)
    np.minimum.at(low, cell, values)
    np.maximum.at(high, cell, values)
    edge = best & ((values == low[cell]) | (values == high[cell])) & (low[cell] < high[cell])
    name = last_of(column)
    return Setting(
        column=column,
        kind="learning rate" if name in RATES else "batch" if name in BATCHES else "",
        values=(float(values.min()), float(values.max())),
        swept=int((low < high).sum()),
        at_edge=len(np.unique(cell[edge])),
    )


def cells_of(params: Floats, tokens: Floats) -> Ints:
    """Label (rows,) rows of one (N, D): N equal, D within 1 % of the smallest, whatever the order of the rows."""
    order = np.lexsort((tokens, params))
    cell = np.zeros(len(params), dtype=np.int64)
    current, n, d = -1, np.nan, np.nan
    for i, (one_n, one_d) in zip(order, zip(params[order].tolist(), tokens[order].tolist(), strict=True), strict=True):
        if one_n != n or one_d > d * (1 + SAME_TOKENS):
            current, n, d = current + 1, one_n, one_d
        cell[i] = current
    return cell


def codes_of(values: NDArray[Any]) -> Ints:
    """Number (rows,) the distinct values of an array, by increasing value."""
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)


def codes(column: pd.Series[Any]) -> Ints:
    """Number (rows,) the distinct values of a column, by increasing number or by text."""
    values = numbers(column)
    return codes_of(values if np.isfinite(values).all() else column.astype(str).to_numpy(dtype=object))


def labels(*keys: Ints) -> Ints:
    """Number (rows,) the distinct combinations of several labels, in lexicographic order."""
    combined = keys[0]
    for key in keys[1:]:
        combined = np.unique(combined * (int(key.max()) + 1) + key, return_inverse=True)[1].reshape(-1)
    return np.unique(combined, return_inverse=True)[1].reshape(-1).astype(np.int64)
