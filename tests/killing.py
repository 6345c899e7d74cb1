"""`python -m tests.killing DIRECTORY [TIMES [SEED]]`: a sweep killed before operations on files, and gone on with.

It is killed before each of its operations, or, with a seed, before some that are drawn of every kind.

Every sweep runs in a forked child of a process that has imported torch and never used it: torch does not survive a
fork after its first backward pass.
"""

from __future__ import annotations

import errno
import gc
import importlib
import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from flops_fit_ray.errors import DirectoryError, FlopsFitError, StorageError
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.training.step.device import device_name, peak_flops
from tests.faulty import KILL, Faults, drawn_points
from tests.parts import spec_of, user_parts_of
from tests.records import recorded
from tests.sweeps import grow_sweep


def one_run() -> SweepSpec:
    """A sweep of one experiment, with checkpoints on the way."""
    train = {"batch_size": 8, "lr": 1e-2}
    return spec_of(budgets=[{"flops": 3e4, "sizes": [4]}], checkpoint={"steps": 6}, train=train)


def run_here(root: StoragePath) -> Sweep:
    """What `run` does, but for Ray and the report."""
    spec = one_run()
    with Ledger(SweepPaths(root)).writer():
        SweepPaths(root).remove_strays()
        return grow_sweep(root, spec, user_parts_of(spec))


def strays(root: Path) -> list[str]:
    """Files that were never finished."""
    return [p.name for p in root.rglob("*.tmp")]


def num_attempts(root: StoragePath, keys: Any) -> dict[str, int]:
    """How often experiments were started."""
    return {key: SweepPaths(root).num_attempts(key) for key in keys}


def in_a_child(work: Callable[[], object]) -> int:
    """Do something in a forked process. Returns its exit status, negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def operations_of(root: Path) -> list[str]:
    """The operations on files of a sweep that nothing happens to."""
    with Faults(root).armed() as faults:
        assert run_here(root).complete and not strays(root)
    return faults.operations


def _whole(root: Path) -> None:
    (root / "operations").write_text(json.dumps(operations_of(root)))


def _killed(root: Path, n: int) -> None:
    with Faults(root, n, KILL).armed():
        run_here(root)


def _unreadable(root: Path, completed: int) -> list[str]:
    """What readers say, who can come at any moment."""
    if not (SweepPaths(root).plan.exists() and SweepPaths(root).spec.exists()):
        return []
    try:
        good = open_sweep(root).counts["completed"] == completed
    except FlopsFitError as e:
        return [f"a reader fails: {e}"]
    return [] if good else ["a recorded result cannot be read"]


def wrong_after(root: Path, n: int, sha256: str) -> list[str]:
    """Kill a sweep before its n-th operation on files, go on with it, and say what did not hold."""
    found = []
    if in_a_child(lambda: _killed(root, n)) not in (-9, 0):  # 0: there were fewer operations this time
        found.append("failed of itself")
    before = recorded(root)
    attempts = num_attempts(root, before)
    if len(strays(root)) > 1:
        found.append(f"strays: {strays(root)}")
    found += _unreadable(root, len(before))
    if in_a_child(lambda: run_here(root)) != 0:
        return [*found, "does not go on"]
    return [*found, *wrong_in_the_end(root, sha256, before, attempts)]


def wrong_in_the_end(root: Path, sha256: str, before: dict[str, bytes], attempts: dict[str, int]) -> list[str]:
    """What does not hold of a sweep that was gone on with: `before` and `attempts` are those of before."""
    found, sweep = [], open_sweep(root)
    if not (sweep.complete and sweep.results_sha256 == sha256):
        found.append("another result")
    if not before.items() <= recorded(root).items():
        found.append("a recorded result was changed")
    if attempts != num_attempts(root, before):
        found.append("a completed experiment was started again")
    if strays(root):
        found.append(f"strays in the end: {strays(root)}")
    return found


def failed_at(root: Path, n: int, sha256: str, dice: random.Random) -> list[str]:
    """Let the n-th operation on files of a sweep fail, go on with it, and say what did not hold."""
    error, found, complete = dice.choice([errno.EIO, errno.ENOSPC, errno.EACCES]), [], False
    try:
        with Faults(root, n, error).armed():
            complete = run_here(root).complete
    except FlopsFitError as e:
        if not (isinstance(e, StorageError | DirectoryError) and str(root) in str(e)):
            found.append(f"another error: {e}")
    before = recorded(root)
    if complete and not before:
        found.append("complete without its record")
    if len(strays(root)) > 1:
        found.append(f"strays: {strays(root)}")
    attempts = num_attempts(root, before)
    run_here(root)
    return [*found, *wrong_in_the_end(root, sha256, before, attempts)]


def main(directory: Path, times: int = 1, seed: int | None = None) -> None:
    """Kill at all points so many times each, or at those drawn with `seed`, and print a JSON object about it."""
    for name in ("filelock", "pyarrow.parquet", "torch._dynamo"):  # once here, instead of in every child
        importlib.import_module(name)
    pd.DataFrame({"a": [1]}).to_parquet(io.BytesIO())  # whatever else pandas imports when it is used
    torch.set_num_threads(1)  # threads do not survive a fork
    peak_flops(device_name(torch.device("cpu")), "cpu", "fp32", 1)  # measured once, here
    gc.collect()
    gc.freeze()  # else each child copies all that is imported when it collects garbage
    whole = directory / "whole"
    assert in_a_child(lambda: _whole(whole)) == 0
    sha256 = open_sweep(whole).results_sha256
    operations = json.loads((whole / "operations").read_text())
    violations = []
    points = list(range(1, len(operations) + 1)) if seed is None else drawn_points(operations, seed)
    for n in points:
        for _ in range(times):
            root = directory / str(n)
            violations += [f"{n} {operations[n - 1]}: {words}" for words in wrong_after(root, n, sha256)]
            shutil.rmtree(root)
    print(json.dumps({"points": len(points), "times": times, "violations": violations}))  # noqa: T201 - its output


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), *map(int, sys.argv[2:]))
