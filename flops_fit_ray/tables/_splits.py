"""Detection of columns that split a table: runs on other data, or with another tokenizer, are another law."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flops_fit_ray.analysis.arrays import Floats, Ints
from flops_fit_ray.tables._cells import numbers
from flops_fit_ray.tables._names import (
    KINDS,
    NAMES,
    OTHER_FLOPS,
    OTHER_PARAMS,
    PROGRESS,
    REPEATS,
    SETTINGS,
    SHAPES,
    STATUS,
    forms,
    last_of,
)
from flops_fit_ray.tables._rows import codes

if TYPE_CHECKING:
    import pandas as pd

MAX_KINDS = 24  # distinct values, above which a column is no kind of run
LABEL = 0.1  # spread of ln N (or D, C) within a value, relative to all rows, below which the value is a label of N
LEAST_EFFECT = 0.003  # of ln loss at equal N and D, root mean square
EXPLAINED = 0.5  # of the squared residuals, from which a column that was not looked for splits the rows
SURE = 1e-4  # p-value of the F test
MIN_LEFT = 4  # degrees of freedom for the test
FEW_FOR_CUBIC = 40  # rows

_NO_KIND = {*SETTINGS, *REPEATS, *PROGRESS, *SHAPES, *STATUS, *OTHER_FLOPS, *OTHER_PARAMS, "id", "index", "host",
            "node", "gpu", "rank", "date", "time", "timestamp", "tags", "notes", "reason", "comment", "url", "user",
            "version", "role", "of", "parent", "device", "outlier", "used", "unnamed_0"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Split:
    """A column whose values are rows of different laws."""

    column: str
    values: tuple[tuple[str, int], ...]  # value, rows
    numeric: bool  # the values are numbers: they may be those of a setting that was swept
    effect: float | None  # on ln loss at equal N and D, root mean square; None: too few rows to tell

    @property
    def message(self) -> str:
        """The fault: effect of the column, and the ways out."""
        shown = ", ".join(f"{value} ({number} rows)" for value, number in self.values[:6])
        more = f" and {len(self.values) - 6} more" if len(self.values) > 6 else ""
        why = (
            "too few rows to tell whether they have one law"
            if self.effect is None
            else f"at equal N and D their losses differ by {100 * self.effect:.2g} % (root mean square)"
        )
        name, first = self.column, self.values[0][0]
        swept = f"take the best of each (N, D) with --best-of '{name}', " if self.numeric else ""
        return (
            f"{name!r} splits the rows into {shown}{more}: {why}; choose one with --where '{name}={first}', fit each "
            f"with `fit --each '{name}'`, {swept}or all as one with --pool '{name}'"
        )


def kinds(frame: pd.DataFrame, taken: Sequence[str], settings: Sequence[str]) -> list[str]:
    """Return the columns of few values that may tell kinds of runs apart."""
    found = []
    for place, column in enumerate(frame.columns):
        if column in taken or column in settings or last_of(column) in _NO_KIND:
            continue
        if any(name in names for reading in forms(column) for name, _ in reading for names in _MEASURED):
            continue
        if 2 <= frame.iloc[:, place].astype(str).nunique() <= min(MAX_KINDS, len(frame) // 3):
            found.append(column)
    return found


_MEASURED = tuple(names for ours, names in NAMES.items() if ours not in ("params", "run"))


def find_split(
    frame: pd.DataFrame, candidates: Sequence[str], params: Floats, tokens: Floats, flops: Floats, loss: Floats
) -> Split | None:
    """Return the column that explains most of the losses beyond N and D; None if none does."""
    logs = [np.log(values) for values in (params, tokens, flops)]
    found = [split for column in candidates for split in _splits(frame[column], column, logs, np.log(loss))]
    return min(found, key=lambda split: (split.effect is None, -(split.effect or 0), split.column), default=None)


def _splits(cells: pd.Series[str], column: str, logs: Sequence[Floats], log_loss: Floats) -> Iterator[Split]:
    which = codes(cells)
    if which.max() < 1 or any(_labels(which, values) for values in logs):
        return
    texts = cells.astype(str).to_numpy(dtype=object)
    values = tuple((str(texts[which == i][0]), int((which == i).sum())) for i in range(int(which.max()) + 1))
    base = _smooth(logs[0], logs[1], cubic=len(which) >= FEW_FOR_CUBIC)
    effect, sure, left, explained = _test(base, which, log_loss)
    numeric = bool(np.isfinite(numbers(cells)).all())
    if left < MIN_LEFT:
        if last_of(column) in KINDS and not numeric:
            yield Split(column=column, values=values, numeric=False, effect=None)
    elif sure < SURE and effect > LEAST_EFFECT and (explained > EXPLAINED or last_of(column) in KINDS):
        yield Split(column=column, values=values, numeric=numeric, effect=effect)


def _labels(which: Ints, logs: Floats) -> bool:
    """Return True if every value stands for one N (or D, or C)."""
    count = np.bincount(which)
    mean = np.bincount(which, weights=logs) / count
    within = float(np.sqrt(np.mean((logs - mean[which]) ** 2)))
    return within <= LABEL * float(np.std(logs))


def _smooth(log_params: Floats, log_tokens: Floats, cubic: bool) -> Floats:
    """Polynomials (rows, terms) in ln N and ln D, of second or third degree."""
    x, y = ((values - values.mean()) / max(float(np.std(values)), 1e-12) for values in (log_params, log_tokens))
    degree = 3 if cubic else 2
    return np.stack([x**i * y**j for i in range(degree + 1) for j in range(degree + 1 - i)], axis=1)


def _test(base: Floats, which: Ints, log_loss: Floats) -> tuple[float, float, int, float]:
    """F test of one constant per value, beside a smooth surface of N and D.

    F = ((S0 - S1) / q) / (S1 / left), S the sums of squared residuals without and with the q constants.

    Returns:
        Root mean square of their effect on ln loss, p-value, degrees of freedom left, explained share of S0.
    """
    from scipy.special import fdtrc

    def residual(design: Floats) -> tuple[float, int]:
        solution, _, rank, _ = np.linalg.lstsq(design, log_loss, rcond=1e-9)
        return float(np.sum((log_loss - design @ solution) ** 2)), int(rank)

    squares, rank = residual(base)
    constants = (which[:, None] == np.arange(1, int(which.max()) + 1)).astype(np.float64)
    with_squares, with_rank = residual(np.concatenate([base, constants], axis=1))
    more, left = with_rank - rank, len(log_loss) - with_rank
    if more < 1 or left < 1:
        return 0.0, 1.0, left, 0.0
    gain = max(squares - with_squares, 0.0)
    floor = 1e-18 * len(log_loss)  # of exact losses, rounding errors
    ratio = (gain / more) / ((with_squares + floor) / left)
    return (
        float(np.sqrt(gain / len(log_loss))),
        float(fdtrc(more, left, ratio)),
        left,
        gain / (squares + floor),
    )
