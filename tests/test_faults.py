"""Killed at any moment, or with a disk that fails at any moment: nothing recorded is lost, nothing is run twice.

Without Ray: the driver's part, the worker's part and the ledger are the real ones, in one process.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from flops_fit_ray.storage.atomic import remove_strays
from flops_fit_ray.sweep.directory import open_sweep
from tests.faulty import CHANGING, drawn_points
from tests.hangs import HANG_SECONDS
from tests.killing import failed_at, operations_of
from tests.power_loss import DRAWN, tried

SEED = 0  # of the operations that are drawn; `tests.chaos` takes them all


@pytest.mark.slow
def test_f1_killed_before_any_operation_on_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.killing", str(tmp_path), "1", str(SEED)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANG_SECONDS).stdout)
    assert found["violations"] == [] and found["points"] > 20, f"seed {SEED}"


def test_f2_any_operation_on_files_fails(tmp_path: Path) -> None:
    """With an error that is drawn so as not to keep step with the operations of a write."""
    operations = operations_of(tmp_path / "whole")
    met = {name.split(" ")[0] for name in operations}
    assert len(operations) > 60 and met >= {"open", "write", *CHANGING} - {
        "rename"
    }  # only what is put aside is renamed
    sha256, dice = open_sweep(tmp_path / "whole").results_sha256, random.Random(SEED)
    for n in drawn_points(operations, SEED):
        assert failed_at(tmp_path / str(n), n, sha256, dice) == [], f"seed {SEED}, {n}: {operations[n - 1]}"


@pytest.mark.slow
def test_f28_power_is_lost_at_an_fsync(tmp_path: Path) -> None:
    found = tried(tmp_path, SEED)
    if found is None:
        pytest.skip("no C compiler for the shim that records what is written")
    assert found["violations"] == [] and found["states"] == DRAWN, f"seed {SEED}"


def test_strays_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".a.1.tmp").touch()
    (tmp_path / "b.tmp").touch()
    remove_strays(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["b.tmp"]
