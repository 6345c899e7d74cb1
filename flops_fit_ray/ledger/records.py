"""What the ledger holds: one record per outcome, and how one is read from its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flops_fit_ray.ledger.hardware import Machine
from flops_fit_ray.storage.codec import Amount, Count, PositiveFloat, PositiveInt, Record

FailureKind = Literal["diverged", "out_of_memory", "stalled", "failed", "infrastructure"]
STALE_SECONDS = 60.0  # progress is written about once a second, unless a step takes longer
RETRY_ON_NEXT_RUN: frozenset[str] = frozenset({"out_of_memory", "stalled", "failed", "infrastructure"})
# a divergence would only repeat


@dataclass(frozen=True, kw_only=True)
class Result(Record):
    """One completed experiment."""

    key: str
    budget: PositiveFloat  # C, FLOPs asked for
    size: int | str
    params: PositiveInt  # N
    params_total: PositiveInt
    tokens: PositiveInt  # D, planned
    tokens_seen: PositiveInt  # D, counted in the worker
    flops: PositiveFloat  # spent: tokens_seen × FLOPs per token
    loss: float  # nats per token unless the loss says otherwise; `loss_kind` says of which data
    loss_stderr: Amount | None  # over held-out batches; None for a single batch
    train_loss: float  # mean over the last 5 % of the steps
    lr: Amount
    steps: PositiveInt
    seed: int
    seconds: Amount  # training and evaluation
    attempts: Count
    device: str
    host: str
    versions: Mapping[str, str]
    finished_at: float  # seconds since the epoch
    status: Literal["completed"] = "completed"
    loss_kind: str = "held-out"  # or "training, smoothed" where there is no held-out data
    metrics: Mapping[str, float] = field(default_factory=dict)  # on the held-out data, by name
    precision: str = "fp32"  # what ran
    attention: str = "torch"  # the kernel that ran
    micro_batch_size: PositiveInt | None = None  # samples in one forward and backward, at the end
    tokens_per_second: Amount | None = None  # of training alone
    flops_per_second: Amount | None = None
    mfu: Amount | None = None  # share of `peak_source`
    peak_source: str = ""
    peak_memory_bytes: Count | None = None
    data_wait_share: Amount | None = None  # of the training time
    resumed_from: Count | None = None  # step of the checkpoint that the last attempt went on from
    role: str = "grid"  # grid, probe, seed, lr_check or rerun
    of: str | None = None  # key of the experiment that it stands beside
    parent: str | None = None  # key of the experiment at whose trunk it began; None: from scratch
    parent_step: Count = 0  # steps that were taken over
    tokens_executed: Count | None = None  # D without the trunk's, counted in the worker; None: all of it
    flops_executed: Amount | None = None
    seconds_executed: Amount | None = None
    deaths: Count = 0  # starts, among `attempts`, that ended because the worker or node died
    workers: PositiveInt = 1  # that trained it together


@dataclass(frozen=True, kw_only=True)
class Failure(Record):
    """Why one experiment has no result."""

    key: str
    status: FailureKind
    error: str  # one line
    traceback: str
    tokens_seen: Count
    seconds: Amount
    attempts: Count
    host: str
    finished_at: float
    deaths: Count = 0  # starts, among `attempts`, that ended because the worker or node died


@dataclass(frozen=True, kw_only=True)
class Progress(Record):
    """How far a running experiment is."""

    key: str
    tokens_seen: Count
    tokens: PositiveInt
    train_loss: float | None
    host: str
    pid: Count
    updated_at: float
    started_at: float | None = None  # of this attempt, seconds since the epoch
    attempt: Count = 1
    lr: Amount | None = None  # of the last step that is known
    grad_norm: float | None = None  # before clipping
    tokens_per_second: Amount | None = None  # of training alone, since the sign of life before
    mfu: Amount | None = None  # at that speed
    machine: Machine | None = None  # a reading of its node, with its own GPUs
    others: tuple[Machine, ...] | None = None  # the same of its other workers, where it has several

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
