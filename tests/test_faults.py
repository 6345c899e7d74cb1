"""Killed at any moment, or with a disk that fails at any moment: nothing recorded is lost, nothing is run twice.

Without Ray: the driver's part, the worker's part and the ledger are the real ones, in one process.
"""

import errno
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from flops_fit_ray.errors import DirectoryError, FlopsFitError, StorageError
from flops_fit_ray.storage.atomic import remove_strays
from tests.faulty import Faults
from tests.killing import num_attempts, run_here, strays
from tests.records import recorded


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """The fingerprint of a sweep that nothing happened to, and its operations on files."""
    root = tmp_path_factory.mktemp("whole")
    with Faults(root).armed() as faults:
        sweep = run_here(root)
    assert sweep.complete and not strays(root)
    return sweep.results_sha256, faults.operations


@pytest.mark.slow
def test_f1_killed_before_any_operation_on_files(tmp_path: Path) -> None:
    """Before a third of them, drawn; `tests.chaos` takes them all."""
    command = [sys.executable, "-m", "tests.killing", str(tmp_path), "1", "35"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)
    assert found["violations"] == [] and found["points"] == 35


@pytest.mark.slow
def test_f2_any_operation_on_files_fails(whole: tuple[str, list[str]], tmp_path: Path) -> None:
    """Each of them once, with an error that is drawn so as not to keep step with the operations of a write."""
    sha256, operations = whole
    assert len(operations) > 60
    dice = random.Random(0)
    for n, name in enumerate(operations, 1):
        root, error = tmp_path / str(n), dice.choice([errno.EIO, errno.ENOSPC, errno.EACCES])
        complete = False
        try:
            with Faults(root, n, error).armed():
                complete = run_here(root).complete
        except FlopsFitError as e:
            assert isinstance(e, StorageError | DirectoryError), (n, name)
            assert str(root) in str(e), (n, name, e)
        before = recorded(root)
        assert bool(before) >= complete, (n, name)  # never done without its record
        assert len(strays(root)) <= 1, (n, name)
        attempts = num_attempts(root, before)
        sweep = run_here(root)
        assert sweep.complete and sweep.results_sha256 == sha256, (n, name)
        assert before.items() <= recorded(root).items() and attempts == num_attempts(root, before), (n, name)
        assert not strays(root), (n, name)


def test_strays_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".a.1.tmp").touch()
    (tmp_path / "b.tmp").touch()
    remove_strays(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["b.tmp"]
