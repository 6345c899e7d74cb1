"""A results table from a file, as the arrays that a fit takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flops_fit_ray.analysis import Points
from flops_fit_ray.errors import SpecError

COLUMNS = ("budget", "flops", "params", "tokens_seen", "loss")


def read_points(path: Path) -> Points:
    """The completed rows of a results.csv or results.parquet.

    Raises:
        SpecError: the file cannot be read, or a column is missing.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except FileNotFoundError as e:
        raise SpecError(str(path), ["no such file"]) from e
    except (OSError, ValueError) as e:
        raise SpecError(str(path), [f"cannot be read as a table: {e}"]) from e
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise SpecError(str(path), [f"has no column {', '.join(missing)}; needed are {', '.join(COLUMNS)}"])
    if "status" in frame:
        frame = frame[frame["status"] == "completed"]
    budget, flops, params, tokens, loss = (frame[column].to_numpy(dtype=np.float64) for column in COLUMNS)
    return Points(budget=budget, flops=flops, params=params, tokens=tokens, loss=loss)
