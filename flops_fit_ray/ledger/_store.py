"""The records of one sweep directory: written whole, read without waiting for anybody."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from flops_fit_ray.errors import StorageError
from flops_fit_ray.ledger._ends import End, note_ends, read_ends
from flops_fit_ray.ledger._records import STALE_SECONDS, Event, ExperimentResult, Failure, Progress
from flops_fit_ray.ledger._table import is_curve
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.planning import Experiment, Observation, read_experiment
from flops_fit_ray.planning.code_facts import CodeFacts
from flops_fit_ray.storage.atomic import (
    append_line,
    is_missing,
    read_file,
    set_aside,
    storage_error,
    whole_file,
    write_json,
)
from flops_fit_ray.storage.codec import Record, read_value, value_of
from flops_fit_ray.storage.lock import exclusive, hostname
from flops_fit_ray.storage.paths import SCHEMA_VERSION, SweepPaths
from flops_fit_ray.storage.storage_path import is_remote, is_taken

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_Answer = TypeVar("_Answer")
REQUESTS_AT_ONCE = 32  # to an object store


@dataclass(frozen=True, kw_only=True)
class _EventLine(Record):
    at: float
    host: str
    aloud: bool
    words: str


def observations(outcomes: Iterable[ExperimentResult | Failure]) -> dict[str, Observation]:
    """Return what planning must know of outcomes, by key."""
    return {
        o.key: Observation(loss=o.loss)
        if isinstance(o, ExperimentResult)
        else Observation(loss=None, diverged=o.status == "diverged")
        for o in outcomes
    }


class Ledger:
    """Results, failures, attempts and progress of one sweep directory."""

    def __init__(self, paths: SweepPaths) -> None:
        self.paths = paths

    def result(self, key: str) -> ExperimentResult | None:
        """Return the recorded result, or None."""
        found = read_value(ExperimentResult, self.paths.result(key))
        return found if found is not None and found.key == key else None  # one of another experiment is none of this

    def failure(self, key: str) -> Failure | None:
        """Return the recorded failure, or None."""
        found = read_value(Failure, self.paths.failure(key))
        return found if found is not None and found.key == key else None

    def has_outcome_file(self, key: str) -> bool:
        """Tell whether anything has the name of an experiment's result or failure."""
        return is_taken(self.paths.result(key)) or is_taken(self.paths.failure(key))

    def is_damaged(self, key: str) -> bool:
        """Tell whether an experiment has ended, by what was noted or a file of that name, and has no outcome."""
        return (key in self.noted_ends or self.has_outcome_file(key)) and self.outcome(key) is None

    def damaged(self, keys: Iterable[str]) -> set[str]:
        """Return those of `keys` that are damaged."""
        suspects = (self.paths.begun_keys() | self.noted_ends.keys()) & set(keys)
        return {key for key, damaged in zip(suspects, self._map(self.is_damaged, suspects), strict=True) if damaged}

    @cached_property
    def noted_ends(self) -> dict[str, End]:
        """Ends of experiments as they were seen, by key, whatever became of what was recorded of them since."""
        return read_ends(self.paths)

    def note_ends(self, ends: Mapping[str, End | None]) -> None:
        """Note how experiments ended, None for one that is open again. Only for the one writer of this directory."""
        note_ends(self.paths, self.noted_ends, ends)

    def outcome(self, key: str) -> ExperimentResult | Failure | None:
        """Return the result or failure of an experiment, or None while it is open; a result outranks a failure."""
        return self.result(key) or self.failure(key)

    def finished(self, keys: Iterable[str]) -> set[str]:
        """Return those of `keys` that have an outcome."""
        return {key for key in keys if self.outcome(key) is not None}

    def progress(self, key: str) -> Progress | None:
        """Return the last progress report of a running experiment, or None where it is stale.

        One from the future is none either: it would look alive for as long as the clocks differ.
        """
        progress = read_value(Progress, self.paths.progress(key))
        stale = progress is None or abs(time.time() - progress.updated_at) > STALE_SECONDS
        return None if stale else progress

    def record_result(self, result: ExperimentResult) -> ExperimentResult:
        """Record a result. If there is one already, that one stays and is returned."""
        path = self.paths.result(result.key)
        there = is_taken(path)
        recorded = self.result(result.key)
        if recorded is not None:
            return recorded
        # Torn or foreign; what has come since may be the result of another worker
        if there and (aside := set_aside(path)) is not None:
            self.record_event(result.key, f"its result could not be read: kept as {aside.name}", level="warning")
        write_json(path, {"schema_version": SCHEMA_VERSION, **asdict(result)}, once=True, sealed=True)
        self._keep_damaged_failure(result.key)
        for obsolete in (self.paths.failure(result.key), self.paths.progress(result.key)):
            with contextlib.suppress(OSError):
                obsolete.unlink(missing_ok=True)
        return self.result(result.key) or result

    def record_failure(self, failure: Failure) -> None:
        """Record why an experiment ended without a result; a later attempt may replace it."""
        self._keep_damaged_failure(failure.key)
        write_json(self.paths.failure(failure.key), {"schema_version": SCHEMA_VERSION, **asdict(failure)}, sealed=True)
        with contextlib.suppress(OSError):
            self.paths.progress(failure.key).unlink(missing_ok=True)

    def _keep_damaged_failure(self, key: str) -> None:
        path = self.paths.failure(key)
        if is_taken(path) and self.failure(key) is None and (aside := set_aside(path)) is not None:
            self.record_event(key, f"its failure could not be read: kept as {aside.name}", level="warning")

    def retry(self, key: str) -> None:
        """Put a failure aside, so that its experiment is open again; the record of it stays among the attempts.

        Raises:
            StorageError: the directory cannot be written.
        """
        aside = self.paths.new_past_failure(key, self.num_attempts(key))
        self.note_ends({key: None})
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            self.paths.failure(key).rename(aside)
        except OSError as e:
            raise storage_error(aside, "written", e) from e

    def record_planned(self, experiment: Experiment) -> None:
        """Write an experiment for its worker to read."""
        if read_experiment(self.paths.planned(experiment.key)) != experiment:
            content = {"schema_version": SCHEMA_VERSION, **experiment.to_json()}
            write_json(self.paths.planned(experiment.key), content, sealed=True, durable=False)

    def planned(self, key: str) -> Experiment:
        """Return the experiment as it was handed out.

        Raises:
            StorageError: its file cannot be read.
        """
        experiment = read_experiment(self.paths.planned(key))
        if experiment is None or experiment.key != key:
            raise StorageError(f"{self.paths.planned(key)}: cannot be read; the same command writes it again")
        return experiment

    def observed(self, keys: Iterable[str]) -> dict[str, Observation]:
        """Return what planning must know of finished experiments, by key."""
        return observations(outcome for key in keys if (outcome := self.outcome(key)) is not None)

    def record_progress(self, progress: Progress) -> None:
        """Record the progress of a running experiment."""
        write_json(
            self.paths.progress(progress.key), {"schema_version": SCHEMA_VERSION, **asdict(progress)}, durable=False
        )

    def record_cluster(self, cluster: Cluster) -> None:
        """Record the machines that the sweep runs on from now on."""
        write_json(self.paths.cluster, {"schema_version": SCHEMA_VERSION, **asdict(cluster)}, sealed=True)

    def cluster(self) -> Cluster | None:
        """Return the machines that it runs on, or ran on last; None where they are not known."""
        return read_value(Cluster, self.paths.cluster)

    def record_code(self, code: CodeFacts) -> None:
        """Record the code that experiments are trained by from now on.

        Raises:
            StorageError: the directory cannot be written.
        """
        if self.code(code.digest) is None:
            content = {"schema_version": SCHEMA_VERSION, **asdict(code)}
            write_json(self.paths.code(code.digest), content, sealed=True)

    def code(self, digest: str) -> CodeFacts | None:
        """Return the code of this digest; None where it cannot be read."""
        return read_value(CodeFacts, self.paths.code(digest))

    def record_event(self, key: str, message: str, *, level: Literal["info", "warning"]) -> None:
        """Add a line to an experiment's log. A line that cannot be written is no reason to stop."""
        event = Event(key=key, at=time.time(), host=hostname(), level=level, message=message)
        line = json.dumps({name: value for name, value in event.to_json().items() if name != "key"})
        path = self.paths.events(key)
        with contextlib.suppress(OSError):
            append_line(path, line)

    def events(self, key: str) -> list[Event]:
        """Return the log of an experiment, oldest first; a torn line is left out."""
        return self.events_since(key, 0)[0]

    def events_since(self, key: str, position: int) -> tuple[list[Event], int]:
        """Return the lines of a log after `position` bytes, and the position after them."""
        try:
            content = read_file(self.paths.events(key))
        except (OSError, MemoryError):
            return [], position
        position = position if position <= len(content) else 0  # a log that was made anew
        content = content[position:]
        whole = content[: content.rfind(b"\n") + 1]  # the rest is being written
        found = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                said = value_of(_EventLine, line)
                level: Literal["info", "warning"] = "warning" if said.aloud else "info"
                found.append(Event(key=key, at=said.at, host=said.host, level=level, message=said.words))
        return found, position + len(whole)

    def record_curve(self, key: str, points: Sequence[Mapping[str, Any]]) -> None:
        """Write the curve of an experiment, one row per point."""
        import pyarrow
        from pyarrow import parquet

        with whole_file(self.paths.curve(key)) as file:
            rows = [{name: None if value != value else value for name, value in point.items()} for point in points]
            # NaN is no number: nothing stands there
            parquet.write_table(pyarrow.Table.from_pylist(rows), file, write_page_checksum=True)

    def curve(self, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return tokens and training loss along an experiment, each (points,); empty without a readable curve.

        Raises:
            StorageError: it cannot be read now, and may well be whole.
        """
        import numpy as np

        table = self._curve_table(key, ["tokens", "train_loss"])
        try:
            frame = None if table is None else table.to_pandas()
            if frame is not None:
                return frame["tokens"].to_numpy(dtype=np.float64), frame["train_loss"].to_numpy(dtype=np.float64)
        except (ValueError, TypeError, KeyError):  # another table than ours
            pass
        return np.empty(0), np.empty(0)

    def curve_rows(self, key: str) -> list[dict[str, Any]]:
        """Return the curve of an experiment, a mapping per `CurvePoint`; empty where there is none.

        Raises:
            StorageError: as `curve`.
        """
        table = self._curve_table(key)
        return [] if table is None else list(table.to_pylist())

    def _curve_table(self, key: str, columns: list[str] | None = None) -> Any:
        """Return the table of a curve; None where there is none, or it is damaged."""
        from pyarrow import BufferReader, parquet

        path = self.paths.curve(key)
        try:
            content = read_file(path)
        except OSError as e:
            if is_missing(path, e):
                return None
            raise storage_error(path, "read", e) from e
        try:
            file = parquet.ParquetFile(BufferReader(content), page_checksum_verification=True)
            if not is_curve(file):
                return None
            return file.read(columns, use_threads=False)  # a third of the time of `read_table`
        except (OSError, ValueError, KeyError, MemoryError):
            return None

    def begin_attempt(self, key: str) -> int:
        """Note that an experiment starts, and return which attempt this is, from 1."""
        number = self.num_attempts(key) + 1
        note = {"schema_version": SCHEMA_VERSION, "started_at": time.time(), "host": hostname(), "pid": os.getpid()}
        write_json(self.paths.attempt(key, number), note)
        return number

    def num_attempts(self, key: str) -> int:
        """Return the number of starts of an experiment."""
        return self.paths.num_attempts(key)

    def record_death(self, key: str) -> None:
        """Note that the worker or node of the last start died: nobody's fault, and counted apart."""
        note = {"schema_version": SCHEMA_VERSION, "noticed_at": time.time()}
        write_json(self.paths.new_death(key, self.num_attempts(key)), note)

    def num_deaths(self, key: str) -> int:
        """Return the number of starts that ended because the worker or node died, those before an attempt included."""
        return self.paths.num_deaths(key)

    def num_early_deaths(self, key: str) -> int:
        """Return the number of deaths of workers before the experiment had begun in them."""
        return self.paths.num_early_deaths(key)

    def outcomes(self, keys: Iterable[str]) -> list[ExperimentResult | Failure]:
        """Return the results and failures among `keys`, in that order; a result outranks a failure."""
        begun = self.paths.begun_keys()
        found = self._map(self.outcome, [key for key in keys if key in begun])
        return [outcome for outcome in found if outcome is not None]

    def _map(self, ask: Callable[[str], _Answer], keys: Collection[str]) -> list[_Answer]:
        """Return an answer for each experiment; in an object store they are asked at once, which else takes minutes."""
        if not is_remote(self.paths.root):
            return list(map(ask, keys))
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            return list(pool.map(ask, keys))

    def results(self, keys: Iterable[str]) -> list[ExperimentResult]:
        """Return the recorded results among `keys`, in that order."""
        return [r for r in map(self.result, keys) if r is not None]

    def writer(self) -> contextlib.AbstractContextManager[str | None]:
        """Hold the lock of this directory, as its one writer. Yields its last owner, if it exited without releasing it.

        Raises:
            DirectoryError: another process is, or the directory cannot be written.
        """
        return exclusive(self.paths)
