"""Distinct tokens of each row, from a column of them or of epochs."""

from __future__ import annotations

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.errors import SpecError
from flops_fit_ray.formatting import counted
from flops_fit_ray.tables._columns import ColumnMap

APART = 1.1  # ratio of D / U and epochs from which they contradict each other
MOST_EPOCHS = 10_000  # more are an error of the unit


def distinct_tokens(source: str, values: dict[str, Floats], columns: ColumnMap) -> list[str]:
    """Put the tokens seen at least once into `values` as unique_tokens, at most D, and take epochs out of it.

    Returns:
        What was assumed.

    Raises:
        SpecError: distinct tokens and epochs contradict each other, or the epochs are more than can be.
    """
    epochs, unique, d = values.pop("epochs", None), values.get("unique_tokens"), values["tokens"]
    if epochs is None and unique is None:
        return []
    name = columns.taken["epochs" if unique is None else "unique_tokens"]
    with np.errstate(all="ignore"):
        seen = d / unique if unique is not None else np.asarray(epochs, dtype=np.float64)
        seen = np.where(np.isfinite(seen) & (seen > 0), np.maximum(seen, 1.0), np.nan)
        if unique is not None and epochs is not None:
            ratio = seen / np.where(epochs > 0, np.maximum(epochs, 1.0), np.nan)
            off = np.flatnonzero((ratio > APART) | (ratio < 1 / APART))
            if len(off):
                i, other = int(off[0]), columns.taken["epochs"]
                raise SpecError(source, [
                    f"{name!r} and {other!r} contradict each other in {len(off)} rows: D / {name} is {seen[i]:.3g} "
                    f"where {other} is {epochs[i]:.3g}; --column epochs=none or unique_tokens=none takes one of them"
                ])  # fmt: skip
    known = seen[np.isfinite(seen)]
    if len(known) and float(np.median(known)) > MOST_EPOCHS:
        raise SpecError(source, [
            f"by {name!r} the data were repeated {np.median(known):.3g} times: its unit is not that of D; say it, for "
            f"example --unit unique_tokens=B, or --column {'epochs' if unique is None else 'unique_tokens'}=none"
        ])  # fmt: skip
    missing = ~np.isfinite(seen)
    values["unique_tokens"] = d / np.where(missing, 1.0, seen)
    given = np.asarray(epochs if unique is None else unique, dtype=np.float64)
    no_count = missing & np.isfinite(given)
    said = []
    if (missing & ~no_count).any():
        said.append(f"{counted(int((missing & ~no_count).sum()), 'row')} without {name!r}")
    if no_count.any():
        rows = counted(int(no_count.sum()), "row")
        said.append(f"{rows} whose {name!r} is not above 0 ({given[no_count][0]:g})")
    return [f"{words}: their data are taken as seen once" for words in said]
