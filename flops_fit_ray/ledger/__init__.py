"""The truth about a sweep: one file per outcome, written whole, never changed once it is there.

A worker records its result here before Ray hears of it; the driver runs what the ledger lacks. Reading never executes
anything, never blocks, and takes a torn file for a missing one.
"""

from flops_fit_ray.ledger._records import (
    RETRY_ON_NEXT_RUN,
    STALE_SECONDS,
    AttemptFacts,
    Event,
    ExperimentResult,
    Failure,
    FailureKind,
    Progress,
)
from flops_fit_ray.ledger._store import Ledger, observations
from flops_fit_ray.ledger._table import COLUMNS, results_sha256, results_table

__all__ = [
    "COLUMNS",
    "RETRY_ON_NEXT_RUN",
    "STALE_SECONDS",
    "AttemptFacts",
    "Event",
    "ExperimentResult",
    "Failure",
    "FailureKind",
    "Ledger",
    "Progress",
    "observations",
    "results_sha256",
    "results_table",
]
