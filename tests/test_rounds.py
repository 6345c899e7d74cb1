"""F16 without Ray: Tune's state is taken up only where it is whole, of this sweep, and of trials still wanted."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flops_fit_ray.engine._rounds import Round, restorable
from flops_fit_ray.storage.atomic import write_json
from flops_fit_ray.storage.paths import SweepPaths

NOW = Round(root="/sweeps/one", slots=2, resources={"cpu": 1.0}, workers=1, versions={"ray": "2.60.0"})
STAMP = "2026-01-02_03-04-05"


def trial(key: str, status: str) -> list[str]:
    """As Tune writes one: JSON in JSON, and metadata that nobody reads here."""
    return [json.dumps({"trial_id": key, "config": {"key": key}, "status": status}), "{}"]


def make_round(root: Path, *trials: list[str], name: str = "round-1") -> Path:
    """A directory of Tune's with everything that a restore needs."""
    directory = root / "tune" / name
    directory.mkdir(parents=True)
    (directory / "tuner.pkl").write_bytes(b"a pickle that is only restored, never read here")
    digest = hashlib.sha256((directory / "tuner.pkl").read_bytes()).hexdigest()
    write_json(directory / "round.json", {**NOW.to_json(), "tuner_sha256": digest})
    state = {"trial_data": list(trials) or [trial("a", "TERMINATED"), trial("b", "RUNNING"), trial("c", "PENDING")]}
    (directory / f"experiment_state-{STAMP}.json").write_text(json.dumps(state))
    (directory / f"searcher-state-{STAMP}.pkl").write_text("{}")
    return directory


def wanted(key: str) -> bool:
    return key in ("a", "b", "c")


def test_a_whole_state_is_restored(tmp_path: Path) -> None:
    assert restorable(SweepPaths(tmp_path), NOW, wanted) is None  # there is none
    directory = make_round(tmp_path)
    assert restorable(SweepPaths(tmp_path), NOW, wanted) == directory
    newer = make_round(tmp_path, name="round-2")
    assert restorable(SweepPaths(tmp_path), NOW, wanted) == newer


def test_one_that_has_nothing_to_go_on_with_is_not(tmp_path: Path) -> None:
    make_round(tmp_path, trial("a", "TERMINATED"), trial("b", "ERROR"))
    assert restorable(SweepPaths(tmp_path), NOW, wanted) is None


def test_one_with_a_trial_that_nobody_wants_is_not(tmp_path: Path) -> None:
    make_round(tmp_path, trial("a", "RUNNING"), trial("of another plan", "RUNNING"))
    assert restorable(SweepPaths(tmp_path), NOW, wanted) is None


@pytest.mark.parametrize(
    "now",
    [
        replace(NOW, root="/moved"),
        replace(NOW, slots=3),
        replace(NOW, resources={"gpu": 1.0}),
        replace(NOW, versions={"ray": "2.61.0"}),
    ],
    ids=["moved", "slots", "resources", "versions"],
)
def test_one_made_for_something_else_is_not(now: Round, tmp_path: Path) -> None:
    make_round(tmp_path)
    assert restorable(SweepPaths(tmp_path), now, wanted) is None


def _later(directory: Path) -> None:
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(time.time() + 3600))
    (directory / f"experiment_state-{STAMP}.json").rename(directory / f"experiment_state-{stamp}.json")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "half a state": lambda d: (d / f"experiment_state-{STAMP}.json").write_text('{"trial_data": [["{'),
    "an empty state": lambda d: (d / f"experiment_state-{STAMP}.json").write_bytes(b""),
    "a newer torn one beside it": lambda d: (d / "experiment_state-2026-09-09_00-00-00.json").write_text("{"),
    "no state": lambda d: (d / f"experiment_state-{STAMP}.json").unlink(),
    "a state of the future": _later,
    "a state of another kind": lambda d: (d / f"experiment_state-{STAMP}.json").write_text('{"trial_data": [1]}'),
    "an empty tuner.pkl": lambda d: (d / "tuner.pkl").write_bytes(b""),
    "another tuner.pkl": lambda d: (d / "tuner.pkl").write_bytes(b"cos\nsystem\n"),
    "no tuner.pkl": lambda d: (d / "tuner.pkl").unlink(),
    "no searcher": lambda d: (d / f"searcher-state-{STAMP}.pkl").unlink(),
    "no note": lambda d: (d / "round.json").unlink(),
    "half a note": lambda d: (d / "round.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_one_is_not(damage: Callable[[Path], object], tmp_path: Path) -> None:
    damage(make_round(tmp_path))
    assert restorable(SweepPaths(tmp_path), NOW, wanted) is None
