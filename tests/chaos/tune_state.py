"""Ray Tune's own state, whole and damaged."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from flops_fit_ray.engine._rounds import FINISHED
from flops_fit_ray.errors import EXIT_INTERRUPTED
from tests.chaos import Driver, Row, Watched, children_of, finish, make_project, until_gone
from tests.hangs import HANG_SECONDS
from tests.records import recorded

OFTEN = {"TUNE_GLOBAL_CHECKPOINT_S": "0.5"}  # that Tune writes its state


def kill_with_tune_state(start: Callable[[], Driver], row: Row) -> Path:
    """Kill a driver that has written a whole state of Tune with open trials, and wait for its end."""
    for _ in range(3):  # a kill may come while Tune writes, or between two trials: then there is nothing to restore
        driver = start()
        driver.until(lambda root=driver.root: _open_trials(root) > 0)  # type: ignore[misc] # bound now
        family = set(children_of(driver.process.pid))
        driver.kill()
        row.expect(driver.wait(HANG_SECONDS) == EXIT_INTERRUPTED, f"a killed driver's last words: {driver.said[-3:]}")
        row.expect(driver.said[-1].endswith(driver.options), f"its last line is {driver.said[-1]!r}")
        until_gone(family)  # its workers see that it is gone
        row.times += 1
        if _open_trials(driver.root):
            break
    row.expect(_open_trials(driver.root) > 0, "no kill left a whole state of Tune with open trials")
    return driver.root


def num_rounds(root: Path) -> int:
    """How often Tune was started anew."""
    return len(list((root / "tune").glob("round-*")))


def _open_trials(root: Path) -> int:
    """By Tune's state; 0 where it is torn."""
    try:
        newest = max((root / "tune").glob("round-*"))
        trials = json.loads(max(newest.glob("experiment_state-*.json")).read_bytes())["trial_data"]
        return sum(json.loads(trial)["status"] not in FINISHED for trial, _ in trials)
    except (OSError, ValueError):
        return 0


def _halve(directory: Path) -> None:
    state = max(directory.glob("experiment_state-*.json"))
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])


def _empty(directory: Path) -> None:
    (directory / "tuner.pkl").write_bytes(b"")


def _postdate(directory: Path) -> None:
    later = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(time.time() + 3600))
    max(directory.glob("experiment_state-*.json")).rename(directory / f"experiment_state-{later}.json")


def _forget(directory: Path) -> None:
    for path in directory.glob("*state-*"):
        path.unlink()


TUNE_DAMAGE: dict[str, Callable[[Path], None]] = {
    "whole": lambda directory: None,
    "half": _halve,
    "empty": _empty,
    "future": _postdate,
    "gone": _forget,
}


def broken_tune_states(where: Path, sha256: str) -> Row:
    """F16: Tune's state whole, half, empty, of the future or gone: restored where it is whole, and never missed."""
    row = Row("F16 corrupt Tune state")
    root, spec = where / "tune", make_project(where)

    def started() -> Driver:
        shutil.rmtree(root, ignore_errors=True)
        driver = Driver(spec, root, pause=0.04, environment=OFTEN)
        driver.until(lambda: len(recorded(root)) >= 3)
        return driver

    kill_with_tune_state(started, row)
    for name, damage in TUNE_DAMAGE.items():
        copy = where / f"tune-{name}"
        shutil.copytree(root, copy, symlinks=True)
        if name == "whole":  # Tune's trials remember where they were
            shutil.rmtree(copy)
            shutil.copytree(root, where / "kept")
            copy = root
        (newest,) = (copy / "tune").glob("round-*")
        damage(newest)
        watched = Watched(copy, row)
        watched.look()
        finish(Driver(spec, copy), row, watched, sha256)
        rounds = num_rounds(copy)
        row.expect(rounds == (1 if name == "whole" else 2), f"{name}: {rounds} rounds of Tune")
        row.times += 1
        if name == "whole":
            shutil.rmtree(root)
            (where / "kept").rename(root)
    return row
