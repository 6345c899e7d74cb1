"""The table of optima at several budgets: a DataFrame for programs, Markdown for people."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import Prediction

HEADER = ("Compute Budget", "Optimal N", "Optimal D", "D/N Ratio", "Predicted Loss", "N interval", "Extrapolation")
FACTORS = ("extrapolation", "params_extrapolation", "tokens_extrapolation")  # of C, N and D; the largest is shown


class ChinchillaTable(pd.DataFrame):
    """One row per budget; what is derived from it is an ordinary DataFrame."""

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    def __str__(self) -> str:
        rows = [HEADER, *map(_cells, self.to_dict("records"))]
        head, *lines = [f"| {' | '.join(cells)} |" for cells in rows]
        return "\n".join([head, "|---" * len(HEADER) + "|", *lines])


def chinchilla_table(predictions: Sequence[Prediction]) -> ChinchillaTable:
    """Return the table of these predictions: N, D, D/N, loss, their intervals, and the extrapolation factor."""
    return ChinchillaTable([_row(prediction) for prediction in predictions])


def _cells(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    within = "" if row["params_low"] is None else fmt.interval(row["params_low"], row["params_high"])
    return (
        f"{row['budget']:.2e}",
        f"{int(row['params']):,}",
        f"{int(row['tokens']):,}",
        f"{row['tokens_per_param']:.1f}",
        f"{row['loss']:.4f}",
        within,
        f"{max(row[name] for name in FACTORS):.3g}x",
    )


def _row(prediction: Prediction) -> dict[str, float | None]:
    row: dict[str, float | None] = {
        "budget": prediction.budget,
        "params": prediction.params,
        "tokens": prediction.tokens,
        "tokens_per_param": prediction.tokens / prediction.params,
        "loss": prediction.loss,
        "extrapolation": prediction.extrapolation,
        "params_extrapolation": prediction.params_extrapolation,
        "tokens_extrapolation": prediction.tokens_extrapolation,
    }
    for name in ("params", "tokens", "loss"):
        interval = getattr(prediction, f"{name}_interval")
        row[f"{name}_low"] = interval.low if interval else None
        row[f"{name}_high"] = interval.high if interval else None
    return row
