"""Records as a worker writes them."""

from __future__ import annotations

from flops_fit_ray.ledger import ExperimentResult, Failure
from flops_fit_ray.storage.storage_path import StoragePath, local_path

RESULT = ExperimentResult(
    key="k1",
    budget=1e5,
    size=8,
    params=100,
    params_total=110,
    tokens=64,
    tokens_seen=64,
    flops=9e4,
    loss=1.25,
    loss_stderr=0.1,
    train_loss=1.2,
    lr=0.1,
    steps=8,
    seed=0,
    seconds=0.5,
    attempts=1,
    device="cpu",
    host="here",
    versions={"torch": "2"},
    finished_at=1.0,
)
FAILURE = Failure(
    key="k1",
    status="failed",
    error="E",
    traceback="T",
    tokens_seen=8,
    seconds=0.1,
    attempts=1,
    host="here",
    finished_at=1.0,
)


def recorded(root: StoragePath) -> dict[str, bytes]:
    """The result files of a sweep directory, by key."""
    return {path.parent.name: path.read_bytes() for path in root.glob("experiments/*/result.json")}


def outcomes(root: StoragePath) -> dict[str, int]:
    """When each result of a sweep directory was written, in ns, by key."""
    return {path.parent.name: local_path(path).stat().st_mtime_ns for path in root.glob("experiments/*/result.json")}
