"""Ray jobs: handing a sweep to a cluster, and what is different for a sweep inside of one.

A job runs in a temporary copy of the directory that was submitted, on the head of the cluster; so do its workers, on
their nodes. Results in there would go with it, and a path in there means nothing once the job has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flops_fit_ray.engine._authentication import token_fault
from flops_fit_ray.engine.cluster import knock
from flops_fit_ray.errors import EXIT_FAILED, ResourceError, SpecError, first_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

UPLOADS = "working_dir_files"  # where Ray unpacks what was submitted, on every node
SUBMITTED_BY = "FLOPS_FIT_RAY_SUBMITTED_BY"  # in a job's environment: the command that submits it again
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
NOT_UPLOADED = [".git", ".venv", "venv", "__pycache__", "*.pyc", "runs", ".mypy_cache", ".pytest_cache", ".ruff_cache"]
SECONDS_TO_SAVE = 60  # after `ray job stop`; by default Ray kills after 3
BEGIN_SECONDS = 30.0
AGENT_SECONDS = 60.0
POLL_SECONDS = 0.5


def upload_of(path: Path) -> Path | None:
    """The temporary directory of a Ray job that `path` lies in; None where it lies in none."""
    return next((place for place in (path, *path.parents) if place.parent.name == UPLOADS), None)


def line_to_submit(words: Sequence[str], base: Path, more: Sequence[str] = ()) -> str | None:
    """Return the command that submits this job again from where it was submitted; None outside of jobs.

    Args:
        words: of the module to run, after `python -m`; paths in the upload are given as the job sees them.
        base: a path that lies in the upload, if there is one.
        more: options that the first submission had, too.
    """
    upload = upload_of(base)
    if upload is None:
        return None
    given = os.environ.get(SUBMITTED_BY)
    if given:
        return " ".join([given, *map(shlex.quote, more)])
    inside = [str(Path(word).relative_to(upload)) if _lies_in(word, upload) else word for word in words]
    return shlex.join(["ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", *inside, *more])


def _lies_in(word: str, upload: Path) -> bool:
    return word.startswith("/") and Path(word).is_relative_to(upload)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job to be: a sweep directory that every node sees, and the words that run it in the uploaded directory."""

    name: str
    working_dir: Path
    words: tuple[str, ...]  # after `python -m`; paths relative to `working_dir`
    again: str  # what submits it again
    job_id: str | None = None  # by default a name of its own
    environment: Mapping[str, str] = field(default_factory=dict)  # further variables


class Jobs:
    """The job server of one cluster."""

    def __init__(self, address: str | None) -> None:
        """Connect.

        Raises:
            ResourceError: Ray's part for jobs is not installed, or nobody answers at `address`.
        """
        self.address = job_address(address)
        if importlib.util.find_spec("aiohttp") is None:  # Ray itself would say so in a traceback
            raise ResourceError(
                "submitting jobs needs Ray's job client: pip install 'flops-fit-ray[jobs]', or 'ray[default]'"
            )
        _reach(self.address)
        from ray.job_submission import JobSubmissionClient

        for name in ("dashboard_sdk", "job.sdk"):  # which would say what they upload, with dates and levels
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
        with _no_other_address():
            try:
                self._client: JobSubmissionClient = JobSubmissionClient(self.address)
            except Exception as e:  # Ray raises RuntimeError and ConnectionError, with a page of words
                fault = token_fault(str(e), self.address) or f"no Ray job server at {self.address}: {first_line(e)}"
                raise ResourceError(fault) from e

    def submit(self, job: Submission) -> str:
        """Upload the directory and start the job; returns its id.

        Raises:
            ResourceError: the server refuses it, for example because the upload is too large; the way out is named.
        """
        environment = {
            "env_vars": {
                "RAY_JOB_STOP_WAIT_TIME_S": str(SECONDS_TO_SAVE),
                "PYTHONHASHSEED": "0",  # of driver and workers alike
                SUBMITTED_BY: job.again,
                **job.environment,
            },
            "working_dir": str(job.working_dir),
            "excludes": NOT_UPLOADED,
        }
        name = job.job_id or f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
        entrypoint = shlex.join(["python", "-m", *job.words])
        until = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                return str(self._client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env=environment))
            except (RuntimeError, ValueError, OSError) as e:
                if "No available agent" in str(e) and time.monotonic() < until:  # a head that has just been started
                    time.sleep(POLL_SECONDS)
                    continue
                raise ResourceError(
                    f"the cluster did not take the job: {first_line(e)}; of {job.working_dir} these would be sent: "
                    f"{_largest(job.working_dir)}; data belong where every node sees them, code alone travels (100 MB)"
                ) from e

    def begun(self, job_id: str) -> str:
        """Wait a short while for the job to begin. Returns its status: PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED."""
        until = time.monotonic() + BEGIN_SECONDS
        while (status := self.status(job_id)) == "PENDING" and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return status

    def status(self, job_id: str) -> str:
        """Return the status that Ray reports for the job."""
        return str(self._client.get_job_status(job_id).value)

    def stop(self, job_id: str) -> None:
        """Ask it to end; it saves what runs first."""
        self._client.stop_job(job_id)

    def log(self, job_id: str) -> str:
        """Return the log so far."""
        return str(self._client.get_job_logs(job_id))

    def exit_code(self, job_id: str) -> int | None:
        """Of a job that has ended; None where it never began."""
        code = self._client.get_job_info(job_id).driver_exit_code
        return None if code is None else int(code)

    def message(self, job_id: str) -> str:
        """Return Ray's message on how the job ended."""
        return str(self._client.get_job_info(job_id).message or "")

    def follow(self, job_id: str, write: Callable[[str], Any]) -> int:
        """Pass on what the job says until it ends; returns its exit code."""

        async def tail() -> None:
            async for part in self._client.tail_job_logs(job_id):
                write(part)

        asyncio.run(tail())
        while self.status(job_id) in ("PENDING", "RUNNING"):
            time.sleep(POLL_SECONDS)
        code = self.exit_code(job_id)
        return EXIT_FAILED if code is None else code


def job_address(given: str | None) -> str:
    """The HTTP address of a cluster's job server: what is given, else what Ray's own commands would take.

    Raises:
        ResourceError: it is of another kind.
    """
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or DEFAULT_ADDRESS
    if "://" not in address:
        address = f"http://{address}"
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ResourceError(
            f"{address!r} is no address of a job server; it is that of the dashboard, such as {DEFAULT_ADDRESS}"
        )
    return address


def _reach(address: str) -> None:
    """Make sure that somebody answers: Ray's client prints a page where nobody does."""
    parts = urlsplit(address)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        knock(parts.hostname or "", port)
    except (OSError, ValueError) as e:
        raise ResourceError(
            f"nobody answers at {address}: {e}; on a cluster the dashboard listens on the head's loopback: "
            "forward its port with `ssh -L 8265:127.0.0.1:8265 HEAD` or `ray dashboard CLUSTER.yaml`"
        ) from e


@contextlib.contextmanager
def _no_other_address() -> Iterator[None]:
    """Without the variables that Ray's client prefers to what it is given."""
    kept = {name: os.environ.pop(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _largest(directory: Path) -> str:
    sizes = []
    for place, names, files in os.walk(directory):
        names[:] = [name for name in names if name not in NOT_UPLOADED]
        for file in files:
            with contextlib.suppress(OSError):
                path = Path(place) / file
                sizes.append((path.stat().st_size, str(path.relative_to(directory))))
    total = sum(size for size, _ in sizes)
    shown = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for size, name in sorted(sizes, reverse=True)[:3])
    return f"{len(sizes)} files, {total / 1e6:.1f} MB, the largest {shown or 'none'}"


def words_for(spec: Path, working_dir: Path, options: Sequence[str]) -> tuple[str, ...]:
    """The words after `python -m` that run a spec in the uploaded directory.

    Raises:
        SpecError: the spec does not lie in it.
    """
    if not spec.is_relative_to(working_dir):
        fault = f"{spec} is not in {working_dir}, and only that is uploaded; name a directory that holds it"
        raise SpecError("submit", [f"--working-dir: {fault}"])
    return ("flops_fit_ray.run", str(spec.relative_to(working_dir)), *options)
