"""Operations on files that fail or are the last ones, and the lock of a directory."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flops_fit_ray.sweep.directory import open_sweep
from tests import chaos
from tests.chaos import Driver, Row, make_project
from tests.hangs import HANG_SECONDS
from tests.power_loss import tried


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, and what it said of the one before."""

    pid: int
    said: str


@contextlib.contextmanager
def holding(root: Path) -> Iterator[Holder]:
    """A process that holds the lock of a sweep directory and is killed in the end."""
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom flops_fit_ray.storage.paths import SweepPaths\n"
        "from flops_fit_ray.ledger import Ledger\n"
        "with Ledger(SweepPaths(Path(sys.argv[1]))).writer() as dead:\n    print(dead, flush=True)\n    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(root)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        try:
            yield Holder(owner.pid, owner.stdout.readline())
        finally:
            owner.kill()


def contention(where: Path, times: int) -> Row:
    """F17: a second driver is refused in under 5 s with host and pid, also through a symlink; not by a dead one."""
    row = Row("F17 two drivers, stale lock")
    root, spec, slowest = where / "locked", make_project(where), 0.0
    root.mkdir()
    link = where / "link"
    link.symlink_to(root)
    before: int | None = None
    for i in range(times):
        with holding(root) as owner:
            row.expect(
                before is None or f"process {before} on" in owner.said,
                f"the dead owner was not recognised: {owner.said!r}",
            )
            started = time.monotonic()
            second = Driver(spec, link if i % 2 else root)
            code = second.wait(HANG_SECONDS)
            slowest = max(slowest, time.monotonic() - started)
            row.times += 1
            text = "\n".join(second.said)
            row.expect(code == 2 and f"process {owner.pid} on" in text, f"the second one: {code}, {text[-200:]!r}")
        before = owner.pid
    row.expect(not chaos.TIMED or slowest < 5, f"took {slowest:.1f} s")
    row.notes.append(f"slowest refusal {slowest:.1f} s")
    return row


def _apart(module: str, *arguments: object) -> dict[str, Any]:
    """What a module of the tests finds in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def file_kills(where: Path, times: int) -> Row:
    """F1: a sweep without Ray is killed before each of its operations on files."""
    found = _apart("tests.killing", where / "killing", times)
    return Row(
        "F1 SIGKILL between durable writes",
        times=found["points"] * found["times"],
        violations=found["violations"],
        notes=[f"{found['points']} points"],
    )


def power_losses(where: Path) -> Row:
    """F28: power is lost at each fsync of a sweep without Ray, and what was not fsynced in each of several ways."""
    row = Row("F28 power loss")
    (where / "power").mkdir()
    found = tried(where / "power")
    if found is None:
        row.notes.append("no C compiler: not tried")
    else:
        row.times, row.violations = found["states"], found["violations"]
        row.notes.append(f"{found['fsyncs']} fsyncs among {found['operations']} operations")
    return row


def writer_kills(where: Path, times: int) -> Row:
    """F3: a process that does nothing but write into the ledger, killed at random moments."""
    found = _apart("tests.writing", where / "writing", times)
    return Row(
        "F3 SIGKILL of a ledger writer",
        times=found["kills"],
        violations=found["violations"],
        notes=[f"{found['results']} results written meanwhile"],
    )


def file_faults(where: Path) -> Row:
    """F2: each operation on files of a sweep without Ray fails once."""
    from tests.killing import failed_at, operations_of

    row, dice, whole = Row("F2 a file operation fails"), random.Random(0), where / "failing" / "whole"
    operations = operations_of(whole)
    sha256 = open_sweep(whole).results_sha256
    for n, name in enumerate(operations, 1):
        row.violations += [f"{n} {name}: {words}" for words in failed_at(whole.with_name(str(n)), n, sha256, dice)]
        row.times += 1
    return row
