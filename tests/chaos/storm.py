"""Signals at random to all that a sweep is made of, and the last line that was said run again each time."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from flops_fit_ray.engine.processes import descendants
from flops_fit_ray.errors import EXIT_DONE, EXIT_INTERRUPTED
from tests.chaos import Driver, Row, Watched, children_of, finish, make_project, until_gone

SETTLED = 0.75  # share of drivers that are left alone until they train; the others are struck while they start
PAUSE = 0.05  # of a training step: an experiment takes seconds
DEATHS_IN_A_ROW = 100  # of one experiment: a storm proves nothing about an experiment that kills its worker
ENDS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGSEGV", "SIGHUP")
SIGNALS = {  # to each kind of process; SIGTERM twice as a scheduler sends it
    "parent": (*ENDS[:3], "SIGTERM", "SIGUSR1", "SIGHUP"),
    "driver": (*ENDS, "SIGABRT", "SIGBUS"),
    "worker": (*ENDS, "SIGABRT", "SIGKILL", "SIGKILL"),
    "raylet": ("SIGKILL", "SIGTERM", "SIGSEGV"),
    "gcs_server": ("SIGKILL", "SIGTERM", "SIGSEGV"),
    "agent": ("SIGKILL", "SIGTERM"),
}
WEIGHTS = {"parent": 2, "driver": 3, "worker": 9, "raylet": 2, "gcs_server": 2, "agent": 1}


def storm(where: Path, kills: int, sha256: str, dice: random.Random) -> Row:
    """F40: one process after the other is sent a signal at random; when the sweep has ended its last line is run."""
    row, counts, codes = Row("F40 a storm of signals"), Counter[str](), Counter[int]()
    where.mkdir()
    pace = where / "pace"
    spec, number = make_project(where / "project", pace), 0
    while row.times < kills:
        root = where / f"storm{number}"
        number += 1
        watched, line = Watched(root, row), _line(spec, root)
        pace.write_text(str(PAUSE))
        while row.times < kills:
            driver = Driver(spec, root, line=line)
            family, code, last = _struck(driver, row, counts, kills, dice)
            codes[code] += 1
            left = until_gone(family, 120)
            row.expect(not left, f"{last}: {[children_of(os.getpid()).get(pid) for pid in left]} outlive it")
            row.expect(code in (EXIT_DONE, EXIT_INTERRUPTED, -signal.SIGKILL), f"{last}: ended with {code}")
            said = [text for text in driver.said if text.strip()]
            row.expect(not any("Traceback" in text for text in said), f"{last}: a traceback")
            watched.look()
            if code == EXIT_DONE:
                break
            if code == EXIT_INTERRUPTED:
                line = said[-1]
                row.expect(" run " in line and "--slots 1" in line, f"{last}: its last line is {line!r}")
        pace.write_text("0")
        finish(Driver(spec, root, line=line), row, watched, sha256)
        print(f"{row.times} signals, {number} sweeps, {len(row.violations)} violations", flush=True)  # noqa: T201 - its output
    row.notes.append(f"{number} sweeps; ends: {', '.join(f'{n} x {code}' for code, n in sorted(codes.items()))}")
    row.notes.append(", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    return row


def _line(spec: Path, root: Path) -> str:
    options = ["--output", str(root), "--slots", "1", "--set", f"max_retries={DEATHS_IN_A_ROW}"]
    return shlex.join([sys.executable, "-m", "flops_fit_ray", "run", str(spec), *options])


def _struck(
    driver: Driver, row: Row, counts: Counter[str], kills: int, dice: random.Random
) -> tuple[set[int], int, str]:
    """Send signals until a driver ends. Returns its processes that were seen, its exit code, and the last signal."""
    family, last = {driver.process.pid}, "nothing"
    if dice.random() < SETTLED:
        signs = driver.root.glob
        driver.until(lambda: any(_is_new(path, driver) for path in signs("experiments/*/progress.json")), 120)
    while not driver.ended() and row.times < kills:
        time.sleep(min(dice.expovariate(1 / 1.5), 10.0))
        family |= descendants(driver.process.pid)
        kinds = _kinds(driver)
        if driver.ended() or not kinds:
            break
        kind = dice.choices(list(kinds), [WEIGHTS[kind] for kind in kinds])[0]
        name, pid = dice.choice(SIGNALS[kind]), dice.choice(kinds[kind])
        if kind == "parent" and name != "SIGKILL" and not _catches(pid, getattr(signal, name)):
            continue  # its interpreter is just being started: no code of ours runs yet
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, name))
            row.times += 1
            last = f"{name} to the {kind}"
            counts[f"{kind} {name}"] += 1
        if kind not in ("worker", "agent"):
            break
    return family, driver.wait(240), last


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal now."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)
    return False


def _is_new(path: Path, driver: Driver) -> bool:
    with contextlib.suppress(OSError):  # it comes and goes
        return path.stat().st_mtime > driver.began
    return False


def _kinds(driver: Driver) -> dict[str, list[int]]:
    """The processes of a sweep by kind, as far as they have been started."""
    found: dict[str, list[int]] = {"parent": [driver.process.pid]}
    for pid, command in children_of(driver.process.pid).items():
        program = command.split(" ")[0]
        if "flops_fit_ray" in command and "ray::" not in program:
            kind = "driver"
        elif program.startswith("ray::") and "Agent" not in program:
            kind = "worker"
        else:
            kind = next((kind for kind in ("raylet", "gcs_server") if program.endswith(kind)), "agent")
        found.setdefault(kind, []).append(pid)
    return found
