"""The scenarios of `tests.chaos`, each a few times: real drivers, workers, nodes and heads, really killed."""

import random
from pathlib import Path

import pytest

from tests.chaos import (
    Row,
    broken_tune_states,
    contention,
    head_kills,
    node_kills,
    signals,
    uninterrupted,
    worker_kills,
    writer_kills,
)

pytestmark = [pytest.mark.slow]
ray = pytest.mark.ray


@pytest.fixture(scope="module")
def sha256(tmp_path_factory: pytest.TempPathFactory) -> str:
    return uninterrupted(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def dice() -> random.Random:
    return random.Random(1)


def held(row: Row) -> None:
    assert row.times and row.violations == [], row


def test_f3_a_killed_writer_leaves_nothing_that_cannot_be_read(tmp_path: Path) -> None:
    held(writer_kills(tmp_path, 100))


@ray
def test_f4_f8_killed_and_stopped_by_every_signal_it_goes_on(tmp_path: Path, sha256: str, dice: random.Random) -> None:
    held(signals(tmp_path, 1, sha256, dice, ("SIGUSR1 to the group", "SIGTERM to everything")))


@ray
def test_f5_a_killed_worker_goes_on_from_its_checkpoint(tmp_path: Path, sha256: str, dice: random.Random) -> None:
    held(worker_kills(tmp_path, 2, sha256, dice))


@ray
def test_f6_a_dead_node_is_nobodys_failure(tmp_path: Path, sha256: str, dice: random.Random) -> None:
    pytest.importorskip("ray.cluster_utils", reason="a helper of Ray's own tests, which this Ray does not have")
    held(node_kills(tmp_path, 1, sha256, dice))


@ray
def test_f7_a_driver_without_a_head_ends_and_says_how_to_go_on(tmp_path: Path, dice: random.Random) -> None:
    held(head_kills(tmp_path, 1, None, dice))


@ray
def test_f16_tune_is_restored_where_its_state_is_whole(tmp_path: Path, sha256: str) -> None:
    held(broken_tune_states(tmp_path, sha256, only=("whole",)))


def test_f17_a_second_driver_is_refused(tmp_path: Path) -> None:
    held(contention(tmp_path, 2))
