"""Launchers of runs: as processes of this machine, or as jobs of a Ray cluster. All state is on disk or with Ray."""

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
from flops_fit_ray.service.runs._supervisor import start_ticks
from flops_fit_ray.storage.atomic import open_file, read_json, write_json
from flops_fit_ray.training.fence import Fence

if TYPE_CHECKING:
    from flops_fit_ray.engine.jobs import Jobs

LAUNCH_SECONDS = 30.0  # within which a process must have started
SAME_START_TICKS = 200  # 2 s: the time of booting is known to 1 s, and no pid is reused so soon
LOG_BYTES = 64 * 1024  # read from the end of a log


@dataclass(frozen=True, kw_only=True)
class ProcessState:
    """State of the process or job of a run."""

    runs: bool
    exit_code: int | None = None  # None: it runs, or its exit code is not known
    message: str = ""  # why it is gone, where its log does not say


class Launcher(Protocol):
    """A way to run a sweep."""

    here: str  # where sweeps run, as shown on pages
    code_as_seen: str | None  # directory of the code, as the run finds it; None: where it is

    def launch(self, arguments: Sequence[str], name: str, number: int, code: Path) -> None:
        """Start a run.

        Raises:
            ResourceError: it cannot be started now.
        """

    def poll(self, start: StartPaths) -> ProcessState:
        """Return the state of its process or job."""

    def stop(self, start: StartPaths) -> None:
        """Ask it to save and end; the second time, to end at once."""

    def log(self, name: str, start: StartPaths) -> bytes:
        """Return the end of the log of its sweep."""

    def last_log(self, name: str, start: StartPaths) -> bytes:
        """Return the end of its own log."""


class LocalLauncher:
    """Runs processes on this machine, each under a supervisor that outlives the service."""

    here = "processes of this machine"
    code_as_seen: str | None = None

    def __init__(self, paths: ServicePaths, fence: Fence) -> None:
        self._paths, self._fence = paths, fence
        self._supervisors: list[subprocess.Popen[bytes]] = []  # polled, so that none stays a zombie

    def launch(self, arguments: Sequence[str], name: str, number: int, code: Path) -> None:
        """Start a supervisor."""
        start, log = self._paths.start(name, number), self._paths.log(name)
        begun = {"at": time.time(), "how": "local"}
        write_json(start.begun, begun)
        command = [
            sys.executable,
            "-P",
            "-m",
            "flops_fit_ray.service.runs._supervisor",
            str(start.directory),
            str(log),
            *arguments,
        ]
        try:
            supervisor = subprocess.Popen(  # noqa: S603 - arguments made by the service
                command, cwd=code, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True, env={**os.environ, **self._fence.environment()},
            )  # fmt: skip
        except OSError as e:
            start.begun.unlink(missing_ok=True)
            raise ResourceError(f"no process could be started in {code}: {e.strerror}") from e
        self._supervisors = [k for k in [*self._supervisors, supervisor] if k.poll() is None]
        keeper = {"keeper": supervisor.pid, "keeper_born": start_ticks(supervisor.pid)}
        write_json(start.begun, {**begun, **keeper})  # so that one that starts late is found

    def poll(self, start: StartPaths) -> ProcessState:
        """Read the supervisor's notes, and look whether it or the run is alive."""
        self._supervisors = [k for k in self._supervisors if k.poll() is None]
        ended = read_json(start.ended)
        if ended is not None:
            return _over(ended)
        process = read_json(start.process)
        if process is None:
            begun = read_json(start.begun) or {}
            runs = _lives(begun, "keeper", "keeper_born") or abs(time.time() - _time_of(begun)) < LAUNCH_SECONDS
            if runs:
                return ProcessState(runs=True)
            note = {"exit_code": None, "at": time.time(), "words": "its process did not start; resume it"}
            write_json(start.ended, note, once=True)  # a supervisor that comes now starts nothing
            return _over(read_json(start.ended) or note)
        runs = any(_lives(process, who, since) for who, since in (("pid", "born"), ("keeper", "keeper_born")))
        if not runs and (ended := read_json(start.ended)) is not None:  # it ended between the two reads
            return _over(ended)
        return ProcessState(runs=runs, message="" if runs else "its process was killed; resume it")

    def stop(self, start: StartPaths) -> None:
        """Send SIGTERM: the run saves and ends; a second one ends it at once."""
        process = read_json(start.process)
        if process is not None and _lives(process, "pid", "born"):
            os.kill(int(process["pid"]), signal.SIGTERM)

    def log(self, name: str, start: StartPaths) -> bytes:
        """Return the end of the log of all its runs."""
        return tail(self._paths.log(name))

    def last_log(self, name: str, start: StartPaths) -> bytes:
        """Return the end of the log of this run alone."""
        begins = (read_json(start.process) or {}).get("log_begins")
        return tail(self._paths.log(name), begin=begins if isinstance(begins, int) else 0)


def _time_of(begun: Mapping[str, object]) -> float:
    at = begun.get("at")
    return float(at) if isinstance(at, int | float) else 0.0


def _over(ended: Mapping[str, object]) -> ProcessState:
    code = ended.get("exit_code")
    message = str(ended.get("words", ""))
    return ProcessState(runs=False, exit_code=code if isinstance(code, int) else None, message=message)


def _lives(process: Mapping[str, object], who: str, since: str) -> bool:
    pid, noted = process.get(who), process.get(since)
    if not isinstance(pid, int) or not isinstance(noted, int):
        return False
    began = start_ticks(pid)
    return began is not None and abs(began - noted) <= SAME_START_TICKS


def tail(path: Path, limit: int = LOG_BYTES, begin: int = 0) -> bytes:
    """Return the last bytes of a file, from the beginning of a line; empty if there is no file.

    Args:
        begin: byte from which on it is read at most.
    """
    try:
        with open_file(path) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(begin, length - limit, 0))
            content = file.read(limit)
    except OSError:
        return b""
    return content if length - max(begin, 0) <= limit else content.partition(b"\n")[2]


class RayLauncher:
    """Runs jobs on a cluster, through the job server of its head. The root must be on storage shared by all nodes."""

    code_as_seen: str | None = "."  # the directory is uploaded with the job

    def __init__(self, paths: ServicePaths, address: str, fence: Fence) -> None:
        from flops_fit_ray.engine.jobs import Jobs, job_address

        self._fence = Fence((Path(), *fence.roots))  # code is uploaded, and lies in the job's working directory
        self._paths, self._address = paths, job_address(address)
        self.here = f"jobs of the Ray cluster at {self._address}"
        self._client: Jobs | None = Jobs(self._address)  # a wrong address fails here

    def _jobs(self) -> Jobs:
        from flops_fit_ray.engine.jobs import Jobs

        self._client = self._client or Jobs(self._address)
        return self._client

    def launch(self, arguments: Sequence[str], name: str, number: int, code: Path) -> None:
        """Submit a job under an id of its own."""
        from flops_fit_ray.engine.jobs import Submission

        start = self._paths.start(name, number)
        job_id = f"{name}-{number:04d}-{os.urandom(4).hex()}"
        write_json(start.begun, {"at": time.time(), "how": "ray", "job_id": job_id})
        again = f"the service of {self._paths.root} resumes {name}"
        try:
            self._jobs().submit(
                Submission(
                    name=name,
                    working_dir=code,
                    words=tuple(arguments),
                    again=again,
                    job_id=job_id,
                    environment=self._fence.environment(),
                )
            )
        except ResourceError:
            self._client = None
            start.begun.unlink(missing_ok=True)
            raise

    def poll(self, start: StartPaths) -> ProcessState:
        """Return Ray's state of the job; its end is recorded on disk, because the cluster may be deleted."""
        ended = read_json(start.ended)
        if ended is not None:
            return _over(ended)
        job_id = str((read_json(start.begun) or {}).get("job_id"))
        try:
            status = self._jobs().status(job_id)
            if status in ("PENDING", "RUNNING"):
                return ProcessState(runs=True)
            code = self._jobs().exit_code(job_id)
            message = "" if status == "SUCCEEDED" else self._jobs().message(job_id)
        except (RuntimeError, OSError, ResourceError) as e:
            self._client = None
            if "does not exist" in str(e):  # another cluster, or its head was restarted
                message = f"the cluster at {self._address} does not know job {job_id} (restarted?); resume it"
                return ProcessState(runs=False, message=message)
            return ProcessState(runs=True, message=f"the cluster does not answer: {first_line(e)}")
        note = {"exit_code": code, "at": time.time(), "words": message}
        write_json(start.ended, note)
        return _over(note)

    def stop(self, start: StartPaths) -> None:
        """Stop the job, as `ray job stop` does."""
        with contextlib.suppress(RuntimeError, OSError, ResourceError):
            self._jobs().stop(str((read_json(start.begun) or {}).get("job_id")))

    def log(self, name: str, start: StartPaths) -> bytes:
        """Return the end of the job's log."""
        try:
            return self._jobs().log(str((read_json(start.begun) or {}).get("job_id"))).encode()[-LOG_BYTES:]
        except (RuntimeError, OSError, ResourceError):
            return b""

    def last_log(self, name: str, start: StartPaths) -> bytes:
        """Return the end of the job's log, which is its own."""
        return self.log(name, start)
