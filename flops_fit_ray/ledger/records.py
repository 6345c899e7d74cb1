"""What the ledger holds: one record per outcome, and how one is read from its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from flops_fit_ray.storage.atomic import read_json
from flops_fit_ray.storage.codec import value_of
from flops_fit_ray.storage.paths import SCHEMA_VERSION

FailureKind = Literal["diverged", "out_of_memory", "stalled", "failed", "infrastructure"]
STALE_SECONDS = 60.0  # progress is written about once a second, unless a step takes longer
RETRY_ON_NEXT_RUN: frozenset[str] = frozenset({"out_of_memory", "stalled", "failed", "infrastructure"})
# a divergence would only repeat


@dataclass(frozen=True, kw_only=True)
class Result:
    """One completed experiment."""

    key: str
    budget: float  # C, FLOPs asked for
    size: int | str
    params: int  # N
    params_total: int
    tokens: int  # D, planned
    tokens_seen: int  # D, counted in the worker
    flops: float  # spent: tokens_seen × FLOPs per token
    loss: float  # nats per token unless the loss says otherwise; `loss_kind` says of which data
    loss_stderr: float | None  # over held-out batches; None for a single batch
    train_loss: float  # mean over the last 5 % of the steps
    lr: float
    steps: int
    seed: int
    seconds: float  # training and evaluation
    attempts: int
    device: str
    host: str
    versions: Mapping[str, str]
    finished_at: float  # seconds since the epoch
    status: Literal["completed"] = "completed"
    loss_kind: str = "held-out"  # or "training, smoothed" where there is no held-out data
    metrics: Mapping[str, float] = field(default_factory=dict)  # on the held-out data, by name
    precision: str = "fp32"  # what ran
    attention: str = "torch"  # the kernel that ran
    micro_batch_size: int | None = None  # samples in one forward and backward, at the end
    tokens_per_second: float | None = None  # of training alone
    flops_per_second: float | None = None
    mfu: float | None = None  # share of `peak_source`
    peak_source: str = ""
    peak_memory_bytes: int | None = None
    data_wait_share: float | None = None  # of the training time
    resumed_from: int | None = None  # step of the checkpoint that the last attempt went on from
    role: str = "grid"  # grid, probe, seed, lr_check or rerun
    of: str | None = None  # key of the experiment that it stands beside
    parent: str | None = None  # key of the experiment at whose trunk it began; None: from scratch
    parent_step: int = 0  # steps that were taken over
    tokens_executed: int | None = None  # D without the trunk's, counted in the worker; None: all of it
    flops_executed: float | None = None
    seconds_executed: float | None = None
    deaths: int = 0  # starts, among `attempts`, that ended because the worker or node died
    workers: int = 1  # that trained it together


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why one experiment has no result."""

    key: str
    status: FailureKind
    error: str  # one line
    traceback: str
    tokens_seen: int
    seconds: float
    attempts: int
    host: str
    finished_at: float
    deaths: int = 0  # starts, among `attempts`, that ended because the worker or node died


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a running experiment is."""

    key: str
    tokens_seen: int
    tokens: int
    train_loss: float | None
    host: str
    pid: int
    updated_at: float
    started_at: float | None = None  # of this attempt, seconds since the epoch
    attempt: int = 1
    lr: float | None = None  # of the last step that is known
    grad_norm: float | None = None  # before clipping
    tokens_per_second: float | None = None  # of training alone, since the sign of life before
    mfu: float | None = None  # at that speed
    machine: Mapping[str, Any] | None = None  # a reading of its node, with its own GPUs (hardware.py)
    others: Sequence[Mapping[str, Any]] | None = None  # the same of its other workers, where it has several

    @property
    def seconds(self) -> float | None:
        """How long this attempt has run; never negative, whatever the clocks say."""
        return None if self.started_at is None else max(0.0, self.updated_at - self.started_at)


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line of an experiment's log."""

    key: str
    at: float  # seconds since the epoch
    host: str
    aloud: bool  # whether its owner should hear of it at once
    words: str


Record = TypeVar("Record", Result, Failure, Progress)


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """The record in a file; None where there is none that can be read."""
    content = read_json(path)
    if content is None or content.get("schema_version") != SCHEMA_VERSION:
        return None
    try:
        return value_of(kind, content)
    except KeyError:
        return None
