"""Rounds of Ray Tune: a new Tuner each, or the last one restored if its state on disk is complete.

Tune saves its state now and then with a plain open-and-write, so it is checked before it is restored. What remains to
be trained is decided by the ledger alone: a round that cannot be restored costs only the start of a new one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.paths import SCHEMA_VERSION, SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, is_remote, pyarrow_location

if TYPE_CHECKING:
    from ray import tune

    from flops_fit_ray.engine.dispatch import Dispatcher
    from flops_fit_ray.engine.trainable import TrialContext

FINISHED = {"TERMINATED", "ERROR"}  # Tune's words for trials that it does not resume
CLOCK_SECONDS = 60.0  # by which clocks of machines may differ


@dataclass(frozen=True, kw_only=True)
class Round:
    """Settings of a Tuner. One with other settings is not restored."""

    root: str  # absolute, as in the state of Tune's trials
    slots: int
    resources: Mapping[str, float]
    workers: int
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as in the file beside Tune's state."""
        return {
            "schema_version": SCHEMA_VERSION,
            "root": self.root,
            "slots": self.slots,
            "resources": dict(self.resources),
            "workers": self.workers,
            "versions": dict(self.versions),
        }


def this_round(paths: SweepPaths, slots: Slots) -> Round:
    """Return the settings of a round that starts now."""
    from flops_fit_ray.engine.trainable import versions

    return Round(
        root=str(paths.root),
        slots=slots.count,
        resources=slots.resources,
        workers=slots.workers,
        versions=versions(),
    )


def restorable(paths: SweepPaths, now: Round, can_go_on: Callable[[str], bool]) -> StoragePath | None:
    """Return the newest round's directory if its state is complete and its trials are still wanted; else None.

    Args:
        can_go_on: tells of an experiment's key whether it is unfinished in the plan or has an outcome.
    """
    newest = paths.newest_round()
    if newest is None:
        return None
    note = read_json(paths.round_note(newest)) or {}
    if {name: note.get(name) for name in now.to_json()} != now.to_json():
        return None
    try:
        if hashlib.sha256((newest / "tuner.pkl").read_bytes()).hexdigest() != note.get("tuner_sha256"):
            return None
        unfinished = _unfinished(newest)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return newest if unfinished and all(map(can_go_on, unfinished)) else None


def _unfinished(directory: StoragePath) -> list[str]:
    """Return the keys of the trials that Tune would resume, by its newest state.

    Raises:
        ValueError, KeyError, TypeError, OSError: the state is incomplete.
    """
    state_file = max(directory.glob("experiment_state-*.json"), key=lambda path: path.name)  # as Tune chooses
    if _written_at(state_file) > time.time() + CLOCK_SECONDS:
        raise ValueError("its date is in the future, so it would hide every later state")
    state = json.loads(state_file.read_bytes())
    trials = [json.loads(trial) for trial, _ in state["trial_data"]]
    if not any(directory.glob("searcher-state-*")):
        raise ValueError("the searcher's state is missing")
    return [str(trial["config"]["key"]) for trial in trials if trial["status"] not in FINISHED]


def _written_at(state_file: StoragePath) -> float:
    stamp = state_file.stem.removeprefix("experiment_state-")
    return time.mktime(time.strptime(stamp, "%Y-%m-%d_%H-%M-%S"))


def _amounts(slots: Slots) -> Any:
    """Return what Tune reserves for a trial, in a form that it takes."""
    from ray import tune

    if slots.shares:
        return _part_of_a_gpu
    if slots.workers == 1:
        return dict(slots.resources)
    # One bundle for the trial itself, and one for each of the other workers of its experiment
    return tune.PlacementGroupFactory(slots.bundles, strategy="PACK")


def _part_of_a_gpu(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    from ray import tune

    return tune.PlacementGroupFactory([{"CPU": 0, "GPU": config["share"]}])


def make_tuner(
    dispatcher: Dispatcher, job: TrialContext, paths: SweepPaths, slots: Slots, *, restore: bool
) -> tuple[tune.Tuner, bool]:
    """Return a Tuner over the dispatcher's experiments, and whether it is the last one restored.

    Args:
        restore: restore the last one if its state is complete.
    """
    from ray import tune

    from flops_fit_ray.engine.searcher import ExperimentSearcher
    from flops_fit_ray.engine.trainable import ExperimentTrainable

    trainable = tune.with_resources(tune.with_parameters(ExperimentTrainable, context=job), _amounts(slots))
    now = this_round(paths, slots)
    # In an object store Tune's state is there to be looked at; sweeps resume from the ledger
    restore = restore and not is_remote(paths.root)
    kept = restorable(paths, now, dispatcher.can_go_on) if restore else None
    with ExperimentSearcher.serving(dispatcher):
        if kept is not None:
            try:
                return tune.Tuner.restore(str(kept), trainable=trainable, resume_unfinished=True), True
            except Exception:  # noqa: BLE001, S110 - a new round needs nothing of the damaged state
                pass
        name = f"round-{time.time_ns()}"
        filesystem, tune_name = pyarrow_location(paths.tune)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=ExperimentSearcher(),
                num_samples=-1,  # until the searcher has finished
                reuse_actors=True,
                max_concurrent_trials=slots.count,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=tune_name,
                storage_filesystem=filesystem,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the ledger holds what matters
                failure_config=tune.FailureConfig(max_failures=0),  # the dispatcher decides what is retried
            ),
        )
    if is_remote(paths.root):
        return tuner, False
    directory = paths.tune / name
    digest = hashlib.sha256((directory / "tuner.pkl").read_bytes()).hexdigest()
    write_json(paths.round_note(directory), {**now.to_json(), "tuner_sha256": digest})
    return tuner, False
