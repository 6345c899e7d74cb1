"""Records of the ledger: results, failures, progress and events of experiments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from flops_fit_ray.ledger.hardware import Machine
from flops_fit_ray.planning.experiment import ExperimentFacts
from flops_fit_ray.planning.training_metrics import TrainingMetrics
from flops_fit_ray.storage.codec import (
    Amount,
    Column,
    Count,
    PositiveFloat,
    PositiveInt,
    Record,
    Seed,
    Timestamp,
    columns_of,
)

FailureKind = Literal["diverged", "out_of_memory", "stalled", "failed", "infrastructure"]
STALE_SECONDS = 60.0  # progress is written about once a second, unless a step takes longer
RETRY_ON_NEXT_RUN: frozenset[str] = frozenset({"out_of_memory", "stalled", "failed", "infrastructure"})
# a divergence would only repeat


@dataclass(frozen=True, kw_only=True)
class AttemptFacts(Record):
    """Host, time and number of starts of an attempt that ended."""

    attempts: Annotated[Count, Column(160)]
    deaths: Annotated[Count, Column(170)] = 0  # starts, among `attempts`, that ended because the worker or node died
    host: str
    finished_at: Timestamp


@dataclass(frozen=True, kw_only=True)
class ExperimentResult(AttemptFacts, TrainingMetrics, ExperimentFacts):
    """One completed experiment: planned facts, measurements, and its attempts."""

    sealed_since: ClassVar[str] = "deaths"

    flops: Annotated[PositiveFloat, Column(80, tracked=True)]  # spent: tokens_seen × FLOPs per token
    flops_executed: Annotated[Amount | None, Column(330)] = None  # without the trunk's
    lr: Annotated[Amount, Column(190)]
    seed: Annotated[Seed, Column(150)]
    versions: Mapping[str, str]
    code: str | None = None  # digest of the user's code; None in results of earlier versions
    status: Annotated[Literal["completed"], Column(130)] = "completed"

    @property
    def measured(self) -> dict[str, float]:
        """The measured values for other programs, all of them floats: FLOPs exceed the 64-bit integers of some."""
        tracked = (name for name, column in columns_of(ExperimentResult).items() if column.tracked)
        found = {**{name: getattr(self, name) for name in tracked}, **self.metrics}
        return {name: float(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Failure(AttemptFacts):
    """The end of an experiment without a result."""

    key: str
    status: FailureKind
    error: Annotated[str, Column(340)]  # one line
    traceback: str
    tokens_seen: Count
    seconds: Amount

    @property
    def error_line(self) -> str:
        """The first line of the error; empty where there is none."""
        return self.error.partition("\n")[0]


@dataclass(frozen=True, kw_only=True)
class Progress(Record):
    """Progress of a running experiment."""

    key: str
    tokens_seen: Count
    tokens: PositiveInt
    train_loss: float | None
    host: str
    pid: Count
    updated_at: Timestamp
    started_at: Timestamp | None = None  # of this attempt
    attempt: Count = 1
    lr: Amount | None = None  # of the last step that is known
    grad_norm: float | None = None  # before clipping
    tokens_per_second: Amount | None = None  # of training alone, since the sign of life before
    mfu: Amount | None = None  # at that speed
    machine: Machine | None = None  # a reading of its node, with its own GPUs
    others: tuple[Machine, ...] | None = None  # the same of its other workers, where it has several

    @property
    def seconds(self) -> float | None:
        """Seconds that this attempt has run; never negative, whatever the clocks say."""
        return None if self.started_at is None else max(0.0, self.updated_at - self.started_at)


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line of an experiment's log."""

    key: str
    at: float  # seconds since the epoch
    host: str
    level: Literal["info", "warning"]  # a warning is shown to the user at once
    message: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values under the keys of events.jsonl and the REST API."""
        return {
            "key": self.key,
            "at": self.at,
            "host": self.host,
            "aloud": self.level == "warning",
            "words": self.message,
        }
