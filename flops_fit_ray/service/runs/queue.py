"""Queue of runs: which wait, which run, how they ended. Everything is read from files.

One service serves a root, so a lock of this process is enough; each decision is written to disk before it is acted on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flops_fit_ray.errors import DirectoryError, ResourceError, StorageError, faults_of
from flops_fit_ray.service.http import names
from flops_fit_ray.service.http.guard import token_of
from flops_fit_ray.service.http.request_error import RequestError, busy, conflict, not_found
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.service.private import Seal
from flops_fit_ray.service.runs._keys import Keys, digest
from flops_fit_ray.service.runs.asked import Additions, Kind, Phase, QueuedRun, RunStatus, asked_to_start, read_run
from flops_fit_ray.service.runs.launch import Launcher, ProcessState
from flops_fit_ray.service.runs.specs import Specs, StoredSpec
from flops_fit_ray.spec import BudgetsFor, limit_of_budgets
from flops_fit_ray.storage.atomic import read_json, write_bytes, write_json
from flops_fit_ray.storage.lock import living_owner
from flops_fit_ray.storage.paths import SCHEMA_VERSION, SweepPaths
from flops_fit_ray.storage.storage_path import names_in
from flops_fit_ray.sweep.directory import open_sweep
from flops_fit_ray.sweep.extend import extend_spec
from flops_fit_ray.sweep.from_checkpoint import OPTION, CheckpointName, named_checkpoint
from flops_fit_ray.sweep.run_limits import RunLimits

LIMIT_EXAMPLE = "minutes, or budgets: {minutes: 30} in the spec"
UNSEALED = "was not written by this service, or under another token: it starts nothing"
QUEUE_SECONDS = 60  # until a place in a full queue may be free
RETRY_SECONDS = 10.0  # after a run could not be started


class Runs:
    """All runs below one root.

    Args:
        at_once: maximum number of sweeps that run at a time; the others wait.
        max_queued: maximum number of runs that wait.
    """

    def __init__(
        self, paths: ServicePaths, specs: Specs, launcher: Launcher, *, at_once: int = 1, max_queued: int = 20
    ) -> None:
        self.paths, self.launcher, self.at_once, self.max_queued = paths, launcher, at_once, max_queued
        self.trouble = ""  # why no run can be started now
        self._specs, self._seal = specs, Seal(token_of(paths))
        self.keys = Keys(paths)
        self.lock = threading.RLock()
        self.on_end: Callable[[str], object] = lambda name: None  # told of a sweep whose run has ended
        self._ended: dict[str, RunStatus] = {}  # last runs that have ended, which nothing changes any more
        self._next_try = 0.0

    def start(
        self,
        spec: StoredSpec,
        name: str | None,
        limits: RunLimits,
        key: str | None,
        budgets_for: BudgetsFor | None = None,
    ) -> tuple[QueuedRun, bool]:
        """Queue a new sweep and return True; with a key that was used before, return its run and False.

        Args:
            budgets_for: what a sweep whose budgets are `auto` may cost; None: as its spec says.

        Raises:
            RequestError: the name is taken, the key was used for another request, or the queue is full.
            SpecError: a limit and budgets are given, or neither.
        """
        asked = asked_to_start(spec.id, name, limits, budgets_for)
        sweep = name or spec.name
        if not names.is_sweep(sweep):
            allowed = "up to 100 letters, digits, '.', '_' and '-', the first a letter or digit"
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, f"name: {sweep!r} is not allowed; use {allowed}")
        with self.lock:
            if key is not None and (before := self._of_key(key, asked)) is not None:
                return before, False
            self._refuse_taken(sweep)
            self._refuse_crowd()
            found, code = self._specs.check(spec.text, spec.code)
            limit_of_budgets(found, budgets_for, "spec", LIMIT_EXAMPLE)
            seen = self.launcher.code_as_seen or str(code)
            arguments = ["flops_fit_ray.run", str(self.paths.resolved(sweep)), f"--code={seen}"]
            cost = [] if budgets_for is None else budgets_for.options()
            arguments += [f"--output={self.paths.sweep(sweep).root}", "--plain", *cost, *limits.options()]
            write_bytes(self.paths.resolved(sweep), spec.text.encode())
            if key is not None:
                self.keys.write(key, asked, {"sweep": sweep})
            return self._ask(sweep, "run", arguments, code), True

    def resume(
        self, name: str, more: Additions, limits: RunLimits, checkpoint: str | None = None, key: str | None = None
    ) -> QueuedRun:
        """Queue another run of a sweep that is not running, with additions or without.

        Args:
            checkpoint: name or id of the one that its experiment goes on from; None: from the newest.
            key: idempotency key; a run that was requested with it is returned, and no other one queued.

        Raises:
            RequestError: it is running, it was run from Python, or its code is not allowed here.
            SpecError: the additions do not fit the sweep, or it has no such checkpoint.
        """
        with self.lock:
            directory = names.sweep_directory(self.paths, name)
            if key is not None and (before := self._run_of_key(name, key)) is not None:
                return before
            last = self.last(name)
            if last is not None and last.phase != "ended":
                raise conflict(f"{name} is {last.phase}; stop it first, or wait until it ends", "running")
            if (owner := living_owner(directory)) is not None:
                message = f"{name} is run by {owner}; it was not started here, so wait until it ends there"
                raise conflict(message, "running")
            self._refuse_crowd()
            if not directory.plan.exists():
                if checkpoint is not None:
                    _named(directory, checkpoint)  # there is none
                return self._again(last, more, key)
            try:
                sweep = open_sweep(directory.root)
            except DirectoryError as e:
                raise conflict(str(e)) from e
            code = Path(last.run.code) if last is not None else sweep.base
            if code is None:
                raise conflict(f"{name} was run from Python: call find_optimal(...) again with the same output_dir")
            self._specs.refuse_foreign(sweep.spec, code)
            kind: Kind = "resume"
            if more != Additions():
                extend_spec(sweep.spec, budgets=more.budgets, sizes=more.sizes, seeds=more.seeds)
                kind = "extend"
            seen = self.launcher.code_as_seen or str(code)
            arguments = ["flops_fit_ray", "extend", str(directory.root), f"--code={seen}", "--plain"]
            if checkpoint is not None:
                arguments.append(f"{OPTION}={_named(directory, checkpoint)}")
            return self._ask(name, kind, [*arguments, *more.options(), *limits.options()], code, key)

    def stop(self, name: str, key: str | None = None) -> RunStatus:
        """Ask the run of a sweep to save and end, or remove it from the queue; the second time, end it at once.

        Args:
            key: idempotency key; with that of the request before, this is no second time.

        Raises:
            RequestError: it neither runs nor waits, or it was not started here.
        """
        with self.lock:
            directory = names.sweep_directory(self.paths, name)
            last = self.last(name)
            if last is not None and key is not None and self._stopped_by(last.run) == digest(key):
                return last
            if last is None or last.phase == "ended":
                if (owner := living_owner(directory)) is not None:
                    message = f"{name} is run by {owner}; it was not started here, so stop it there"
                    raise conflict(message, "running")
                if last is None and not directory.plan.exists():
                    raise not_found("sweep")
                raise conflict(f"{name} is not running")
            place = self.paths.start(name, last.run.number)
            write_json(place.stop, {"at": time.time(), "key": None if key is None else digest(key)})
            if last.phase == "queued":
                write_json(place.ended, {"exit_code": None, "at": time.time(), "words": "it was stopped while queued"})
            else:
                self.launcher.stop(place)
            return self.last(name) or last

    def last(self, name: str) -> RunStatus | None:
        """Return the status of the last run requested here; None if there was none."""
        with self.lock:
            number = self.paths.num_starts(name)
            if not number:
                return None
            known = self._ended.get(name)
            if known is not None and known.run.number == number:
                return known
            run_status = self._look(name, number)
            if run_status is not None and run_status.phase == "ended":
                self._ended[name] = run_status
                self.on_end(name)
            return run_status

    def forget(self, name: str) -> None:
        """Forget what is cached of the runs of a sweep."""
        with self.lock:
            self._ended.pop(name, None)

    def known(self) -> list[str]:
        """Return the sweeps that were started here, by name."""
        return sorted(name for name in names_in(self.paths.started) if names.is_sweep(name))

    def open(self) -> list[RunStatus]:
        """Return the runs that wait or run, oldest request first."""
        found = (self.last(name) for name in self.known())
        return sorted((s for s in found if s is not None and s.phase != "ended"), key=lambda s: s.run.asked_at)

    def start_waiting(self) -> None:
        """Start queued runs, as many as `at_once` allows."""
        with self.lock:
            statuses = self.open()
            room = self.at_once - sum(s.phase != "queued" for s in statuses)
            if time.monotonic() < self._next_try:
                return
            for waiting in [s.run for s in statuses if s.phase == "queued"][: max(0, room)]:
                try:
                    self.launcher.launch(waiting.words, waiting.sweep, waiting.number, Path(waiting.code))
                    self.trouble = ""
                except (ResourceError, StorageError) as e:
                    self.trouble, self._next_try = str(e), time.monotonic() + RETRY_SECONDS
                    return

    def log(self, name: str) -> bytes:
        """Return the end of the log of its runs."""
        last = self.last(name)
        if last is None:
            return b""
        return self.launcher.log(name, self.paths.start(name, last.run.number))

    def last_log(self, run: QueuedRun) -> bytes:
        """Return the end of the log of one run alone."""
        return self.launcher.last_log(run.sweep, self.paths.start(run.sweep, run.number))

    def _look(self, name: str, number: int) -> RunStatus | None:
        place = self.paths.start(name, number)
        run = read_run(place.asked)
        if run is None:
            return None
        if not place.begun.exists():
            ended = read_json(place.ended)
            if ended is None and not self._is_ours(name, number):
                return RunStatus(run=run, phase="ended", message=f"{place.asked}: {UNSEALED}")
            if ended is None:
                return RunStatus(run=run, phase="queued", message=self.trouble)
            return RunStatus(run=run, phase="ended", message=str(ended.get("words", "")), stop_requested=True)
        process: ProcessState = self.launcher.poll(place)
        stopping = place.stop.exists()
        phase: Phase = "ended" if not process.runs else "stopping" if stopping else "running"
        return RunStatus(
            run=run, phase=phase, exit_code=process.exit_code, message=process.message, stop_requested=stopping
        )

    def _run_of_key(self, name: str, key: str) -> QueuedRun | None:
        numbers = range(self.paths.num_starts(name), 0, -1)
        found = (read_run(self.paths.start(name, number).asked) for number in numbers)
        return next((run for run in found if run is not None and run.key == digest(key)), None)

    def _stopped_by(self, run: QueuedRun) -> str | None:
        key = (read_json(self.paths.start(run.sweep, run.number).stop) or {}).get("key")
        return key if isinstance(key, str) else None

    def _ask(self, name: str, kind: Kind, arguments: Sequence[str], code: Path, key: str | None = None) -> QueuedRun:
        number = self.paths.num_starts(name) + 1
        run = QueuedRun(
            sweep=name, number=number, kind=kind, words=list(arguments), code=str(code), asked_at=time.time(),
            key=None if key is None else digest(key),
        )  # fmt: skip
        content = {"schema_version": SCHEMA_VERSION, **asdict(run)}
        write_json(
            self.paths.start(name, number).asked, self._seal.sealed(content, self.paths.resolved(name)), once=True
        )
        return run

    def _is_ours(self, name: str, number: int) -> bool:
        """Return True if this service wrote a request and the spec that it names, and nobody has changed them."""
        content = read_json(self.paths.start(name, number).asked)
        mine = content is not None and (content.get("sweep"), content.get("number")) == (name, number)
        return content is not None and mine and self._seal.holds(content, self.paths.resolved(name))

    def _again(self, last: RunStatus | None, more: Additions, key: str | None) -> QueuedRun:
        """Queue the first run again, unchanged, because it never made a plan."""
        if last is None:
            raise not_found("sweep")
        if more != Additions():
            raise conflict(f"{last.run.sweep} has no plan yet; resume it first")
        if not self._is_ours(last.run.sweep, last.run.number):
            raise conflict(f"{last.run.sweep}: its request {UNSEALED}; start its spec again under another name")
        self._specs.check(self.paths.resolved(last.run.sweep).read_text(), last.run.code)
        return self._ask(last.run.sweep, "resume", last.run.words, Path(last.run.code), key)

    def _of_key(self, key: str, asked: Mapping[str, Any]) -> QueuedRun | None:
        note = self.keys.read(key, asked)
        if note is None:
            return None
        return read_run(self.paths.start(str(note.get("sweep")), 1).asked)  # None: the service ended in between

    def _refuse_taken(self, name: str) -> None:
        directory = names.sweep_directory(self.paths, name)
        if directory.root.exists() or self.paths.num_starts(name):
            raise conflict(f"{name} exists already; resume or extend it, or give another name", "name_taken")

    def _refuse_crowd(self) -> None:
        waiting = sum(s.phase == "queued" for s in self.open())
        if waiting >= self.max_queued:
            raise busy(f"the queue is full ({waiting} runs); try again when some have started", QUEUE_SECONDS)


def _named(directory: SweepPaths, checkpoint: str) -> CheckpointName:
    with faults_of("checkpoint"):
        return named_checkpoint(directory.root, checkpoint)
