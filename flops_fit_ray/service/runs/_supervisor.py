"""Supervisor of a local run: `python -m flops_fit_ray.service.runs._supervisor DIRECTORY LOG WORD...`.

The parent process of the run. It records how the run ended even while the service is down.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from flops_fit_ray.service.paths import StartPaths
from flops_fit_ray.storage.atomic import write_json


def main(directory: Path, log: Path, arguments: list[str]) -> int:
    """Run the command to its end; its output goes to `log`."""
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # meant for the run, not for its supervisor
        signal.signal(name, signal.SIG_IGN)
    paths = StartPaths(directory)
    if paths.ended.exists():  # stopped before it began, or too late
        return 0
    with log.open("ab") as out:
        log_begins = out.tell()
        child = subprocess.Popen(  # noqa: S603 - arguments made by the service
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            preexec_fn=_hears,
        )
    note = {
        "pid": child.pid,
        "born": start_ticks(child.pid),
        "keeper": os.getpid(),
        "keeper_born": start_ticks(os.getpid()),
        "log_begins": log_begins,
    }
    write_json(paths.process, note)
    if paths.stop.exists():  # requested before process.json was written
        child.terminate()
    code = child.wait()
    write_json(paths.ended, {"exit_code": code, "at": time.time()})
    return 0


def _hears() -> None:
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)


def start_ticks(pid: int) -> int | None:
    """Return when a process began, in clock ticks since the machine booted; None where it has ended.

    A later process of the same pid has another start. A clock that is set anew does not change it.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        since_boot = process.create_time() - psutil.boot_time()
    except (psutil.Error, ValueError, OverflowError):  # the last two: no number of a process
        return None
    return round(since_boot * os.sysconf("SC_CLK_TCK"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
