"""Go back to a checkpoint that was named: the next run of its experiment resumes there. Nothing is deleted for it.

Experiments resume from the newest checkpoint in their directory, and begin at the trunk of their parent. So what is
newer is moved aside, and a checkpoint that lies elsewhere (the experiment's own trunk, what was set aside before) is
copied in. Once that is done no run has to know of it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flops_fit_ray import formatting as fmt
from flops_fit_ray.errors import SpecError
from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.planning import Experiment, Plan
from flops_fit_ray.storage.atomic import is_missing, open_file, read_json, sha256_of, storage_error, whole_file
from flops_fit_ray.storage.paths import CheckpointPaths, SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, check_store_answers

OPTION = "--from-checkpoint"
SHOWN = 8  # checkpoints in a refusal
_NAME = re.compile(r"([0-9a-f]{8,64})(?:@|-[ct])([0-9]{1,10})")  # KEY@STEP, or the id that the service gives it


@dataclass(frozen=True)
class CheckpointName:
    """The name of a checkpoint: that of its experiment, and the optimizer step that it was written after."""

    key: str
    step: int

    def __str__(self) -> str:
        return f"{self.key}@{self.step}"


def named_checkpoint(root: StoragePath, text: str) -> CheckpointName:
    """Return the checkpoint of a sweep directory that a text names: KEY@STEP, or an id of the service.

    Raises:
        SpecError: it names none, or the directory has no such checkpoint; those that are there are named.
        DirectoryError: an object store does not answer.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        why = "final weights are no checkpoint: give" if text.endswith("-w") else "is no checkpoint; give"
        raise SpecError(OPTION, [f"{text!r}: {why} KEY@STEP, the key of an experiment and an optimizer step"])
    wanted = CheckpointName(found[1], int(found[2]))
    check_store_answers(root)
    _place_of(SweepPaths(root), wanted)
    return wanted


def go_back(ledger: Ledger, plan: Plan, wanted: CheckpointName, say: Callable[[str], object]) -> None:
    """Let the next run of an experiment resume from the checkpoint; of a completed one, let those begin at its trunk.

    Newer checkpoints are kept in the experiment's directory, and its failure, if it has one, among its attempts.

    Args:
        plan: of the directory, as far as its results decide it.
        say: told in a line what goes on from where.

    Raises:
        SpecError: no experiment that is open can go on from there, or the checkpoint is damaged.
        StorageError: the directory cannot be written.
    """
    paths, experiments = ledger.paths, {e.key: e for e in plan.experiments}
    place = _place_of(paths, wanted)
    own = experiments.get(wanted.key)
    if own is None:
        raise SpecError(OPTION, [f"{wanted}: this plan has no experiment {wanted.key}"])
    if reason := _damage(place, wanted.step):
        raise SpecError(OPTION, [f"{wanted} is damaged ({reason}); {_there_are(paths, wanted)}"])
    if not isinstance(ledger.outcome(wanted.key), ExperimentResult):
        kept = _set_aside(ledger, own, wanted.step)
        _copy(place, paths.checkpoints(wanted.key), wanted.step)
        say(f"{_named(own)} goes on from its checkpoint at step {wanted.step} of {own.steps}{kept}")
        return
    begin = [e for e in plan.experiments if (e.parent, e.start_step) == (wanted.key, wanted.step)]
    begin = [e for e in begin if not isinstance(ledger.outcome(e.key), ExperimentResult)]
    if not begin:
        raise SpecError(
            OPTION,
            [
                f"{wanted}: {_named(own)} is completed, and its result stays; no open experiment begins at its trunk. "
                "To train it for longer add a larger budget (extend --budget, or more FLOPs in the spec of one run)"
            ],
        )
    for e in begin:
        kept = _set_aside(ledger, e, -1)
        say(f"{_named(e)} begins at {wanted}, the trunk of {_named(own)}{kept}")


def _named(e: Experiment) -> str:
    return f"{e.key} (C {fmt.flops(e.budget)}, size {e.size})"


def _places(paths: SweepPaths, key: str) -> list[CheckpointPaths]:
    """Return where checkpoints of an experiment lie, those that it would take first."""
    return [paths.checkpoints(key), paths.trunk(key), *paths.set_aside(key)]


def _place_of(paths: SweepPaths, wanted: CheckpointName) -> CheckpointPaths:
    for place in _places(paths, wanted.key):
        if wanted.step in place.finished():
            return place
    raise SpecError(OPTION, [f"{paths.root} has no checkpoint {wanted}; {_there_are(paths, wanted)}"])


def _there_are(paths: SweepPaths, wanted: CheckpointName) -> str:
    """Name the checkpoints of a directory besides this one, those of its experiment first."""
    keys = sorted(paths.begun_keys() | paths.trunk_keys(), key=lambda key: (key != wanted.key, key))
    found = dict.fromkeys(str(name) for key in keys for name in _names(paths, key) if name != wanted)
    return f"there are {fmt.listed(list(found), SHOWN)}" if found else "it has no other"


def _names(paths: SweepPaths, key: str) -> Iterable[CheckpointName]:
    steps = {step for place in _places(paths, key) for step in place.finished()}
    return (CheckpointName(key, step) for step in sorted(steps))


def _damage(place: CheckpointPaths, step: int) -> str:
    """Return why a checkpoint cannot be believed; empty if it can."""
    note = read_json(place.note(step))
    if note is None:
        return "its manifest cannot be read"
    try:
        with open_file(place.state(step)) as file:
            digest = sha256_of(file)
    except OSError as e:
        if not is_missing(place.state(step), e):
            raise storage_error(place.state(step), "read", e) from e
        return str(e.strerror or e)
    return "" if digest == note.get("sha256") else "its sha256 differs"


def _set_aside(ledger: Ledger, e: Experiment, step: int) -> str:
    """Move what an experiment wrote after a step out of its way. Returns words on where it is, empty without any."""
    paths = ledger.paths
    own, failed = paths.checkpoints(e.key), ledger.failure(e.key) is not None
    newer = [later for later in own.started() if later > step]
    if newer:
        aside = paths.new_set_aside(e.key)
        for later in newer:
            for path, to in ((own.note(later), aside.note(later)), (own.state(later), aside.state(later))):
                _move(path, to)
        _move(paths.curve(e.key), aside.directory / paths.curve(e.key).name)
    if failed:
        ledger.retry(e.key)
    if not newer:
        return ""
    return f"; newer checkpoints ({', '.join(map(str, newer))}) are kept in {aside.directory}"


def _move(path: StoragePath, to: StoragePath) -> None:
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        path.rename(to)
    except FileNotFoundError:  # a state without its note: it was interrupted while it was written
        return
    except OSError as e:
        raise storage_error(path, "renamed", e) from e


def _copy(place: CheckpointPaths, to: CheckpointPaths, step: int) -> None:
    if place == to:
        return
    for source, target in ((place.state(step), to.state(step)), (place.note(step), to.note(step))):  # the note is last
        with open_file(source) as file, whole_file(target) as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
