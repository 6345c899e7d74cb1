"""Recognition of columns by common names, and of units in headers and cells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.errors import SpecError
from flops_fit_ray.formatting import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

# Our name -> names in use; the first that a table has is taken. Compared in lower case, spaces and dashes as "_".
NAMES: dict[str, tuple[str, ...]] = {
    "params": ("params", "n", "n_params", "num_params", "parameters", "num_parameters", "model_params", "model_size",
               "params_total", "total_params", "n_parameters", "size"),
    "tokens": ("tokens_seen", "tokens", "d", "n_tokens", "num_tokens", "train_tokens", "training_tokens",
               "tokens_trained", "total_tokens", "samples_seen"),
    "flops": ("flops", "actual_flops", "c", "compute", "train_flops", "training_flops", "total_flops", "flop",
              "training_flop", "num_flops"),
    "loss": ("loss", "val_loss", "eval_loss", "validation_loss", "held_out_loss", "heldout_loss", "test_loss",
             "final_loss", "valid_loss", "l", "train_loss"),
    "budget": ("budget", "compute_budget", "budget_tag", "flop_budget", "flops_budget", "isoflop", "target_flops",
               "nominal_flops"),
    "run": ("run", "run_id", "run_name", "run_key"),
    "weight": ("weight", "weights"),
    "seconds": ("seconds", "train_seconds", "wall_time_seconds", "wall_time", "duration_seconds", "elapsed_seconds"),
}  # fmt: skip
REQUIRED = ("params", "tokens", "flops", "loss")  # one of the first three may follow from the other two
OTHER_PARAMS = ("params_total", "total_params", "params_non_embedding", "non_embedding_params", "n_non_embedding",
                "params_matmul", "params_active", "active_params", "params_without_head")  # fmt: skip
OTHER_FLOPS = ("flops_6nd", "flops_counted", "flops_without_attention", "flops_with_attention")
DONE = ("completed", "complete", "done", "finished", "success", "ok")

UNITS: dict[str, float] = {
    "1": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "thousand": 1e3, "thousands": 1e3, "million": 1e6,
    "millions": 1e6, "billion": 1e9, "billions": 1e9, "trillion": 1e12, "trillions": 1e12, "gflop": 1e9, "gflops": 1e9,
    "tflop": 1e12, "tflops": 1e12, "pflop": 1e15, "pflops": 1e15, "eflop": 1e18, "eflops": 1e18, "zflop": 1e21,
    "zflops": 1e21, "pf_days": 8.64e19, "pf_day": 8.64e19, "s": 1.0, "min": 60.0, "h": 3600.0, "hours": 3600.0,
}  # fmt: skip
_CELL = re.compile(r"^([-+]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([kmbgt])?$", re.IGNORECASE)
_HEADER = re.compile(r"^(.*?)[\s_]*[\[(]([^)\]]*)[\])]$")


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Options for reading a table; columns that are not named are recognised by common names."""

    columns: Mapping[str, str] = field(default_factory=dict)  # ours -> theirs
    units: Mapping[str, str] = field(default_factory=dict)  # ours -> k, M, B, T, EFLOP, PF-days or a number
    where: Sequence[tuple[str, str]] = ()  # (column, value): keep the rows that have it


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """The column taken for each quantity, and the value of one of its units."""

    taken: Mapping[str, str]
    scale: Mapping[str, float]


def normal(name: str) -> str:
    """Normalise a header for comparison."""
    return re.sub(r"[\s\-.]+", "_", str(name).strip().lower())


def find_columns(source: str, headers: Sequence[str], options: TableOptions) -> ColumnMap:
    """Find the column and unit of every quantity.

    Raises:
        SpecError: a named column is not there, a unit is unknown, or one that is needed cannot be found.
    """
    faults = [
        f"--column {ours}=...: unknown name; use one of {', '.join(NAMES)}"
        for ours in options.columns
        if ours not in NAMES
    ]
    taken = _named_columns(headers, options.columns, faults) | _guessed_columns(headers, options.columns)
    scale = {ours: _split(theirs)[1] for ours, theirs in taken.items()}
    for ours, word in options.units.items():
        value = unit_of(word)
        if ours in NAMES and value is not None:
            scale[ours] = value
        else:
            known = ", ".join(NAMES)
            faults.append(
                f"--unit {ours}={word}: use NAME=UNIT, a name of {known} and k, M, B, T, EFLOP, PF-days or a number"
            )
    missing = [name for name in REQUIRED if name not in taken and not (name == "flops" and "budget" in taken)]
    if "loss" in missing or len(missing) > 1:
        faults.append(
            f"has no column for {' and '.join(missing)} (it has {', '.join(map(str, headers))}); name it, for example "
            f"--column {missing[0]}=COLUMN; required are loss and two of params, tokens, flops"
        )
    if faults:
        raise SpecError(source, faults)
    return ColumnMap(taken=taken, scale=scale)


def _named_columns(headers: Sequence[str], named: Mapping[str, str], faults: list[str]) -> dict[str, str]:
    taken = {}
    for ours, theirs in named.items():
        if theirs in headers:
            taken[ours] = theirs
        else:
            hint = did_you_mean(theirs, headers) or f"it has {', '.join(map(str, headers))}"
            faults.append(f"--column {ours}={theirs}: there is no such column; {hint}")
    return taken


def _guessed_columns(headers: Sequence[str], named: Mapping[str, str]) -> dict[str, str]:
    """Columns by common names for the quantities that are not in `named`; no column is taken twice."""
    bare: dict[str, str] = {}
    for header in headers:
        bare.setdefault(_split(header)[0], header)
    taken: dict[str, str] = {}
    for ours, names in NAMES.items():
        free = (bare[name] for name in names if name in bare)
        used = {*named.values(), *taken.values()}
        match = next((header for header in free if header not in used), None)
        if ours not in named and match is not None:
            taken[ours] = match
    return taken


def _split(header: str) -> tuple[str, float]:
    """Split a header into name and unit: 'Tokens (B)' -> tokens, 1e9; other brackets stay in the name."""
    match = _HEADER.match(str(header).strip())
    if match and (value := unit_of(match[2])) is not None:
        return normal(match[1]), value
    return normal(header), 1.0


def unit_of(word: str) -> float | None:
    """Value of a unit, given by name or as a number; None if it is neither."""
    known = UNITS.get(normal(word))
    if known is not None:
        return known
    try:
        value = float(word)
    except ValueError:
        return None
    return value if np.isfinite(value) and value > 0 else None


def numbers(column: pd.Series[str]) -> Floats:
    """Parse cells such as 1.5e9, 1,500,000,000 or 1.5B; NaN where there is no number."""
    import pandas as pd

    values = np.array(pd.to_numeric(column, errors="coerce"), dtype=np.float64)
    for i in np.flatnonzero(np.isnan(values)):
        match = _CELL.match(str(column.iloc[i]).strip())
        if match:
            values[i] = float(match[1].replace(",", "").replace("_", "")) * UNITS[(match[2] or "1").lower()]
    return values
