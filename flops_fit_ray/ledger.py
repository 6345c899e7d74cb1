"""The truth about a sweep: one file per outcome, written whole, never changed once it is there.

A worker records its result here before Ray hears of it; the driver runs what the ledger lacks. Reading never executes
anything, never blocks, and takes a torn file for a missing one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from flops_fit_ray.errors import DirectoryError, StorageError
from flops_fit_ray.layout import SCHEMA_VERSION, SweepPaths, read_json, whole_file, write_json
from flops_fit_ray.planning import Experiment, Finding, experiment_from_json

if TYPE_CHECKING:
    import pandas as pd

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


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line of an experiment's log."""

    key: str
    at: float  # seconds since the epoch
    host: str
    aloud: bool  # whether its owner should hear of it at once
    words: str


_Record = TypeVar("_Record", Result, Failure, Progress)


class Ledger:
    """Results, failures, attempts and progress of one sweep directory."""

    def __init__(self, paths: SweepPaths) -> None:
        self.paths = paths

    def result(self, key: str) -> Result | None:
        """The recorded result, or None."""
        return _read(self.paths.result(key), Result)

    def failure(self, key: str) -> Failure | None:
        """The recorded failure, or None."""
        return _read(self.paths.failure(key), Failure)

    def outcome(self, key: str) -> Result | Failure | None:
        """How the experiment ended, or None while it is open; a result outranks a failure."""
        return self.result(key) or self.failure(key)

    def settled(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that have an outcome."""
        return {key for key in keys if self.outcome(key) is not None}

    def progress(self, key: str) -> Progress | None:
        """The last sign of life of a running experiment, or None where there was none for a while."""
        progress = _read(self.paths.progress(key), Progress)
        stale = progress is None or time.time() - progress.updated_at > STALE_SECONDS
        return None if stale else progress

    def record_result(self, result: Result) -> Result:
        """Record a result for ever. Where there is one already, that one stays and is returned."""
        recorded = self.result(result.key)
        if recorded is not None:
            return recorded
        path = self.paths.result(result.key)
        if path.exists():  # torn or foreign: kept aside, because nothing recorded is thrown away
            path.rename(path.with_name(f"{path.name}.unreadable-{time.time_ns()}"))
        write_json(path, {"schema_version": SCHEMA_VERSION, **asdict(result)})
        for obsolete in (self.paths.failure(result.key), self.paths.progress(result.key)):
            obsolete.unlink(missing_ok=True)
        return result

    def record_failure(self, failure: Failure) -> None:
        """Record why an experiment ended without a result; a later attempt may replace it."""
        write_json(self.paths.failure(failure.key), {"schema_version": SCHEMA_VERSION, **asdict(failure)})
        self.paths.progress(failure.key).unlink(missing_ok=True)

    def retry(self, key: str) -> None:
        """Put a failure aside, so that its experiment is open again; the record of it stays among the attempts."""
        aside = self.paths.past_failure(key, self.num_attempts(key))
        aside.parent.mkdir(parents=True, exist_ok=True)
        self.paths.failure(key).rename(aside)

    def record_planned(self, experiment: Experiment) -> None:
        """Hand out an experiment: what its worker reads, and what its record goes back to."""
        content = {"schema_version": SCHEMA_VERSION, **experiment.to_json()}
        if read_json(self.paths.planned(experiment.key)) != content:
            write_json(self.paths.planned(experiment.key), content)

    def planned(self, key: str) -> Experiment:
        """The experiment as it was handed out.

        Raises:
            StorageError: its file cannot be read.
        """
        content = read_json(self.paths.planned(key))
        if content is None:
            raise StorageError(f"{self.paths.planned(key)}: cannot be read; the same command writes it again")
        return experiment_from_json({name: v for name, v in content.items() if name != "schema_version"})

    def findings(self, keys: Iterable[str]) -> dict[str, Finding]:
        """What planning must know of those that are settled, by key."""
        found = {}
        for key in keys:
            outcome = self.outcome(key)
            if isinstance(outcome, Result):
                found[key] = Finding(loss=outcome.loss)
            elif outcome is not None:
                found[key] = Finding(loss=None, diverged=outcome.status == "diverged")
        return found

    def record_progress(self, progress: Progress) -> None:
        """Say that an experiment is alive."""
        write_json(self.paths.progress(progress.key), {"schema_version": SCHEMA_VERSION, **asdict(progress)})

    def record_event(self, key: str, words: str, *, aloud: bool) -> None:
        """Add a line to an experiment's log. A line that cannot be written is no reason to stop."""
        line = json.dumps({"at": time.time(), "host": hostname(), "aloud": aloud, "words": words})
        path = self.paths.events(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(line + "\n")

    def events(self, key: str) -> list[Event]:
        """The log of an experiment, oldest first; a torn line is left out."""
        return self.events_since(key, 0)[0]

    def events_since(self, key: str, position: int) -> tuple[list[Event], int]:
        """The lines of a log after `position` bytes, and where the next ones will begin."""
        try:
            with self.paths.events(key).open("rb") as file:
                file.seek(position)
                content = file.read()
        except OSError:
            return [], position
        whole = content[: content.rfind(b"\n") + 1]  # the rest is being written
        found = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                values = json.loads(line)
                found.append(Event(key=key, **{name: values[name] for name in ("at", "host", "aloud", "words")}))
        return found, position + len(whole)

    def record_curve(self, key: str, points: Sequence[Mapping[str, Any]]) -> None:
        """Write the curve of an experiment, one row per point."""
        import pandas as pd

        with whole_file(self.paths.curve(key)) as file:
            pd.DataFrame(list(points)).to_parquet(file, index=False)

    def curve(self, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Tokens and training loss along an experiment; empty where none was kept or it cannot be read."""
        import pandas as pd

        try:
            frame = pd.read_parquet(self.paths.curve(key), columns=["tokens", "train_loss"])
        except (OSError, ValueError, KeyError):
            return np.empty(0), np.empty(0)
        return frame["tokens"].to_numpy(dtype=np.float64), frame["train_loss"].to_numpy(dtype=np.float64)

    def begin_attempt(self, key: str) -> int:
        """Note that an experiment starts, and return which attempt this is, from 1."""
        number = self.num_attempts(key) + 1
        note = {"schema_version": SCHEMA_VERSION, "started_at": time.time(), "host": hostname(), "pid": os.getpid()}
        write_json(self.paths.attempt(key, number), note)
        return number

    def num_attempts(self, key: str) -> int:
        """How often the experiment was started."""
        return self.paths.num_attempts(key)

    def results(self, keys: Iterable[str]) -> list[Result]:
        """The recorded results among `keys`, in that order."""
        return [r for r in map(self.result, keys) if r is not None]

    def failures(self, keys: Iterable[str]) -> list[Failure]:
        """The recorded failures among `keys`, in that order; a result outranks a failure."""
        return [outcome for outcome in map(self.outcome, keys) if isinstance(outcome, Failure)]

    @contextlib.contextmanager
    def writer(self) -> Iterator[None]:
        """Be the one writer of this directory, or say who is.

        Raises:
            DirectoryError: another process is, or the directory cannot be written.
        """
        from filelock import FileLock, Timeout

        try:
            self.paths.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.paths.lock)
            lock.acquire(timeout=0)
        except Timeout as e:
            owner = read_json(self.paths.lock_owner) or {}
            raise DirectoryError(
                f"{self.paths.root}: process {owner.get('pid', '?')} on {owner.get('host', '?')} is writing here; "
                "wait for it, stop it, or choose another --output"
            ) from e
        except OSError as e:
            raise DirectoryError(f"{self.paths.root}: cannot be written: {e.strerror}; choose another --output") from e
        try:
            write_json(self.paths.lock_owner, {"host": hostname(), "pid": os.getpid(), "started_at": time.time()})
            yield
        finally:
            self.paths.lock_owner.unlink(missing_ok=True)
            lock.release()


def hostname() -> str:
    """This machine's name, as results and locks carry it."""
    return socket.gethostname()


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


def results_table(experiments: Sequence[Experiment], ledger: Ledger) -> pd.DataFrame:
    """One row per experiment of the plan, in its order, with `COLUMNS`; empty cells where nothing is known yet.

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
            row |= {"status": "running" if ledger.progress(e.key) else "planned"}
        metrics = {f"metric_{name}": value for name, value in (row.get("metrics") or {}).items()}
        rows.append({column: row.get(column) for column in COLUMNS} | metrics)
    names = [name for row in rows for name in row if name.startswith("metric_")]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *dict.fromkeys(names)])
    whole = ["params", "params_total", "tokens", "tokens_seen", "seed", "attempts", "steps"]
    whole += ["micro_batch_size", "peak_memory_bytes", "tokens_executed"]
    real = ["budget", "flops", "loss", "loss_stderr", "train_loss", "seconds", "lr", "flops_executed"]
    real += ["tokens_per_second", "flops_per_second", "mfu", "data_wait_share"]
    return frame.astype({**dict.fromkeys(whole, "Int64"), **dict.fromkeys(real, "float64")})


def _read(path: Path, kind: type[_Record]) -> _Record | None:
    content = read_json(path)
    names = {f.name for f in fields(kind)}
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if content is None or content.get("schema_version") != SCHEMA_VERSION or not needed <= content.keys():
        return None
    return kind(**{name: content[name] for name in names & content.keys()})
