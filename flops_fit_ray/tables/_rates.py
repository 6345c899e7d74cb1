"""Learning rates that a table swept: what those beside the best one of each (N, D) tell of the best rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from flops_fit_ray.analysis.arrays import Bools, Floats, Ints
from flops_fit_ray.analysis.learning_rates import TriedRates, tried_rates
from flops_fit_ray.tables._cells import numbers
from flops_fit_ray.tables._rows import Setting, codes, labels

if TYPE_CHECKING:
    import pandas as pd

MOST_CELLS = 500  # whose rates are read, spread evenly over all: more would tell no more


@dataclass(frozen=True, kw_only=True, eq=False)
class SweptRates:
    """Learning rates of a table."""

    column: str
    lr: Floats  # (rows,), of every row
    tried: TriedRates

    @property
    def words(self) -> str:
        """The sentence on them."""
        return f"three rates or more at {len(self.tried.params)} of them are read for how far the best one may be off"

    def placed(self, rows: Ints, number: int) -> SweptRates:
        """Return them for a table of `number` rows, of which they are `rows`."""
        lr = np.full(number, np.nan)
        lr[rows] = self.lr
        return replace(self, lr=lr)


def swept_rates(
    frame: pd.DataFrame,
    settings: Sequence[Setting],
    names: Sequence[str],
    params: Floats,
    tokens: Floats,
    loss: Floats,
    cell: Ints,
    best: Bools,
) -> SweptRates | None:
    """Return the rates that were tried at one N and D; None where no (N, D) has three, or a rate is not positive.

    A cell's rates are those of the rows that differ from its best one in their rate alone.

    Args:
        settings: with the column of the rates, the one that was swept at most (N, D).
        names: all columns with settings.
        loss: (rows,) infinite where a run has none.
        cell: (rows,) label of equal N and D.
        best: (rows,) the rows that are kept.
    """
    swept = [one for one in settings if one.kind == "learning rate" and one.swept]
    if not swept:
        return None
    column = max(swept, key=lambda one: one.swept).column
    lr = numbers(frame[column])
    if not (best.any() and (lr[best] > 0).all()):
        return None
    others = labels(cell, *(codes(frame[name]) for name in names if name != column))
    first = np.full(int(cell.max()) + 1, -1)  # a kept row of each cell
    kept = np.flatnonzero(best)
    first[cell[kept[::-1]]] = kept[::-1]
    place = first[cell]
    read = np.isfinite(loss) & (lr > 0) & (place >= 0) & (others == others[place])
    cells = np.unique(cell[read])
    if len(cells) > MOST_CELLS:
        read &= np.isin(cell, cells[np.linspace(0, len(cells) - 1, MOST_CELLS).astype(np.int64)])
    tried = tried_rates(params[place[read]], tokens[place[read]], lr[read], loss[read])
    return None if tried is None else SweptRates(column=column, lr=lr, tried=tried)
