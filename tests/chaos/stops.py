"""Signals that ask a driver to end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

from flops_fit_ray.engine.processes import descendants
from flops_fit_ray.errors import EXIT_INTERRUPTED
from flops_fit_ray.sweep.directory import open_sweep
from tests import chaos
from tests.chaos import Driver, Row, Watched, finish, make_project, until_gone
from tests.hangs import HANG_SECONDS
from tests.records import recorded

STOPS = (
    "SIGINT",
    "SIGTERM",
    "SIGUSR1",
    "SIGTERM, then SIGKILL after 3 s",
    "SIGINT twice",
    "SIGTERM to the group",  # as `timeout` and terminals signal
    "SIGUSR1 to the group",
    "SIGTERM to everything",  # as systemd and scancel: Ray's processes too
)


def moved_ray(where: Path) -> dict[str, str]:
    """An environment with a directory that is too long for Ray's sockets: they are moved, and that is said."""
    return {"RAY_TMPDIR": str(where / ("long" * 20))}


def stop_by(driver: Driver, name: str, row: Row) -> float:
    """Stop a driver in the environment of `moved_ray` in one of the ways of `STOPS`. Returns the seconds it took."""
    started, number = time.monotonic(), getattr(signal, name.split(" ")[0].rstrip(","))
    rays = descendants(driver.process.pid)
    if "group" in name:
        os.killpg(driver.process.pid, number)
    else:
        driver.process.send_signal(number)
    for pid in rays if "everything" in name else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    if "KILL" in name and not driver.until(driver.ended, 3.0):
        os.killpg(driver.process.pid, signal.SIGKILL)
    if "twice" in name:
        time.sleep(0.2)
        driver.process.send_signal(signal.SIGINT)
    code = driver.wait(HANG_SECONDS)
    seconds = time.monotonic() - started
    row.times += 1
    killed = "SIGKILL" in name and code == -signal.SIGKILL
    row.expect(code == EXIT_INTERRUPTED or killed, f"{name}: ended with {code}")
    row.expect(not chaos.TIMED or seconds < 30, f"{name}: took {seconds:.0f} s")
    if code == EXIT_INTERRUPTED:
        last = driver.said[-1]
        row.expect(last.endswith(driver.options), f"{name}: its last line is {last!r}")
        row.expect(not any("Traceback" in line for line in driver.said), f"{name}: a traceback")
        row.expect(f"stopped by {number.name}" in driver.said, f"{name}: another reason: {driver.said[-3:]}")
        moved = any("Ray's temporary files go to /tmp" in line for line in driver.said)
        row.expect(moved, f"{name}: nobody said where Ray's files are")
    left = until_gone(rays)
    row.expect(not left, f"{name}: {len(left)} processes outlive it")
    return seconds


def signals(where: Path, times: int, sha256: str, dice: random.Random) -> Row:
    """F8: every signal that asks for an end: saved, exit 4 within 30 s, the last line is the command that goes on."""
    row = Row("F8 SIGINT, SIGTERM, SIGUSR1, job stop")
    slowest = dict.fromkeys(STOPS, 0.0)
    for i in range(times):
        root, spec = where / f"signals{i}", make_project(where)
        watched = Watched(root, row)
        for name in STOPS:
            driver, before = Driver(spec, root, pause=0.03, environment=moved_ray(where)), len(recorded(root))
            came = driver.until(lambda n=before + 1, root=root: len(recorded(root)) >= n)  # type: ignore[misc]
            time.sleep(dice.uniform(0.0, 1.0))
            if driver.ended() or not came:
                driver.wait(0)
                break
            slowest[name] = max(slowest[name], stop_by(driver, name, row))
            watched.look()
        finish(Driver(spec, root), row, watched, sha256)
        failures = [f.error for f in open_sweep(root).failures]
        row.expect(not failures, f"signals counted as failures of the user's: {failures}")
    row.notes += [f"{name} {seconds:.1f} s" for name, seconds in slowest.items()]
    return row
