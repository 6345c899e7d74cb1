"""What follows from the records: a table, a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flops_fit_ray.ledger.records import Result
from flops_fit_ray.ledger.store import Ledger
from flops_fit_ray.planning import Experiment

if TYPE_CHECKING:
    import pandas as pd


def results_sha256(results: Iterable[Result]) -> str:
    """One fingerprint of what was learned: equal for an interrupted and an uninterrupted sweep."""
    lines = sorted(
        f"{r.key} {r.tokens_seen} {r.loss.hex()} {r.loss_stderr.hex() if r.loss_stderr is not None else '-'}"
        for r in results
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


COLUMNS = [
    "key",
    "budget",
    "size",
    "params",
    "params_total",
    "tokens",
    "tokens_seen",
    "flops",
    "loss",
    "loss_stderr",
    "loss_kind",
    "train_loss",
    "status",
    "seconds",
    "seed",
    "attempts",
    "deaths",
    "workers",
    "lr",
    "steps",
    "precision",
    "micro_batch_size",
    "tokens_per_second",
    "flops_per_second",
    "mfu",
    "peak_memory_bytes",
    "data_wait_share",
    "device",
    "role",
    "of",
    "parent",
    "tokens_executed",
    "flops_executed",
    "error",
]


def results_table(experiments: Sequence[Experiment], ledger: Ledger, waiting: Collection[str] = ()) -> pd.DataFrame:
    """One row per experiment of the plan, in its order, with `COLUMNS`; empty cells where nothing is known yet.

    `waiting` are the keys of those that wait for another one.

    Metrics follow as columns of their own, `metric_` and the name.
    """
    import pandas as pd

    rows = []
    for e in experiments:
        row: dict[str, Any] = {
            name: getattr(e, name)
            for name in ("key", "budget", "size", "params", "params_total", "tokens", "role", "of")
        }
        outcome = ledger.outcome(e.key)
        if outcome is not None:
            row |= asdict(outcome)
        else:
            idle = "waiting" if e.key in waiting else "planned"
            row |= {"status": "running" if ledger.progress(e.key) else idle}
        metrics = {f"metric_{name}": value for name, value in (row.get("metrics") or {}).items()}
        rows.append({column: row.get(column) for column in COLUMNS} | metrics)
    names = [name for row in rows for name in row if name.startswith("metric_")]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *dict.fromkeys(names)])
    whole = ["params", "params_total", "tokens", "tokens_seen", "seed", "attempts", "deaths", "workers", "steps"]
    whole += ["micro_batch_size", "peak_memory_bytes", "tokens_executed"]
    real = ["budget", "flops", "loss", "loss_stderr", "train_loss", "seconds", "lr", "flops_executed"]
    real += ["tokens_per_second", "flops_per_second", "mfu", "data_wait_share"]
    return frame.astype({**dict.fromkeys(whole, "Int64"), **dict.fromkeys(real, "float64")})
