"""Selection of rows: one per run, of the best setting, of one law; what is left out is counted and said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats, Ints
from flops_fit_ray.errors import SpecError
from flops_fit_ray.flags import Flag
from flops_fit_ray.tables._columns import NONE, ColumnMap, TableOptions
from flops_fit_ray.tables._names import PROGRESS, last_of
from flops_fit_ray.tables._rates import SweptRates, swept_rates
from flops_fit_ray.tables._rows import (
    Setting,
    best_settings,
    cells_of,
    codes,
    codes_of,
    copies,
    labels,
    last_steps,
    settings_of,
)
from flops_fit_ray.tables._splits import MAX_KINDS, find_split, kinds

if TYPE_CHECKING:
    import pandas as pd

CURVES = 12  # rows per size with steps of training but no name of the run, from which they look like its curve


def _of_other_values(frame: pd.DataFrame, options: TableOptions) -> Bools:
    """Return True for the rows of a sweep's results that ran beside its minima with another value or batch size.

    None where all rows are such, or those of `model.axes` where they are pooled.
    """
    if "role" not in frame.columns:
        return np.zeros(len(frame), dtype=bool)
    roles = ["batch_check", *([] if "axis" in options.pool else ["axis"])]
    found = np.asarray(frame["role"].astype(str).isin(roles), dtype=bool)
    return found & ~found.all()


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """The rows that are used, what was left out and why, and what the others tell of the settings."""

    keep: Bools  # (rows,)
    left_out: Mapping[str, int]  # rows, by the reason
    notes: tuple[Flag, ...]
    settings: tuple[Setting, ...]
    rates: SweptRates | None  # None where no (N, D) was trained at three learning rates


def one_row_per_run(
    path: Path,
    frame: pd.DataFrame,
    values: dict[str, Floats],
    columns: ColumnMap,
    options: TableOptions,
    good: Bools,
    without_loss: Bools,
) -> Selection:
    """Leave out copies, earlier steps and all but the best of swept settings; refuse columns that split the rows."""
    taken = list(columns.taken.values())
    left_out: dict[str, int] = {}
    notes: list[Flag] = []
    keep = good.copy()

    def drop(kept: Bools, reason: str, words: str) -> None:
        dropped = int((keep & ~kept).sum())
        if dropped:
            keep[~kept] = False
            left_out[reason] = dropped
            notes.append(Flag(f"{reason}_left_out", "warning", words))

    def placed(kept: Bools) -> Bools:
        """Rows of the whole table; those that were not tried stay as they are."""
        full = np.ones(len(frame), dtype=bool)
        full[tried] = kept
        return full

    again = copies(frame)
    number = int((again & keep).sum())
    drop(~again, "copies",
         f"{number} of {len(frame)} rows are exact copies of others: a run counts once")  # fmt: skip
    beside = _of_other_values(frame, options)
    number = int((beside & keep).sum())
    words = (
        "are of other values on a second axis (column 'axis') or other batch sizes, which a fit of a sweep leaves out"
    )
    drop(~beside, "other_values", f"{number} of {len(frame)} rows {words}; --pool axis takes the former too")
    tried = np.flatnonzero(
        (keep | without_loss) & ~again & ~beside
    )  # also where the loss is missing: the setting was tried
    settings_names = settings_of(frame, taken, options.best_of)
    here = frame.iloc[tried]
    loss = np.where(keep, values["loss"], np.inf)[tried]
    n, d = values["params"][tried], values["tokens"][tried]
    candidates = [name for name in kinds(here, taken, settings_names) if name not in options.pool]
    fixed = [codes(here[name]) for name in options.pool if name != NONE]
    if "budget" in values:
        fixed.append(codes_of(values["budget"][tried]))
    if "unique_tokens" in values:  # one (N, D) of other data is another point
        fixed.append(codes_of(np.nan_to_num(values["unique_tokens"][tried])))
    kind = [codes(here[name]) for name in candidates]
    run = [codes(here[columns.taken["run"]])] if "run" in columns.taken else []

    last, words = last_steps(here, taken, labels(codes_of(n), codes_of(d), *fixed, *kind, *run))
    drop(placed(last), "earlier_steps", words)
    notes += _curves_note(here[last], taken, n[last], bool(run))
    if run:  # a rate that changes within a run is its schedule, not a setting
        settings_names = [name for name in settings_names if _constant(codes(here[name]), run[0])]
    many = any(here[name].nunique() > MAX_KINDS for name in settings_names)  # as a schedule has, or a random search
    loss, cell = np.where(last, loss, np.inf), labels(codes_of(n), codes_of(d)) if many else cells_of(n, d)
    best, settings, words = best_settings(here, loss, labels(cell, *fixed, *kind), settings_names)
    chosen = keep & placed(best)
    at = {name: array[chosen] for name, array in values.items()}
    split = find_split(frame[chosen], candidates, at["params"], at["tokens"], at["flops"], at["loss"])
    if split is not None:
        raise SpecError(str(path), [split.message])
    if kind:  # they tell no laws apart, so a setting that was swept in only one of them counts for all
        best, settings, words = best_settings(here, loss, labels(cell, *fixed), settings_names)
    rates = swept_rates(here, settings, settings_names, n, d, loss, labels(cell, *fixed), best & keep[tried])
    drop(placed(best), "other_settings", words if rates is None else f"{words}; {rates.words}")
    return Selection(
        keep=keep,
        left_out=left_out,
        notes=tuple(notes),
        settings=settings,
        rates=None if rates is None else rates.placed(tried, len(frame)),
    )


def _constant(value: Ints, run: Ints) -> bool:
    """Return True if no run has two values."""
    return int(labels(run, value).max()) == int(run.max())


def _curves_note(frame: pd.DataFrame, taken: Sequence[str], params: Floats, named: bool) -> list[Flag]:
    """Warn of rows that look like training curves of runs that have no name."""
    steps = [column for column in frame.columns if column not in taken and last_of(column) in PROGRESS]
    if named or not steps or len(params) / max(len(np.unique(params)), 1) < CURVES:
        return []
    message = (
        f"{len(params)} rows of {len(np.unique(params))} sizes have a {steps[0]!r}: if they are training curves, name "
        "the column of the run with --column run=..., or they count as independent runs"
    )
    return [Flag("curves", "warning", message)]
