"""Cache of sweep directories, which reads again only files that can have changed.

A result never changes, so of 10,000 experiments only those are read that have started and have no result.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flops_fit_ray.errors import DirectoryError, FlopsFitError
from flops_fit_ray.ledger import ExperimentResult, Failure, Ledger, Progress
from flops_fit_ray.service.http import names
from flops_fit_ray.service.http.request_error import RequestError, busy, not_found
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.service.state.snapshot import Row, Snapshot, row_of
from flops_fit_ray.storage.lock import living_owner
from flops_fit_ray.storage.opening import follow_no_links_in
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import Sweep, open_sweep

FRESH_SECONDS = 1.0  # for which a snapshot is returned without reading again
MAX_CACHED = 64  # sweeps
MAX_WAIT_SECONDS = 5.0  # of a request for a directory that is being read
SLOW_SECONDS = 0.5  # from which on a directory is read again less often, so that others are not slowed by it:
READ_SHARE = 0.25  # of the time


@dataclass(frozen=True, eq=False)
class Look:
    """State of a directory as it was seen last, which is all that requests see of one that does not answer."""

    has_plan: bool
    owner: str | None  # who writes it
    snapshot: Snapshot | None
    error: FlopsFitError | None  # why there is no snapshot


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
        self._look: Look | None = None
        self._read_at = -math.inf

    @property
    def fresh(self) -> Snapshot | None:
        """Cached snapshot, if it is new enough."""
        found = self._fresh
        return None if found is None else found.snapshot

    @property
    def _fresh(self) -> Look | None:
        found = self._look
        is_fresh = found is not None and found.snapshot is not None
        return found if is_fresh and time.monotonic() - self._read_at < FRESH_SECONDS else None

    @property
    def is_overdue(self) -> bool:
        """Tell whether the directory has not answered for `MAX_WAIT_SECONDS`: whoever touches it waits as long."""
        read = self._under_way
        return read is not None and not read.done.is_set() and time.monotonic() > read.began + MAX_WAIT_SECONDS

    def expire(self) -> None:
        """Let the next look read the directory."""
        with self._lock:
            self._read_at = -math.inf

    def now(self) -> Snapshot:
        """Return a snapshot of the directory; the last one where reading takes longer than `MAX_WAIT_SECONDS`.

        Raises:
            DirectoryError: it is no sweep directory, its plan cannot be read, or the first time takes too long.
            RequestError: it is a symbolic link.
        """
        found = self.look()
        if found.snapshot is None:
            raise found.error or DirectoryError(f"{self._paths.root.name}: has no plan yet")
        return found.snapshot

    def look(self) -> Look:
        """Look at the directory; the last look where it takes longer than `MAX_WAIT_SECONDS`.

        Raises:
            DirectoryError: the first time takes too long.
            RequestError: it is a symbolic link.
        """
        with self._lock:
            found, read = self._fresh, self._under_way
            if found is not None:
                return found
            if read is None or (read.done.is_set() and time.monotonic() >= read.next_at):
                read = self._under_way = _Read()
                threading.Thread(target=self._carry_out, args=(read,), daemon=True).start()
        if not read.done.wait(max(0.0, read.began + MAX_WAIT_SECONDS - time.monotonic())):
            if self._look is not None:
                return self._look
            name = self._paths.root.name
            raise DirectoryError(f"{name}: takes more than {MAX_WAIT_SECONDS:g} s to read; it goes on, so ask again")
        if read.error is not None:
            raise read.error
        assert self._look is not None  # a read that is done has one or the other
        return self._look

    def _carry_out(self, read: _Read) -> None:
        """Read the directory in a thread of its own, so that one that does not answer holds up nobody else."""
        try:
            self._look, self._read_at = self._looked(), time.monotonic()
        except Exception as e:  # noqa: BLE001 - whoever waits for it raises it
            read.error = e
        took = time.monotonic() - read.began
        read.next_at = time.monotonic() + (took / READ_SHARE if took > SLOW_SECONDS else 0.0)
        read.done.set()

    def _looked(self) -> Look:
        if local_path(self._paths.root).is_symlink():
            raise not_found("sweep")
        owner = living_owner(self._paths)
        try:
            self._reading = self._read()
        except FlopsFitError as e:
            return Look(has_plan=self._paths.plan.exists(), owner=owner, snapshot=None, error=e)
        return Look(has_plan=True, owner=owner, snapshot=self._reading, error=None)

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


class SweepCaches:
    """Caches of the sweeps below a root, at most `MAX_CACHED`."""

    def __init__(self, paths: ServicePaths) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, SweepCache] = OrderedDict()
        self._plans: set[str] = set()  # directories that were seen to have a plan

    def names(self) -> list[str]:
        """Return the names of the sweep directories, sorted; one that has not answered yet is none."""
        there: set[str] = set()
        with contextlib.suppress(OSError), os.scandir(self._paths.root) as entries:
            there = {one.name for one in entries if names.is_sweep(one.name) and one.is_dir(follow_symlinks=False)}
        with self._lock:
            self._plans &= there
            unknown = there - self._plans
        return sorted((there - unknown) | {name for name in unknown if self._has_plan(name)})

    def _has_plan(self, name: str) -> bool:
        try:
            found = self.of(name).look().has_plan
        except (FlopsFitError, RequestError):
            return False
        if found:
            with self._lock:
                self._plans.add(name)
        return found

    def of(self, name: str) -> SweepCache:
        """Return the cache of one sweep. Touches no file.

        Raises:
            RequestError: this cannot be the name of a sweep.
        """
        if not names.is_sweep(name):
            raise not_found("sweep")
        paths = self._paths.sweep(name)
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
            self._plans.discard(name)

    def expire(self, name: str) -> None:
        """Let the next one who asks for a sweep have its directory read, however new the last look is."""
        with self._lock:
            cache = self._kept.get(name)
        if cache is not None:
            cache.expire()

    def watched(self) -> list[str]:
        """Return the names of the sweeps that were read a moment ago, because somebody looks at them."""
        with self._lock:
            return [name for name, cache in self._kept.items() if cache.fresh is not None]

    def is_overdue(self, name: str) -> bool:
        """Tell whether the directory of a sweep does not answer, as far as somebody asks. Touches no file."""
        with self._lock:
            cache = self._kept.get(name)
        return cache is not None and cache.is_overdue

    def check_answers(self, name: str) -> None:
        """Check that a directory answers, before something waits for its files that others wait for.

        Raises:
            RequestError: it does not, or this cannot be the name of a sweep.
        """
        cache = self.of(name)
        cache.expire()
        try:
            cache.look()
        except FlopsFitError as e:
            raise busy(str(e)) from e
        if cache.is_overdue:
            raise busy(f"{name}: its directory has not answered for {MAX_WAIT_SECONDS:g} s; ask again when it does")

    def now(self, name: str) -> Snapshot | None:
        """Return a snapshot of one sweep; None if it has no plan, or one that cannot be read.

        Raises:
            RequestError: this cannot be the name of a sweep.
        """
        try:
            return self.of(name).now()
        except FlopsFitError:
            return None
