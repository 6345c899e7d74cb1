"""Cache of sweep directories, which reads again only files that can have changed.

A result never changes, so of 10,000 experiments only those are read that have started and have no result.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flops_fit_ray.console.live_state import NodeUse, flops_under_way, measured_rates, node_uses, seconds_left
from flops_fit_ray.errors import DirectoryError, FlopsFitError
from flops_fit_ray.ledger import ExperimentResult, Failure, Ledger, Progress
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.planning import Experiment
from flops_fit_ray.service.http import names
from flops_fit_ray.service.http.redact import redacted
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.storage.opening import follow_no_links_in
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path, names_in
from flops_fit_ray.sweep.directory import Sweep, open_sweep

FRESH_SECONDS = 1.0  # for which a snapshot is returned without reading again
MAX_CACHED = 64  # sweeps
MAX_WAIT_SECONDS = 5.0  # of a request for a directory that is being read
SLOW_SECONDS = 0.5  # from which on a directory is read again less often, so that others are not slowed by it:
READ_SHARE = 0.25  # of the time
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One sweep directory at one moment. `version` grows with every outcome and with the plan."""

    sweep: Sweep
    version: str
    flops_planned: float
    rows: tuple[Row, ...]  # one per planned experiment, in the plan's order
    kept: dict[Any, list[Row]] = field(default_factory=dict)  # filtered and sorted rows, by the request

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """Numbers of experiments by status, without zeros."""
        return {status: number for status, number in self.sweep.counts.items() if number}

    @functools.cached_property
    def by_key(self) -> Mapping[str, Row]:
        """Rows by the keys of their experiments."""
        return {row["key"]: row for row in self.rows}

    @functools.cached_property
    def experiments(self) -> Mapping[str, Experiment]:
        """Planned experiments by their keys."""
        return {e.key: e for e in self.sweep.plan.experiments}

    @functools.cached_property
    def facts(self) -> Mapping[str, Any]:
        """Progress of the sweep, for its view."""
        sweep, planned = self.sweep, self.flops_planned
        share = min(1.0, self.flops_done / planned) if planned else 0.0
        return {
            "version": self.version,
            "counts": self.counts,
            "total": len(sweep.plan.experiments),
            "final": sweep.plan.final,
            "flops_planned": planned,
            "flops_done": self.flops_done,
            "share": 1.0 if sweep.complete else share,
            "seconds_left": self.seconds_left,
            "device_seconds": sweep.device_seconds,
            "deaths": sweep.num_deaths,
            "started_at": self.started_at,
            "last_at": max(self.newest, max((p.updated_at for _, p in sweep.running), default=0.0)) or None,
            "budgets": sorted({e.budget for e in sweep.plan.experiments}),
            "results_sha256": sweep.results_sha256 if sweep.complete else None,
        }

    @functools.cached_property
    def newest(self) -> float:
        """Time of the last outcome, in seconds since the epoch; 0 before the first."""
        return max((row["finished_at"] for row in self.rows if row["finished_at"] is not None), default=0.0)

    @functools.cached_property
    def started_at(self) -> float | None:
        """Time at which its first experiment began to train, as far as is known, in seconds since the epoch."""
        ended = (row["finished_at"] - row["seconds"] for row in self.rows if row["finished_at"] and row["seconds"])
        began = (p.started_at for _, p in self.sweep.running if p.started_at is not None)
        return min((*ended, *began), default=None)

    @functools.cached_property
    def flops_done(self) -> float:
        """FLOPs spent on results and on running experiments."""
        return self.sweep.flops_spent + flops_under_way(self.sweep.running)

    @functools.cached_property
    def cluster(self) -> Cluster | None:
        """Cluster of the present or the last run."""
        return Ledger(self.sweep.paths).cluster()

    @functools.cached_property
    def nodes(self) -> tuple[NodeUse, ...]:
        """Machines and GPUs, with the experiments that train on them."""
        return node_uses(() if self.cluster is None else self.cluster.machines, self.sweep.running)

    @functools.cached_property
    def seconds_left(self) -> float | None:
        """Seconds until the last planned experiment ends, at the measured speeds; None if nothing runs."""
        if not self.sweep.running:
            return None
        finished = {outcome.key for outcome in self.sweep.outcomes}
        rates = measured_rates(self.sweep.outcomes, self.sweep.running)
        slots = 1 if self.cluster is None else self.cluster.slots
        return seconds_left(self.sweep.plan, finished, self.sweep.running, rates, slots)


@dataclass(eq=False)
class _Read:
    """One reading of a directory, in a thread of its own."""

    began: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    next_at: float = 0.0  # time.monotonic() before which no other one begins


class SweepCache:
    """Cache of one sweep directory, read again when asked more than `FRESH_SECONDS` after the last time."""

    def __init__(self, paths: SweepPaths) -> None:
        self._paths, self._ledger = paths, Ledger(paths)
        follow_no_links_in(local_path(paths.root))
        self._lock = threading.Lock()
        self._under_way: _Read | None = None
        self._plan_stat: tuple[int, int, int] | None = None
        self._opened: Sweep | None = None
        self._outcomes: dict[str, ExperimentResult | Failure] = {}
        self._places: dict[str, int] = {}  # of experiments in the plan
        self._rows: list[Row] = []  # in the plan's order
        self._marks: dict[str, Any] = {}  # what each row was made from
        self._touched: set[str] = set()  # keys of rows to make again
        self._flops_planned = 0.0
        self._unfinished: set[str] = set()  # keys without a result; the others never change again
        self._changes = 0
        self._signature: Any = None
        self._reading: Snapshot | None = None
        self._read_at = -FRESH_SECONDS

    @property
    def fresh(self) -> Snapshot | None:
        """Cached snapshot, if it is new enough."""
        return self._reading if time.monotonic() - self._read_at < FRESH_SECONDS else None

    def now(self) -> Snapshot:
        """Return a snapshot of the directory; the last one where reading takes longer than `MAX_WAIT_SECONDS`.

        Raises:
            DirectoryError: it is no sweep directory, its plan cannot be read, or the first time takes too long.
        """
        with self._lock:
            found, read = self.fresh, self._under_way
            if found is not None:
                return found
            if read is None or (read.done.is_set() and time.monotonic() >= read.next_at):
                read = self._under_way = _Read()
                threading.Thread(target=self._carry_out, args=(read,), daemon=True).start()
        if not read.done.wait(max(0.0, read.began + MAX_WAIT_SECONDS - time.monotonic())):
            if self._reading is not None:
                return self._reading
            name = self._paths.root.name
            raise DirectoryError(f"{name}: takes more than {MAX_WAIT_SECONDS:g} s to read; it goes on, so ask again")
        if read.error is not None:
            raise read.error
        assert self._reading is not None  # a read that is done has one or the other
        return self._reading

    def _carry_out(self, read: _Read) -> None:
        """Read the directory in a thread of its own, so that one that does not answer holds up nobody else."""
        try:
            found = self._read()
            self._reading, self._read_at = found, time.monotonic()
        except Exception as e:  # noqa: BLE001 - whoever waits for it raises it
            read.error = e
        took = time.monotonic() - read.began
        read.next_at = time.monotonic() + (took / READ_SHARE if took > SLOW_SECONDS else 0.0)
        read.done.set()

    def _read(self) -> Snapshot:
        sweep = self._plan()
        begun = self._paths.begun_keys()
        alive: dict[str, Progress] = {}
        for key in begun & self._unfinished:
            known = self._outcomes.get(key)
            self._note(key, known, self._ledger.outcome(key))
            if key not in self._outcomes and (progress := self._ledger.progress(key)) is not None:
                alive[key] = progress
        signature = (self._changes, tuple(sorted((k, p.updated_at) for k, p in alive.items())))
        if self._reading is not None and signature == self._signature:
            return self._reading  # nothing has happened
        self._signature = signature
        experiments, outcomes = sweep.plan.experiments, self._outcomes
        now = Sweep(
            paths=self._paths,
            spec=sweep.spec,
            plan=sweep.plan,
            results=tuple(o for e in experiments if isinstance(o := outcomes.get(e.key), ExperimentResult)),
            failures=tuple(
                o for at in self._open_places() if isinstance(o := outcomes.get(experiments[at].key), Failure)
            ),
            command=sweep.command,
            base=sweep.base,
        )
        vars(now)["running"] = tuple((e, alive[e.key]) for e in experiments if e.key in alive)  # read already
        self._renew_rows(now, alive)
        stamp = self._plan_stat[1] if self._plan_stat else 0
        return Snapshot(now, f"{stamp:x}-{self._changes}", self._flops_planned, tuple(self._rows))

    def _open_places(self) -> list[int]:
        return sorted(self._places[key] for key in self._unfinished)

    def _renew_rows(self, now: Sweep, alive: Mapping[str, Progress]) -> None:
        """Make the rows again whose experiment has changed."""
        open_ones = {e.key: "waiting" for e in now.waiting} | {e.key: "damaged" for e in now.damaged}
        for key in self._touched | self._unfinished:
            outcome, progress, at = self._outcomes.get(key), alive.get(key), self._places[key]
            idle = str(outcome.status) if outcome is not None else open_ones.get(key, "planned")
            mark = (idle, outcome, None if progress is None else progress.updated_at)
            if self._marks.get(key) != mark:
                self._marks[key] = mark
                self._rows[at] = row_of(now.plan.experiments[at], outcome, progress, idle)
        self._touched.clear()

    def _plan(self) -> Sweep:
        try:
            found = local_path(self._paths.plan).stat()
        except OSError as e:
            raise DirectoryError(f"{self._paths.root.name}: has no plan yet") from e
        stat = (found.st_ino, found.st_mtime_ns, found.st_size)
        if self._opened is None or stat != self._plan_stat:
            self._opened = open_sweep(self._paths.root)
            self._plan_stat = stat
            experiments = self._opened.plan.experiments
            self._places = {e.key: at for at, e in enumerate(experiments)}
            self._flops_planned = self._opened.plan.flops
            self._outcomes |= {outcome.key: outcome for outcome in self._opened.outcomes}
            done = {key for key, outcome in self._outcomes.items() if isinstance(outcome, ExperimentResult)}
            self._unfinished = self._places.keys() - done
            self._touched, self._marks = set(self._places), {}
            self._rows = [{} for _ in experiments]
            self._changes += 1
        return self._opened

    def _note(
        self, key: str, known: ExperimentResult | Failure | None, found: ExperimentResult | Failure | None
    ) -> None:
        if found == known:
            return
        self._changes += 1
        self._touched.add(key)
        if found is None:  # a failure that was put aside: it is tried again
            del self._outcomes[key]
        else:
            self._outcomes[key] = found
            if isinstance(found, ExperimentResult):
                self._unfinished.discard(key)


def row_of(e: Experiment, outcome: ExperimentResult | Failure | None, progress: Progress | None, idle: str) -> Row:
    """Return one experiment as a row of a table; unknown values are None."""
    share = 1.0 if isinstance(outcome, ExperimentResult) else None
    if outcome is None and progress is not None and e.tokens:
        share = progress.tokens_seen / e.tokens
    source: Any = outcome if outcome is not None else progress
    failure = outcome if isinstance(outcome, Failure) else None
    speed = getattr(source, "tokens_per_second", None)
    steps_per_second, samples_per_second = e.rates(speed)
    return {
        "key": e.key,
        "budget": e.budget,
        "size": e.size,
        "params": e.params,
        "tokens": e.tokens,
        "role": e.role,
        "seed": e.recipe.seed,
        "lr": e.recipe.lr,
        "status": "running" if outcome is None and progress is not None else idle,
        "share": share,
        "loss": getattr(outcome, "loss", None),
        "loss_stderr": getattr(outcome, "loss_stderr", None),
        "train_loss": getattr(source, "train_loss", None),
        "seconds": getattr(source, "seconds", None),
        "tokens_per_second": speed,
        "steps_per_second": steps_per_second,
        "samples_per_second": samples_per_second,
        "mfu": getattr(source, "mfu", None),
        "attempts": getattr(outcome, "attempts", None) or getattr(progress, "attempt", None),
        "deaths": getattr(outcome, "deaths", None),
        "host": getattr(source, "host", None),
        "finished_at": getattr(outcome, "finished_at", None),
        "error": None if failure is None else redacted(failure.error_line),
    }


class SweepCaches:
    """Caches of the sweeps below a root, at most `MAX_CACHED`."""

    def __init__(self, paths: ServicePaths) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, SweepCache] = OrderedDict()

    def names(self) -> list[str]:
        """Return the names of the sweep directories, sorted."""
        found = []
        for name in names_in(self._paths.root):
            place = Path(self._paths.root, name)
            if not place.is_symlink() and names.is_sweep(name) and (place / self._paths.sweep(name).plan.name).exists():
                found.append(name)
        return sorted(found)

    def of(self, name: str) -> SweepCache:
        """Return the cache of one sweep.

        Raises:
            RequestError: this cannot be the name of a sweep.
        """
        paths = names.sweep_directory(self._paths, name)
        with self._lock:
            cache = self._kept.pop(name, None) or SweepCache(paths)
            self._kept[name] = cache
            while len(self._kept) > MAX_CACHED:
                self._kept.popitem(last=False)
        return cache

    def forget(self, name: str) -> None:
        """Forget a sweep, whose directory is another one from now on."""
        with self._lock:
            self._kept.pop(name, None)

    def watched(self) -> list[str]:
        """Return the names of the sweeps that were read a moment ago, because somebody looks at them."""
        with self._lock:
            return [name for name, cache in self._kept.items() if cache.fresh is not None]

    def now(self, name: str) -> Snapshot | None:
        """Return a snapshot of one sweep; None if it has no plan, or one that cannot be read.

        Raises:
            RequestError: this cannot be the name of a sweep.
        """
        try:
            return self.of(name).now()
        except FlopsFitError:
            return None
