"""Rounds of Ray Tune: one Tuner each, new, or the last one restored where its state on disk is provably whole.

Tune writes its state now and then, with a plain open-and-write; what it says is checked before it is taken up, and the
ledger decides in any case what is left. A round that cannot be restored costs nothing but the start of a new one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops_fit_ray.engine.resources import Slots, elsewhere
from flops_fit_ray.storage.atomic import read_file, read_json, write_json
from flops_fit_ray.storage.paths import SCHEMA_VERSION, SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, is_remote, pyarrow_location

if TYPE_CHECKING:
    from ray import tune

    from flops_fit_ray.engine._dispatch import Dispatcher
    from flops_fit_ray.engine._trainable import TrialContext

FINISHED = {"TERMINATED", "ERROR"}  # Tune's words for trials that it would not go on with
CLOCK_SECONDS = 60.0  # by which clocks may differ
# Experiments up to which Tune's state is kept. It has 16 KB of each, and is written whole every few seconds: half of
# the CPU time that Tune takes for an experiment of milliseconds, and a file of 160 MB for 10,000 of them.
MAX_STATE_EXPERIMENTS = 500


@dataclass(frozen=True, kw_only=True)
class Round:
    """Conditions that a Tuner was made for. One made for others is not restored."""

    root: str  # absolute: trials of Tune remember where they were
    slots: int
    resources: Mapping[str, float]
    workers: int
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in the note beside Tune's state."""
        return {
            "schema_version": SCHEMA_VERSION,
            "root": self.root,
            "slots": self.slots,
            "resources": dict(self.resources),
            "workers": self.workers,
            "versions": dict(self.versions),
        }


def this_round(paths: SweepPaths, slots: Slots) -> Round:
    """The round that would be begun now."""
    from flops_fit_ray.engine._versions import versions

    return Round(
        root=str(paths.root),
        slots=slots.count,
        resources=slots.resources,
        workers=slots.workers,
        versions=versions(),
    )


def restorable(paths: SweepPaths, now: Round, can_go_on: Callable[[str], bool]) -> StoragePath | None:
    """The newest round's directory, if its state is whole and of trials that are still wanted; else None.

    Args:
        can_go_on: whether an experiment, by its key, is open in the plan or has an outcome.
    """
    newest = paths.newest_round()
    if newest is None:
        return None
    note = read_json(paths.round_note(newest)) or {}
    if {name: note.get(name) for name in now.to_json()} != now.to_json():
        return None
    try:
        if hashlib.sha256(read_file(newest / "tuner.pkl")).hexdigest() != note.get("tuner_sha256"):
            return None
        unfinished = _unfinished(newest)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return newest if unfinished and all(map(can_go_on, unfinished)) else None


def _unfinished(directory: StoragePath) -> list[str]:
    """The keys of the trials that Tune would go on with, by its newest state.

    Raises:
        ValueError, KeyError, TypeError, OSError: it is not whole.
    """
    state_file = max(directory.glob("experiment_state-*.json"), key=lambda path: path.name)  # as Tune chooses
    if _written_at(state_file) > time.time() + CLOCK_SECONDS:
        raise ValueError("written in the future: it would hide every later one")
    state = json.loads(read_file(state_file))
    trials = [json.loads(trial) for trial, _ in state["trial_data"]]
    if not any(directory.glob("searcher-state-*")):
        raise ValueError("the searcher's state is missing")
    return [str(trial["config"]["key"]) for trial in trials if trial["status"] not in FINISHED]


def _written_at(state_file: StoragePath) -> float:
    stamp = state_file.stem.removeprefix("experiment_state-")
    return time.mktime(time.strptime(stamp, "%Y-%m-%d_%H-%M-%S"))


def _amounts(slots: Slots, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """Return the resources that Tune reserves for a trial, and on which nodes it does not."""
    # One bundle for the trial itself, and one for each of the other workers of its experiment
    bundles = [{"CPU": 0, "GPU": config["share"]}] if slots.shares else slots.bundles
    return _request(json.dumps(bundles), tuple(config.get("avoid", ())))


@functools.cache
def _request(bundles: str, avoid: tuple[str, ...]) -> tune.PlacementGroupFactory:
    """Return the same object for the same resources: Tune compares them a dozen times for each trial."""
    from ray import tune

    parts = json.loads(bundles)
    if not avoid:
        return tune.PlacementGroupFactory(parts, strategy="PACK")
    return tune.PlacementGroupFactory(parts, strategy="PACK", bundle_label_selector=[elsewhere(avoid)] * len(parts))


def make_tuner(
    dispatcher: Dispatcher, job: TrialContext, paths: SweepPaths, slots: Slots, *, restore: bool
) -> tuple[tune.Tuner, bool]:
    """A Tuner over what the dispatcher hands out, and whether it is the last one restored or a new one.

    Args:
        restore: whether the last one may be gone on with, where its state is whole.
    """
    from ray import tune

    from flops_fit_ray.engine._searcher import ErrorReader, ExperimentSearcher
    from flops_fit_ray.engine._trainable import ExperimentTrainable

    trainable = tune.with_resources(
        tune.with_parameters(ExperimentTrainable, context=job), functools.partial(_amounts, slots)
    )
    now = this_round(paths, slots)
    # In an object store its state is kept for people only: what restores from there is the ledger
    restore = restore and not is_remote(paths.root)
    kept = restorable(paths, now, dispatcher.can_go_on) if restore else None
    with ExperimentSearcher.serving(dispatcher):
        if kept is not None:
            try:
                return tune.Tuner.restore(str(kept), trainable=trainable, resume_unfinished=True), True
            except Exception:  # noqa: BLE001, S110 - whatever is wrong with Tune's state, a new round does without it
                pass
        name = f"round-{time.time_ns()}"
        filesystem, tune_name = pyarrow_location(paths.tune)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=ExperimentSearcher(),
                scheduler=ErrorReader(),  # type: ignore[no-untyped-call] # Ray leaves it untyped
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
                failure_config=tune.FailureConfig(max_failures=0),  # the dispatcher decides what is tried again
            ),
        )
    if is_remote(paths.root):
        return tuner, False
    directory = paths.tune / name
    digest = hashlib.sha256((directory / "tuner.pkl").read_bytes()).hexdigest()
    write_json(paths.round_note(directory), {**now.to_json(), "tuner_sha256": digest})
    return tuner, False
