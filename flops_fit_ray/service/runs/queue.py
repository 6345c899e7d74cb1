"""The runs that were asked for: what waits, what runs, how it ended. All of it is read from files, whoever wrote them.

One service looks after a root, so a lock of this process is enough; what it decides is on disk before anything happens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

from flops_fit_ray.errors import DirectoryError, ResourceError, StorageError
from flops_fit_ray.service.http import names
from flops_fit_ray.service.http.refusal import Refusal, conflict, not_found
from flops_fit_ray.service.paths import ServicePaths
from flops_fit_ray.service.runs.allowed import check_allowed
from flops_fit_ray.service.runs.launch import Launcher, Look
from flops_fit_ray.service.runs.specs import Specs, StoredSpec
from flops_fit_ray.storage.atomic import read_json, write_bytes, write_json
from flops_fit_ray.storage.codec import Record, value_of
from flops_fit_ray.storage.lock import living_owner
from flops_fit_ray.storage.paths import SCHEMA_VERSION
from flops_fit_ray.storage.storage_path import names_in
from flops_fit_ray.sweep.directory import open_sweep
from flops_fit_ray.sweep.extend import extend_spec
from flops_fit_ray.sweep.run_limits import RunLimits

Kind = Literal["run", "resume", "extend"]
Phase = Literal["queued", "running", "stopping", "ended"]
TRY_AGAIN_SECONDS = 10.0  # after a cluster has not taken a run


@dataclass(frozen=True, kw_only=True)
class More:
    """What `extend` adds; nothing: the sweep is gone on with as it is."""

    budgets: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()
    seeds: int | None = None

    def words(self) -> list[str]:
        """The same as options."""
        seeds = [] if self.seeds is None else [f"--seeds={self.seeds}"]
        return [*(f"--budget={c!r}" for c in self.budgets), *(f"--size={s}" for s in self.sizes), *seeds]


@dataclass(frozen=True, kw_only=True)
class Start(Record):
    """One run of a sweep, as it was asked for."""

    sweep: str
    number: int  # of this sweep's runs, from 1
    kind: Kind
    words: list[str]  # after `python -m`
    code: str  # the directory that the spec's targets are looked for in
    asked_at: float  # seconds since the epoch


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How it stands with the last run of a sweep."""

    start: Start
    phase: Phase
    exit_code: int | None = None
    words: str = ""
    told_to_stop: bool = False


class Runs:
    """All runs below one root.

    Args:
        at_once: how many run side by side; the others wait.
        most_waiting: how many may wait.
    """

    def __init__(
        self, paths: ServicePaths, specs: Specs, launcher: Launcher, *, at_once: int = 1, most_waiting: int = 20
    ) -> None:
        self.paths, self.launcher, self.at_once, self.most_waiting = paths, launcher, at_once, most_waiting
        self.trouble = ""  # why nothing can be handed over now
        self._specs = specs
        self._lock = threading.RLock()
        self._over: dict[str, Standing] = {}  # last runs that have ended: nothing changes them any more
        self._next_try = 0.0

    def start(self, spec: StoredSpec, name: str | None, limits: RunLimits, key: str | None) -> tuple[Start, bool]:
        """Ask for a new sweep; whether it is new. A key that was used before gives what it gave then.

        Raises:
            Refusal: the name is taken, the key was used for something else, or too many wait.
        """
        asked = {"spec": spec.id, "name": name, **asdict(limits)}
        sweep = name or spec.name
        if not names.is_sweep(sweep):
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"name: {sweep!r} is no name for a sweep")
        with self._lock:
            if key is not None and (before := self._of_key(key, asked)) is not None:
                return before, False
            self._refuse_taken(sweep)
            self._refuse_crowd()
            _, code = self._specs.check(spec.text, spec.code)
            seen = self.launcher.code_as_seen or str(code)
            words = ["flops_fit_ray.run", str(self.paths.resolved(sweep)), f"--code={seen}"]
            words += [f"--output={self.paths.sweep(sweep).root}", "--plain", *limits.options()]
            write_bytes(self.paths.resolved(sweep), spec.text.encode())
            if key is not None:
                write_json(self.paths.key(_digest(key)), {"sweep": sweep, "asked": _digest(asked)})
            return self._ask(sweep, "run", words, code), True

    def go_on(self, name: str, more: More, limits: RunLimits) -> Start:
        """Ask for another run of a sweep that is not running: with more in it, or as it is.

        Raises:
            Refusal: it runs, it was made by a program, or its code is not allowed here.
            SpecError: what is to be added has no meaning for it.
        """
        with self._lock:
            directory = names.sweep_directory(self.paths, name)
            last = self.last(name)
            if last is not None and last.phase != "ended":
                raise conflict(f"{name} is {last.phase}; stop it first, or wait")
            if (owner := living_owner(directory)) is not None:
                raise conflict(f"{name}: {owner} is running it; it was not started here")
            self._refuse_crowd()
            if not directory.plan.exists():
                return self._again(last, more)
            try:
                sweep = open_sweep(directory.root)
            except DirectoryError as e:
                raise conflict(str(e)) from e
            code = Path(last.start.code) if last is not None else sweep.base
            if code is None:
                raise conflict(f"{name} was run from Python: call find_optimal(...) again")
            check_allowed(sweep.spec, code, self._specs.roots)
            kind: Kind = "resume"
            if more != More():
                extend_spec(sweep.spec, budgets=more.budgets, sizes=more.sizes, seeds=more.seeds)
                kind = "extend"
            seen = self.launcher.code_as_seen or str(code)
            words = ["flops_fit_ray", "extend", str(directory.root), f"--code={seen}", "--plain"]
            return self._ask(name, kind, [*words, *more.words(), *limits.options()], code)

    def stop(self, name: str) -> Standing:
        """Ask the run of a sweep to save and end; one that waits is taken out; a second time, it ends at once.

        Raises:
            Refusal: nothing of it runs or waits, or it was not started here.
        """
        with self._lock:
            directory = names.sweep_directory(self.paths, name)
            last = self.last(name)
            if last is None or last.phase == "ended":
                if (owner := living_owner(directory)) is not None:
                    raise conflict(f"{name}: {owner} is running it; it was not started here, so stop it there")
                if last is None and not directory.plan.exists():
                    raise not_found("sweep")
                raise conflict(f"{name} is not running")
            place = self.paths.start(name, last.start.number)
            write_json(place.stop, {"at": time.time()})
            if last.phase == "queued":
                write_json(
                    place.ended, {"exit_code": None, "at": time.time(), "words": "it was stopped while it waited"}
                )
            else:
                self.launcher.stop(place)
            return self.last(name) or last

    def last(self, name: str) -> Standing | None:
        """The last run that was asked for here; None where none was."""
        with self._lock:
            number = self.paths.num_starts(name)
            if not number:
                return None
            known = self._over.get(name)
            if known is not None and known.start.number == number:
                return known
            standing = self._look(name, number)
            if standing is not None and standing.phase == "ended":
                self._over[name] = standing
            return standing

    def known(self) -> list[str]:
        """The sweeps that were started here."""
        return sorted(name for name in names_in(self.paths.started) if names.is_sweep(name))

    def open(self) -> list[Standing]:
        """What waits or runs, the oldest first."""
        found = (self.last(name) for name in self.known())
        return sorted((s for s in found if s is not None and s.phase != "ended"), key=lambda s: s.start.asked_at)

    def pump(self) -> None:
        """Hand over what waits, as far as there is room."""
        with self._lock:
            standing = self.open()
            room = self.at_once - sum(s.phase != "queued" for s in standing)
            if time.monotonic() < self._next_try:
                return
            for waiting in [s.start for s in standing if s.phase == "queued"][: max(0, room)]:
                try:
                    self.launcher.begin(waiting.words, waiting.sweep, waiting.number, Path(waiting.code))
                    self.trouble = ""
                except (ResourceError, StorageError) as e:
                    self.trouble, self._next_try = str(e), time.monotonic() + TRY_AGAIN_SECONDS
                    return

    def log(self, name: str) -> bytes:
        """The end of what its runs have said."""
        last = self.last(name)
        if last is None:
            return b""
        return self.launcher.log(name, self.paths.start(name, last.start.number))

    def _look(self, name: str, number: int) -> Standing | None:
        place = self.paths.start(name, number)
        start = _read_start(place.asked)
        if start is None:
            return None
        if not place.begun.exists():
            ended = read_json(place.ended)
            if ended is None:
                return Standing(start=start, phase="queued", words=self.trouble)
            return Standing(start=start, phase="ended", words=str(ended.get("words", "")), told_to_stop=True)
        look: Look = self.launcher.look(place)
        told = place.stop.exists()
        phase: Phase = "ended" if not look.runs else "stopping" if told else "running"
        return Standing(start=start, phase=phase, exit_code=look.exit_code, words=look.words, told_to_stop=told)

    def _ask(self, name: str, kind: Kind, words: Sequence[str], code: Path) -> Start:
        number = self.paths.num_starts(name) + 1
        start = Start(sweep=name, number=number, kind=kind, words=list(words), code=str(code), asked_at=time.time())
        write_json(self.paths.start(name, number).asked, {"schema_version": SCHEMA_VERSION, **asdict(start)}, once=True)
        return start

    def _again(self, last: Standing | None, more: More) -> Start:
        """The first run never came to a plan: it is tried again as it was."""
        if last is None:
            raise not_found("sweep")
        if more != More():
            raise conflict(f"{last.start.sweep} has no plan yet; resume it first")
        self._specs.check(self.paths.resolved(last.start.sweep).read_text(), last.start.code)
        return self._ask(last.start.sweep, "resume", last.start.words, Path(last.start.code))

    def _of_key(self, key: str, asked: Mapping[str, Any]) -> Start | None:
        note = read_json(self.paths.key(_digest(key)))
        if note is None:
            return None
        if note.get("asked") != _digest(asked):
            words = "this idempotency key was used for another request; take a new one"
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, words)
        return _read_start(self.paths.start(str(note.get("sweep")), 1).asked)  # None: the service ended in between

    def _refuse_taken(self, name: str) -> None:
        directory = names.sweep_directory(self.paths, name)
        if directory.root.exists() or self.paths.num_starts(name):
            raise conflict(f"{name} is there already; resume or extend it, or give another name")

    def _refuse_crowd(self) -> None:
        waiting = sum(s.phase == "queued" for s in self.open())
        if waiting >= self.most_waiting:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{waiting} runs wait already; try again when some have begun"
            )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_start(path: Path) -> Start | None:
    content = read_json(path)
    with contextlib.suppress(ValueError):
        return None if content is None else value_of(Start, content)
    return None
