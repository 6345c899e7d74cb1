"""`python -m tests.chaos [--minutes N] [--only NAME]...`: everything that can be killed, killed again and again."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests import chaos
from tests.chaos import Driver, Row, alive, children_of, make_project, uninterrupted
from tests.chaos.clusters import mixed_cluster
from tests.chaos.deaths import deaths
from tests.chaos.files import contention, file_faults, file_kills, power_losses, writer_kills
from tests.chaos.kills import driver_kills, head_kills, node_kills, worker_kills
from tests.chaos.stops import signals
from tests.chaos.storm import storm
from tests.chaos.tune_state import broken_tune_states
from tests.records import recorded


def soak(where: Path, experiments: int) -> Row:
    """F26: many short experiments: memory, files and processes do not pile up."""
    row = Row("F26 soak")
    root = where / "soak"
    sizes = list(range(1, 17))
    budgets = [{"flops": 2e4 * 1.02**i, "sizes": sizes} for i in range(experiments // len(sizes) + 1)]
    spec = make_project(where)
    driver = Driver(spec, root, "--set", f"budgets={json.dumps(budgets)}", "--set", "grid.trunk=false", pause=0.0)
    readings: list[tuple[int, int]] = []
    for share in (0.25, 0.95):
        driver.until(lambda n=share * experiments: len(recorded(root)) >= n, 600)  # type: ignore[misc] # bound now
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{driver.pid}/status").read_text()
            rss = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024
            readings.append((rss, len(list(Path(f"/proc/{driver.pid}/fd").iterdir()))))
        if share > 0.9:
            zombies = [
                pid for pid in children_of(driver.process.pid) if Path(f"/proc/{pid}").exists() and not alive([pid])
            ]
            row.expect(not zombies, f"{len(zombies)} zombies")
    code = driver.wait(300)
    row.times = len(recorded(root))
    row.expect(code in (0, 1) and row.times == len(budgets) * len(sizes), f"ended with {code} after {row.times}")
    row.expect(len(readings) == 2, "the driver ended too soon to be read")
    if len(readings) == 2:
        (rss_0, files_0), (rss_1, files_1) = readings
        row.expect(rss_1 - rss_0 < 50 and files_1 - files_0 < 10, "memory or files grow")
        row.notes.append(f"driver {rss_0} -> {rss_1} MB, {files_0} -> {files_1} open files")
    return row


def scenarios(where: Path, dice: random.Random) -> dict[str, Callable[[], Row]]:
    """The long run of each, by the number of its fault."""
    sha256 = uninterrupted(where / "plain")
    return {
        "F3": lambda: writer_kills(where, 5000),
        "F17": lambda: contention(where, 50),
        "F16": lambda: broken_tune_states(where, sha256),
        "F7": lambda: head_kills(where, 5, sha256, dice),
        "F6": lambda: node_kills(where, 10, sha256, dice),
        "F5": lambda: worker_kills(where, 50, sha256, dice),
        "F26": lambda: soak(where, 200),
        "F4": lambda: driver_kills(where, 20, 5, sha256, dice),
        "F39": lambda: deaths(where / "deaths", sha256),
        "F8": lambda: signals(where, 10, sha256, dice),
        "F1": lambda: file_kills(where, 20),
        "F2": lambda: file_faults(where),
        "F28": lambda: power_losses(where),
        "F41": lambda: mixed_cluster(where / "mixed", sha256),
        "F40": lambda: storm(where / "storm", 200, sha256, dice),
    }


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = ["| fault | times | violations | minutes | notes |", "|---|---|---|---|---|"]
    for row in rows:
        notes = "; ".join([*row.violations[:3], *row.notes[-3:]])
        lines.append(f"| {row.name} | {row.times} | {len(row.violations)} | {row.seconds / 60:.1f} | {notes} |")
    return "\n".join(lines)


def main() -> int:
    """Run scenarios until they are done or the time is over, and print the table after each."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=90.0, help="begin nothing new after so long")
    parser.add_argument("--only", action="append", help="F1, F3, F4, ...; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the table here")
    asked = parser.parse_args()
    chaos.TIMED = True
    rows: list[Row] = []
    deadline = time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory(prefix="chaos") as where:
        for name, run in scenarios(Path(where), random.Random(asked.seed)).items():
            if (asked.only and name not in asked.only) or time.monotonic() > deadline:
                continue
            started = time.monotonic()
            row = run()
            row.seconds = time.monotonic() - started
            rows.append(row)
            print(table([row]).splitlines()[-1], flush=True)  # noqa: T201 - its output
            if asked.out:
                asked.out.write_text(table(rows) + "\n")
    return 1 if any(row.violations for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
