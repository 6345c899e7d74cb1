"""Ways to die: each has an exit code of ours and a last line, and the line is pasted and gone on with."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flops_fit_ray.engine.processes import descendants
from flops_fit_ray.errors import EXIT_INTERRUPTED
from flops_fit_ray.sweep.directory import open_sweep
from tests.chaos import Driver, Row, Watched, children_of, finish, make_project, until_gone
from tests.hangs import HANG_SECONDS
from tests.records import recorded

KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Way:
    """A way to die, when it comes, and what is said."""

    name: str
    when: str  # importing, starting, running
    act: Callable[[Driver], None]
    why: str  # in the lines before the last; "" where nobody is left to say anything


def _to(number: int, *, group: bool = False) -> Callable[[Driver], None]:
    def act(driver: Driver) -> None:
        os.killpg(driver.process.pid, number) if group else os.kill(driver.process.pid, number)

    return act


def _to_driver(number: int) -> Callable[[Driver], None]:
    return lambda driver: os.kill(driver.pid, number)


def _to_ray(words: str) -> Callable[[Driver], None]:
    def act(driver: Driver) -> None:
        found = [pid for pid, command in children_of(driver.process.pid).items() if words in command.split(" ")[0]]
        os.kill(found[0], signal.SIGKILL)

    return act


def _twice(driver: Driver) -> None:
    driver.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    driver.process.send_signal(signal.SIGINT)


def _as_timeout_does(driver: Driver) -> None:
    driver.process.send_signal(signal.SIGTERM)
    os.killpg(driver.process.pid, signal.SIGTERM)


def _everything(driver: Driver) -> None:
    for pid in {driver.process.pid, *descendants(driver.process.pid)}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _exit_in_native_code(driver: Driver) -> None:
    (driver.root.parent / "exit").touch()


WAYS = (
    Way("SIGTERM while the user's code is imported", "importing", _to(signal.SIGTERM), "stopped by SIGTERM"),
    Way("SIGKILL of the driver then", "importing", _to_driver(signal.SIGKILL), "was killed by SIGKILL"),
    Way("`_exit(3)` of the user's code then", "importing", _exit_in_native_code, "ended with exit code 3"),
    Way("SIGTERM while Ray starts", "starting", _to(signal.SIGTERM), "stopped by SIGTERM"),
    Way("SIGINT to the group then", "starting", _to(signal.SIGINT, group=True), "stopped by SIGINT"),
    Way("SIGKILL of the driver then", "starting", _to_driver(signal.SIGKILL), "was killed by SIGKILL"),
    Way("SIGINT to the group (Ctrl-C)", "running", _to(signal.SIGINT, group=True), "stopped by SIGINT"),
    Way("SIGINT twice", "running", _twice, "stopped by SIGINT"),
    Way("SIGTERM (docker stop)", "running", _to(signal.SIGTERM), "stopped by SIGTERM"),
    Way("SIGTERM to it and its group (timeout)", "running", _as_timeout_does, "stopped by SIGTERM"),
    Way("SIGTERM to everything (scancel)", "running", _everything, "stopped by SIGTERM"),
    Way("SIGUSR1 to the group (Slurm)", "running", _to(signal.SIGUSR1, group=True), "stopped by SIGUSR1"),
    Way("SIGHUP (terminal closed)", "running", _to(signal.SIGHUP, group=True), "stopped by SIGHUP"),
    Way("SIGQUIT to the group (Ctrl-\\)", "running", _to(signal.SIGQUIT, group=True), "stopped by SIGQUIT"),
    Way("SIGKILL of the driver", "running", _to_driver(signal.SIGKILL), "was killed by SIGKILL"),
    Way("SIGSEGV of the driver", "running", _to_driver(signal.SIGSEGV), "crashed with SIGSEGV"),
    Way("SIGABRT of the driver", "running", _to_driver(signal.SIGABRT), "crashed with SIGABRT"),
    Way("SIGKILL of the head", "running", _to_ray("gcs_server"), "does not answer any more"),
    Way("SIGKILL of the raylet", "running", _to_ray("raylet"), "the raylet of this machine has died"),
    Way("SIGKILL of the parent", "running", _to(signal.SIGKILL), ""),
    Way("SIGKILL of the group (ray job stop)", "running", _to(signal.SIGKILL, group=True), ""),
)
IMPORTS = """
while os.path.exists({hold!r}):
    open({imported!r}, "w").close()
    time.sleep(0.05)
    if os.path.exists({leave!r}):
        os.unlink({leave!r})
        import ctypes
        ctypes.CDLL(None)._exit(3)
"""


def deaths(where: Path, sha256: str) -> Row:
    """F39: one sweep that dies in every way, and goes on each time by the last line that was said."""
    row = Row("F39 ways to die")
    pace, root, hold = where / "pace", where / "a sweep's results", where / "hold"
    spec, watched = make_project(where / "project", pace), Watched(root, row)
    with (spec.parent / "parts.py").open("a") as parts:
        parts.write(IMPORTS.format(hold=str(hold), imported=str(where / "imported"), leave=str(where / "exit")))
    line = shlex.join([sys.executable, "-m", "flops_fit_ray", "run", str(spec), "--output", str(root), "--slots", "1"])
    for way in WAYS:
        pace.write_text("0.1")
        hold.touch() if way.when == "importing" else hold.unlink(missing_ok=True)
        (where / "imported").unlink(missing_ok=True)
        driver = Driver(spec, root, line=line)
        row.expect(_comes_to(driver, way.when, where / "imported"), f"{way.name}: never came to {way.when}")
        told = len(row.violations)
        family, before = descendants(driver.process.pid), time.monotonic()
        names = children_of(driver.process.pid)
        way.act(driver)
        code = driver.wait(HANG_SECONDS)
        seconds = time.monotonic() - before
        hold.unlink(missing_ok=True)
        left = until_gone(family, 20 if way.why else 120)  # Ray's agents look for their parent now and then
        said = [text for text in driver.said if text.strip()]
        row.times += 1
        row.expect(code == (EXIT_INTERRUPTED if way.why else KILLED), f"{way.name}: ended with {code}: {said[-3:]}")
        row.expect(any(way.why in text for text in said[-4:]), f"{way.name}: another reason: {said[-4:]}")
        row.expect(not any("Traceback" in text for text in said), f"{way.name}: a traceback")
        row.expect(not left, f"{way.name}: {len(left)} processes outlive it: {[names.get(pid) for pid in left]}")
        if way.why:
            line = said[-1]
        row.expect(" run " in line and "--slots 1" in line, f"{way.name}: its last line is {line!r}")
        if root.exists() and (root / "plan.json").exists():
            row.expect(open_sweep(root).command == line, f"{way.name}: status has {open_sweep(root).command!r}")
        watched.look()
        reason = next((text for text in reversed(said) if way.why and way.why in text), "-")
        done = len(recorded(root))
        for violation in row.violations[told:]:
            print(f"VIOLATION {violation}", flush=True)  # noqa: T201 - its output
        print(f"| {way.name} | {code} | {seconds:.1f} s | {reason} | {done} |", flush=True)  # noqa: T201 - its output
    pace.write_text("0")
    finish(Driver(spec, root, line=line), row, watched, sha256)
    return row


def _comes_to(driver: Driver, when: str, imported: Path) -> bool:
    """Wait until a driver is where it is to die."""
    if when == "importing":
        return driver.until(imported.exists, 120)
    if when == "starting":
        return driver.until(
            lambda: any("gcs_server" in command for command in children_of(driver.process.pid).values()), 120
        )
    # An experiment has given a sign of life
    signs = driver.root.glob
    return driver.until(
        lambda: any(path.stat().st_mtime > driver.began for path in signs("experiments/*/progress.json")), 120
    )
