"""Where runs run: as processes of this machine, or as jobs of a Ray cluster. What they are is on disk, or Ray's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flops_fit_ray.errors import ResourceError, first_line
from flops_fit_ray.service.paths import ServicePaths, StartPaths
from flops_fit_ray.service.runs.supervisor import start_ticks
from flops_fit_ray.storage.atomic import read_json, write_json

if TYPE_CHECKING:
    from flops_fit_ray.engine.jobs import Jobs

BEGIN_SECONDS = 30.0  # in which a process must be there
SAME_START_TICKS = 200  # two seconds: the time of booting is known to a second, and no pid comes again so soon
LOG_BYTES = 64 * 1024  # of what a run has said, that are read at a time


@dataclass(frozen=True, kw_only=True)
class Look:
    """How it stands with one run."""

    runs: bool
    exit_code: int | None = None  # None: it runs, or nobody knows any more
    words: str = ""  # of whoever runs it, where it never came to speak


class Launcher(Protocol):
    """One way of running something."""

    here: str  # where, for people
    code_as_seen: str | None  # the directory of the code, as the run finds it; None: where it is

    def begin(self, words: Sequence[str], name: str, number: int, code: Path) -> None:
        """Hand a run over.

        Raises:
            ResourceError: nobody takes it now.
        """

    def look(self, start: StartPaths) -> Look:
        """How it stands."""

    def stop(self, start: StartPaths) -> None:
        """Ask it to save and end; a second time, at once."""

    def log(self, name: str, start: StartPaths) -> bytes:
        """The end of what it has said."""


class LocalRuns:
    """Processes of this machine, each with a keeper that outlives the service."""

    here = "processes of this machine"
    code_as_seen: str | None = None

    def __init__(self, paths: ServicePaths) -> None:
        self._paths = paths
        self._keepers: list[subprocess.Popen[bytes]] = []  # only so that no zombie is left

    def begin(self, words: Sequence[str], name: str, number: int, code: Path) -> None:
        """Start a keeper."""
        start, log = self._paths.start(name, number), self._paths.log(name)
        write_json(start.begun, {"at": time.time(), "how": "local"})
        command = [
            sys.executable,
            "-P",
            "-m",
            "flops_fit_ray.service.runs.supervisor",
            str(start.directory),
            str(log),
            *words,
        ]
        try:
            keeper = subprocess.Popen(  # noqa: S603 - the service has made these words
                command, cwd=code, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        except OSError as e:
            start.begun.unlink(missing_ok=True)
            raise ResourceError(f"no process could be started in {code}: {e.strerror}") from e
        self._keepers = [k for k in [*self._keepers, keeper] if k.poll() is None]

    def look(self, start: StartPaths) -> Look:
        """By the keeper's notes, and whether it or the run is alive."""
        self._keepers = [k for k in self._keepers if k.poll() is None]
        ended = read_json(start.ended)
        if ended is not None:
            return _over(ended)
        process = read_json(start.process)
        if process is None:
            begun = (read_json(start.begun) or {}).get("at", 0.0)
            runs = abs(time.time() - begun) < BEGIN_SECONDS
            return Look(runs=runs, words="" if runs else "it never began")
        runs = any(_lives(process, who, since) for who, since in (("pid", "born"), ("keeper", "keeper_born")))
        if not runs and (ended := read_json(start.ended)) is not None:  # between the two looks
            return _over(ended)
        return Look(runs=runs, words="" if runs else "its process is gone")

    def stop(self, start: StartPaths) -> None:
        """SIGTERM: it saves what runs; a second one ends it at once."""
        process = read_json(start.process)
        if process is not None and _lives(process, "pid", "born"):
            os.kill(int(process["pid"]), signal.SIGTERM)

    def log(self, name: str, start: StartPaths) -> bytes:
        """Of all its runs, one after the other."""
        return tail(self._paths.log(name))


def _over(ended: Mapping[str, object]) -> Look:
    code = ended.get("exit_code")
    return Look(runs=False, exit_code=code if isinstance(code, int) else None, words=str(ended.get("words", "")))


def _lives(process: Mapping[str, object], who: str, since: str) -> bool:
    pid, noted = process.get(who), process.get(since)
    if not isinstance(pid, int) or not isinstance(noted, int):
        return False
    began = start_ticks(pid)
    return began is not None and abs(began - noted) <= SAME_START_TICKS


def tail(path: Path, limit: int = LOG_BYTES) -> bytes:
    """The last bytes of a file, from the beginning of a line; empty where there is none."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - limit))
            content = file.read(limit)
    except OSError:
        return b""
    return content if length <= limit else content.partition(b"\n")[2]


class RayRuns:
    """Jobs of a cluster, through the job server of its head. The root is on storage that every node sees."""

    code_as_seen: str | None = "."  # the directory travels with the job

    def __init__(self, paths: ServicePaths, address: str) -> None:
        from flops_fit_ray.engine.jobs import Jobs, job_address

        self._paths, self._address = paths, job_address(address)
        self.here = f"jobs of the Ray cluster at {self._address}"
        self._client: Jobs | None = Jobs(self._address)  # so that a wrong address is heard of at once

    def _jobs(self) -> Jobs:
        from flops_fit_ray.engine.jobs import Jobs

        self._client = self._client or Jobs(self._address)
        return self._client

    def begin(self, words: Sequence[str], name: str, number: int, code: Path) -> None:
        """Submit it, under a name that no second submission can have."""
        from flops_fit_ray.engine.jobs import Submission

        start = self._paths.start(name, number)
        job_id = f"{name}-{number:04d}-{os.urandom(4).hex()}"
        write_json(start.begun, {"at": time.time(), "how": "ray", "job_id": job_id})
        again = f"the service of {self._paths.root} resumes {name}"
        try:
            self._jobs().submit(Submission(name=name, working_dir=code, words=tuple(words), again=again, job_id=job_id))
        except ResourceError:
            self._client = None
            start.begun.unlink(missing_ok=True)
            raise

    def look(self, start: StartPaths) -> Look:
        """What Ray says of the job; kept once it has ended, because a cluster may go."""
        ended = read_json(start.ended)
        if ended is not None:
            return _over(ended)
        job_id = str((read_json(start.begun) or {}).get("job_id"))
        try:
            status = self._jobs().status(job_id)
            if status in ("PENDING", "RUNNING"):
                return Look(runs=True)
            code = self._jobs().exit_code(job_id)
            words = "" if status == "SUCCEEDED" else self._jobs().message(job_id)
        except (RuntimeError, OSError, ResourceError) as e:
            self._client = None
            if "does not exist" in str(e):  # another cluster, or its head was started anew
                return Look(runs=False, words=f"the cluster at {self._address} does not know its job {job_id}")
            return Look(runs=True, words=f"the cluster does not answer: {first_line(e)}")
        note = {"exit_code": code, "at": time.time(), "words": words}
        write_json(start.ended, note)
        return _over(note)

    def stop(self, start: StartPaths) -> None:
        """As `ray job stop`."""
        with contextlib.suppress(RuntimeError, OSError, ResourceError):
            self._jobs().stop(str((read_json(start.begun) or {}).get("job_id")))

    def log(self, name: str, start: StartPaths) -> bytes:
        """Of this run."""
        try:
            return self._jobs().log(str((read_json(start.begun) or {}).get("job_id"))).encode()[-LOG_BYTES:]
        except (RuntimeError, OSError, ResourceError):
            return b""
