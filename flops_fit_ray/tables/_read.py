"""Reading of a table as points: each rule is applied once, in this order, and what it did is said.

Rows that were asked for, of finished runs → columns and units → numbers, the missing one of C, N and D → bad rows,
copies, earlier steps → units and losses that cannot be → the best of swept settings → columns that split the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import Points, group_by_nearness
from flops_fit_ray.analysis.arrays import Bools, Floats
from flops_fit_ray.errors import SpecError
from flops_fit_ray.flags import Flag
from flops_fit_ray.tables._binning import binned
from flops_fit_ray.tables._cells import metric_numbers, numbers
from flops_fit_ray.tables._columns import NONE, ColumnMap, TableOptions, find_columns, loss_in, unknown_column
from flops_fit_ray.tables._load import Loaded, load
from flops_fit_ray.tables._names import ACTIVE, OTHER_FLOPS, OTHER_PARAMS, normal
from flops_fit_ray.tables._optima import Optima, read_optima
from flops_fit_ray.tables._plausible import (
    FLOPS_PER_TOKEN_AND_PARAM,
    budget_faults,
    budget_note,
    flops_note,
    score_faults,
    unit_faults,
)
from flops_fit_ray.tables._repeated import distinct_tokens
from flops_fit_ray.tables._rows import Setting, codes_of, keep_finished, keep_where
from flops_fit_ray.tables._selection import Selection, one_row_per_run

if TYPE_CHECKING:
    import pandas as pd

MAX_SHOWN = 5
MIN_ALIKE, MOSTLY_ALIKE = 3, 0.9  # sizes with one C, and their share of all runs, from which C labels the budgets
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
    left_out: Mapping[str, int]  # rows that are not used though they are sound, by the reason
    notes: tuple[Flag, ...]  # what was assumed
    settings: tuple[Setting, ...]  # of training, in columns of the table
    loss_in: str = "nats"  # or bits; taken for nats where the header does not say

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Notes on unused rows, computed columns and inferred budgets."""
        flags = []
        if self.refused:
            shown = fmt.listed([f"line {r.line}: {r.reason}" for r in self.refused], MAX_SHOWN, "; ")
            message = f"{len(self.refused)} of {self.rows} rows are not used: {shown}"
            flags.append(Flag("refused_rows", "warning", message))
        flags += self.notes
        if self.derived:
            flags.append(Flag("derived_column", "info", self.derived))
        if not self.points.labelled:
            groups = fmt.counted(len(np.unique(self.points.budget)), "group")
            message = f"no column labels the budgets: runs were grouped by C into {groups}; see `valleys`"
            flags.append(Flag("budgets_by_nearness", "info", message))
        return tuple(flags)

    def to_json(self) -> dict[str, Any]:
        """Return the description of the table as a JSON object."""
        return {
            "path": str(self.path),
            "rows": self.rows,
            "used": len(self.points),
            "refused": [{"line": r.line, "reason": r.reason} for r in self.refused],
            "left_out": dict(self.left_out),
            "columns": self.columns,
            "derived": self.derived,
            "settings": [setting.to_json() for setting in self.settings],
        }


def read_table(path: Path, options: TableOptions = DEFAULTS) -> Table:
    """Read a table of runs.

    Raises:
        SpecError: it cannot be read, lacks a column, is a table of optima, or no row can be used; all faults at once.
    """
    table = read_loaded(path, load(path), options)
    if isinstance(table, Optima):
        raise SpecError(str(path), [
            "is a table of optima, a row per budget: `flops-fit-ray fit TABLE --at C` fits its laws, and more needs a "
            "table with a row per run"
        ])  # fmt: skip
    return table


def values_of(path: Path, loaded: Loaded, column: str, options: TableOptions = DEFAULTS) -> list[str]:
    """Return the distinct values of a column of a loaded file, for a fit of each.

    Raises:
        SpecError: it has no such column.
    """
    frame = keep_where(path, loaded, options.where).frame
    if column not in frame:
        raise SpecError(str(path), [f"--each {column}: {unknown_column(column, frame.columns)}"])
    return sorted({str(cell).strip() for cell in frame[column]} - {""})


def read_loaded(path: Path, file: Loaded, options: TableOptions = DEFAULTS) -> Table | Optima:
    """Read the rows of a loaded file as runs, or as optima where its columns say so; the file stays as it is.

    Raises:
        SpecError: as `read_table`.
    """
    asked = keep_where(path, file, options.where)
    rows = len(asked.frame)
    loaded, unfinished = keep_finished(path, asked, options.where)
    columns = find_columns(str(path), loaded, options)
    _check_named(path, loaded.frame, options)
    notes = [Flag("left_out_rows", "warning", unfinished)] if unfinished else []
    notes += [Flag("assumed", "info", note) for note in (*loaded.notes, *columns.notes)]
    if "params_opt" in columns.taken or "tokens_opt" in columns.taken:
        return read_optima(path, loaded, columns, options, notes)
    values = {name: columns.values(loaded.frame, name) for name in columns.taken if name != "run"}
    derived = _derive(loaded.frame, values)
    if "budget" in values and np.isnan(values["budget"]).all():  # labels that are not numbers
        values["budget"] = _mean_flops(loaded.frame[columns.taken["budget"]], values["flops"])
    values.pop("flops_per_token", None)
    notes += [Flag("assumed", "info", note) for note in distinct_tokens(str(path), values, columns)]
    faults, without_loss = _row_faults(loaded.frame, values, columns, derived)
    good = np.array([i not in faults for i in range(len(loaded.frame))], dtype=bool)
    if not good.any():
        raise SpecError(str(path), _unusable(loaded, values, faults))
    _refuse_implausible(path, values, good, columns, options)
    at = {name: array[good] for name, array in values.items()}
    if not derived:
        words = flops_note(
            at["flops"] / (FLOPS_PER_TOKEN_AND_PARAM * at["params"] * at["tokens"]), columns.taken["flops"]
        )
        notes += [Flag("flops_factor", "warning", words)] if words else []
    elif "flops" not in columns.taken and {"budget", "params", "tokens"} <= set(columns.taken):
        words = budget_note(at["budget"] / at["flops"], columns.taken["budget"])
        notes += [Flag("flops_factor", "info", words)] if words else []
    chosen = one_row_per_run(path, loaded.frame, values, columns, options, good, without_loss)
    notes += chosen.notes
    keep, left_out = chosen.keep, dict(chosen.left_out)
    points = _points(loaded.frame, values, columns, chosen, options.metrics)
    points, width = binned(points)
    if width:
        notes.append(Flag("binned", "warning", f"{int(keep.sum()):,} rows were averaged in {len(points):,} cells of "
                          f"{100 * width:.2g} % in N and D, which weigh as many runs as they hold"))  # fmt: skip
    refused = tuple(RejectedRow(line=int(loaded.lines[i]), reason=faults[i]) for i in sorted(faults))
    if unfinished:
        left_out = {"unfinished": rows - len(loaded.frame)} | left_out
    return Table(path=path, points=points, rows=rows, refused=refused, columns=dict(columns.taken), derived=derived,
                 left_out=left_out, notes=tuple(notes), settings=chosen.settings, loss_in=loss_in(columns))  # fmt: skip


def _check_named(path: Path, frame: pd.DataFrame, options: TableOptions) -> None:
    for option, names in (("--best-of", options.best_of), ("--pool", options.pool), ("--metric", options.metrics)):
        for name in names:
            if name != NONE and name not in frame:
                raise SpecError(str(path), [f"{option} {name}: {unknown_column(name, frame.columns)}"])


def _row_faults(
    frame: pd.DataFrame, values: dict[str, Floats], columns: ColumnMap, derived: str
) -> tuple[dict[int, str], Bools]:
    """Reason why a row cannot be used, and the rows (rows,) whose loss is the only thing that is missing."""
    reasons: dict[int, str] = {}
    without_loss = np.zeros(len(frame), dtype=bool)
    for name, numeric in values.items():
        if name in ("seconds", "unique_tokens") or name not in columns.taken:
            continue
        bad = np.flatnonzero(~(np.isfinite(numeric) & (numeric > 0)))
        if name == "loss":
            without_loss[bad] = True
        cells = frame[columns.taken[name]].to_numpy(dtype=object)
        for i in map(int, bad):
            shown = "is empty" if str(cells[i]).strip() == "" else f"must be a positive number (got {_shown(cells[i])})"
            if name == "loss" and columns.perplexity and np.isfinite(numeric[i]):
                shown = f"must be a perplexity above 1 (got {_shown(cells[i])})"
            reasons[i] = "; ".join(filter(None, [reasons.get(i, ""), f"{columns.taken[name]} {shown}"]))
    for numeric in (values[name] for name in values if name not in columns.taken):
        bad = np.flatnonzero(~(np.isfinite(numeric) & (numeric > 0)))
        for i in map(int, bad):
            without_loss[i] = False
            reasons[i] = reasons.get(i) or f"{derived} and is {numeric[i]:g}, not a positive number"
    for name in ("params", "tokens", "flops"):
        without_loss &= np.isfinite(values[name]) & (values[name] > 0)
    return reasons, without_loss


def _shown(cell: Any) -> str:
    text = str(cell)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _unusable(loaded: Loaded, values: dict[str, Floats], faults: Mapping[int, str]) -> list[str]:
    known = values["loss"][np.isfinite(values["loss"])]
    if len(known) and (known < 0).all():
        return [f"all losses are negative ({known.min():.4g} to {known.max():.4g}): if they are log-likelihoods, the "
                "loss is -1 times that; write it as a column"]  # fmt: skip
    return ["no row can be used", *(f"line {loaded.lines[i]}: {faults[i]}" for i in sorted(faults)[:MAX_SHOWN])]


def _refuse_implausible(
    path: Path, values: dict[str, Floats], good: Bools, columns: ColumnMap, options: TableOptions
) -> None:
    triple = {name: values[name][good] for name in ("params", "tokens", "flops")}
    derived = [name for name in triple if name not in columns.taken]
    names = {name: columns.taken[name] for name in triple if name in columns.taken}
    faults = list(unit_faults(triple, derived, list(options.units), names))
    loss = values["loss"][good]
    if not faults:
        faults = list(score_faults(loss, triple["params"], triple["tokens"], columns.taken["loss"]))
    if len(loss) > MIN_ALIKE and float(np.ptp(loss)) == 0:
        faults.append(
            f"all losses are equal ({loss[0]:g} in {columns.taken['loss']!r}); if each row is the optimum of one "
            f"budget, --column params_opt={columns.taken.get('params', 'COLUMN')} fits N_opt(C) to the rows"
        )
    if "budget" in values and "run" not in columns.taken:
        faults += list(budget_faults(values["budget"][good], triple["flops"], columns.taken["budget"]))
    if faults:
        raise SpecError(str(path), faults)


def _points(
    frame: pd.DataFrame, values: dict[str, Floats], columns: ColumnMap, chosen: Selection, metrics: Sequence[str]
) -> Points:
    keep, rates = chosen.keep, chosen.rates
    picked = {name: numeric[keep] for name, numeric in values.items()}
    label = picked.get("budget")
    run = None
    if "run" in columns.taken:
        run = np.unique(frame[columns.taken["run"]].astype(str)[keep], return_inverse=True)[1].astype(np.int64)
    seconds = picked.get("seconds")
    labelled, budget = True, label
    if label is None:
        labelled, exact = _repeats(picked["flops"], picked["params"])
        budget = picked["flops"] if exact else group_by_nearness(picked["flops"])
    assert budget is not None
    points = Points(
        budget=budget,
        flops=picked["flops"],
        params=picked["params"],
        tokens=picked["tokens"],
        loss=picked["loss"],
        run=run,
        weight=picked.get("weight"),
        metrics={name: metric_numbers(frame[name], columns.decimal_comma)[keep] for name in metrics},
        unique=picked.get("unique_tokens"),
        seconds=None if seconds is None or not (seconds > 0).any() else np.where(seconds > 0, seconds, np.nan),
        params_as=_others(frame, OTHER_PARAMS, picked["params"], keep),
        flops_as=_others(frame, OTHER_FLOPS, picked["flops"], keep),
        lr=None if rates is None else rates.lr[keep],
        tried=None if rates is None else rates.tried,
        labelled=labelled,
    )
    # One order for one table: sums, and draws that are added to points, do not depend on how the rows were sorted
    tie = points.flops if run is None else run
    return points.pick(np.lexsort((tie, points.loss, points.tokens, points.params, points.budget)))


def _repeats(flops: Floats, params: Floats) -> tuple[bool, bool]:
    """Return whether C labels the budgets (nearly all runs share exactly one C with two other sizes), and all do."""
    which = codes_of(flops)
    sizes = np.bincount(np.unique(np.stack([which, codes_of(params)], axis=1), axis=0)[:, 0])  # distinct N of each C
    share = float(np.mean(sizes[which] >= MIN_ALIKE))
    return share >= MOSTLY_ALIKE, share == 1


def _mean_flops(cells: pd.Series[Any], flops: Floats) -> Floats:
    """Mean C of the runs of each budget, for budgets with labels that are not numbers."""
    which = codes_of(cells.astype(str).to_numpy(dtype=object))
    known = np.isfinite(flops)
    number = np.bincount(which[known], minlength=which.max() + 1)
    mean = np.bincount(which[known], weights=flops[known], minlength=which.max() + 1) / np.maximum(number, 1)
    return np.asarray(mean[which])


def _derive(frame: pd.DataFrame, values: dict[str, Floats]) -> str:
    """Compute the missing one of C, N and D by C = 6·N·D, and return how."""
    n, words = values.get("params"), "6·N"
    active = [column for column in frame.columns if normal(column) in ACTIVE]
    if n is not None and active:  # experts that a token does not meet cost nothing
        n, words = numbers(frame[active[0]]), f"6·{active[0]}"
    origin = ""
    with np.errstate(all="ignore"):  # a row whose result is not a number is reported
        per_token = values.get("flops_per_token")
        if per_token is None and n is not None:
            per_token = FLOPS_PER_TOKEN_AND_PARAM * n
        elif per_token is not None:
            words = "flops_per_token"
        if "flops" not in values and not (per_token is not None and "tokens" in values):
            values["flops"] = values["budget"]
            origin = "C of a run is taken as its budget; "
        if "flops" not in values:
            assert per_token is not None
            values["flops"] = per_token * values["tokens"]
            return f"C is computed as {words}·D"
        if "tokens" not in values:
            assert per_token is not None
            values["tokens"] = values["flops"] / per_token
            return f"{origin}D is computed as C/({words})" if words[0] == "6" else f"{origin}D is computed as C/{words}"
        if "params" not in values:
            values["params"] = values["flops"] / (FLOPS_PER_TOKEN_AND_PARAM * values["tokens"])
            return f"{origin}N is computed as C/(6·D)"
    return ""


def _others(frame: pd.DataFrame, names: Sequence[str], main: Floats, keep: Bools) -> dict[str, Floats]:
    """Columns with other definitions of a quantity, where they are complete and differ from `main`."""
    others = {}
    for column in frame.columns:
        if normal(column) not in names:
            continue
        numeric = numbers(frame[column])[keep]
        if (np.isfinite(numeric) & (numeric > 0)).all() and not np.allclose(numeric, main, rtol=1e-3):
            others[str(column)] = numeric
    return others
