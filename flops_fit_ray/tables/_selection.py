"""Selection of rows: one per run, of the best setting, of one law; what is left out is counted and said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flops_fit_ray.analysis import Flag
from flops_fit_ray.analysis.arrays import Bools, Floats
from flops_fit_ray.errors import SpecError
from flops_fit_ray.tables._columns import NONE, ColumnMap, TableOptions
from flops_fit_ray.tables._names import PROGRESS, last_of
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
from flops_fit_ray.tables._splits import find_split, kinds

if TYPE_CHECKING:
    import pandas as pd

CURVES = 12  # rows per size with steps of training but no name of the run, from which they look like its curve


def one_row_per_run(
    path: Path,
    frame: pd.DataFrame,
    values: dict[str, Floats],
    columns: ColumnMap,
    options: TableOptions,
    good: Bools,
    without_loss: Bools,
) -> tuple[Bools, dict[str, int], list[Flag], tuple[Setting, ...]]:
    """Leave out copies, earlier steps and all but the best of swept settings; refuse columns that split the rows."""
    taken = list(columns.taken.values())
    left_out: dict[str, int] = {}
    notes: list[Flag] = []
    keep = good.copy()

    def drop(kept: Bools, of: Bools, reason: str, words: str) -> None:
        dropped = int((keep & of).sum() - (keep & kept).sum())
        if dropped:
            keep[of] &= kept[of]
            left_out[reason] = dropped
            notes.append(Flag(f"{reason}_left_out", "warning", words))

    again = copies(frame)
    number = int((again & keep).sum())
    drop(~again, np.ones(len(frame), dtype=bool), "copies",
         f"{number} of {len(frame)} rows are exact copies of others: a run counts once")  # fmt: skip
    tried = np.flatnonzero((keep | without_loss) & ~again)  # also where the loss is missing: the setting was tried
    settings_names = settings_of(frame, taken, options.best_of)
    here = frame.iloc[tried]
    loss = np.where(keep, values["loss"], np.inf)[tried]
    n, d = values["params"][tried], values["tokens"][tried]
    candidates = kinds(here, taken, settings_names)
    apart = [codes(here[name]) for name in dict.fromkeys((*candidates, *options.pool)) if name != NONE]
    if "budget" in values:
        apart.append(codes_of(values["budget"][tried]))
    run = [codes(here[columns.taken["run"]])] if "run" in columns.taken else []

    kept, words = last_steps(here, taken, labels(codes_of(n), codes_of(d), *apart, *run))
    full = np.zeros(len(frame), dtype=bool)
    full[tried] = kept
    drop(full, keep.copy(), "earlier_steps", words)
    notes += _curves_note(here[kept], taken, n[kept], bool(run))
    kept, settings, words = best_settings(
        here, np.where(kept, loss, np.inf), labels(cells_of(n, d), *apart), settings_names
    )
    full = np.zeros(len(frame), dtype=bool)
    full[tried] = kept
    drop(full, keep.copy(), "other_settings", words)
    at = {name: array[keep] for name, array in values.items()}
    free = [name for name in candidates if name not in options.pool]
    split = find_split(frame[keep], free, at["params"], at["tokens"], at["flops"], at["loss"])
    if split is not None:
        raise SpecError(str(path), [split.message])
    return keep, left_out, notes, settings


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
