"""`python -m tests.writing DIRECTORY KILLS`: a process that does nothing but write into a ledger, killed at random."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from flops_fit_ray.ledger import Ledger, Progress
from flops_fit_ray.storage.atomic import read_json
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from tests.records import RESULT


def write_for_ever(root: Path, first: int) -> None:
    """Results, progress and a log line, one after the other."""
    ledger = Ledger(SweepPaths(root))
    number = first
    while True:
        key = f"{number:08d}"
        ledger.begin_attempt(key)
        ledger.record_progress(
            Progress(key=key, tokens_seen=1, tokens=2, train_loss=1.0, host="h", pid=1, updated_at=time.time())
        )
        ledger.record_event(key, "a line", level="info")
        ledger.record_result(replace(RESULT, key=key, loss=1.0 + number))
        number += 1


def check(root: Path, checked: set[str], violations: list[str]) -> int:
    """Read all that is new. Returns the highest number that was begun."""
    paths, highest = SweepPaths(root), -1
    for key in paths.begun_keys() - checked:
        highest = max(highest, int(key))
        for path in local_path(paths.experiments / key).rglob("*.json"):
            if read_json(path) is None:
                violations.append(f"{path} cannot be read")
        result = Ledger(paths).result(key)
        if paths.result(key).exists() and (result is None or result.loss != 1.0 + int(key)):
            violations.append(f"{key}: a wrong result")
        checked.add(key)
    return highest


def main(root: Path, kills: int) -> None:
    """Kill, look, and print a JSON object about it."""
    dice, violations, checked, first = random.Random(0), [""][:0], set[str](), 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            write_for_ever(root, first)
        time.sleep(dice.uniform(0.0, 0.025))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        first = max(first, check(root, checked, violations) + 1)
    results = sum(1 for _ in root.glob("experiments/*/result.json"))
    print(json.dumps({"kills": kills, "violations": violations, "results": results}))  # noqa: T201 - its output


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]))
