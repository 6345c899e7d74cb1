"""Work that Ray Tune does for every trial and a sweep has no use for, left out of large sweeps while a Tuner runs.

With experiments of milliseconds this is most of the driver's work, and some of it grows with their number. Each part is
looked for by name: a version of Ray that has another name for it goes on as it is.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import remove_tree

FORGET_SECONDS = 10.0  # between looks for trials that have ended


@contextlib.contextmanager
def _replaced(owner: Any, name: str, by: Any) -> Iterator[None]:
    """Put something in the place of an attribute that is there, for a block."""
    own = vars(owner).get(name)  # none where it is one of the class
    setattr(owner, name, by)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextlib.contextmanager
def lean_tune(paths: SweepPaths) -> Iterator[None]:
    """Have a Tune for the block that does little for each trial, and keeps no state of them."""
    with _fewer_questions(), _without_state(paths):
        yield


@contextlib.contextmanager
def _fewer_questions() -> Iterator[None]:
    """Ask the head of the cluster for the trainable once, and no worker where it is.

    Tune asks the head three times for each trial, and unpickles what comes; and twice the worker for its address and
    process, which it shows if it shows anything.
    """
    registry = getattr(importlib.import_module("ray.tune.registry"), "_global_registry", None)
    trial = importlib.import_module("ray.tune.experiment").Trial
    with contextlib.ExitStack() as stack:
        for name in ("contains", "get"):
            if (ask := getattr(registry, name, None)) is not None:
                stack.enter_context(_replaced(registry, name, _remembering(ask)))
        if hasattr(trial, "set_ray_actor"):
            stack.enter_context(_replaced(trial, "set_ray_actor", _set_actor))
        yield


def _set_actor(trial: Any, ray_actor: Any) -> None:
    trial.temporary_state.ray_actor = ray_actor


def _remembering(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Ask for the same thing until it is there, and not again after that."""
    known: dict[tuple[Any, ...], Any] = {}

    def answer(*what: Any) -> Any:
        if what in known:
            return known[what]
        found = ask(*what)
        if found:
            known[what] = found
        return found

    return answer


@contextlib.contextmanager
def _without_state(paths: SweepPaths) -> Iterator[None]:
    """Have Tune write its state once, when it begins, which it reads in the end; the ledger alone says what is left.

    Tune copies its directory with every state, and has one in there for each trial: that grows with their number.
    Without a state it has no use for trials that have ended either, which it would go through several times for each
    new one. What it has made is removed after the block.
    """
    controller = importlib.import_module("ray.tune.execution.tune_controller").TuneController
    own = getattr(controller, "checkpoint", None)
    if own is None:
        yield
        return
    forgotten = -math.inf

    def checkpoint(tune: Any, force: bool = False, wait: bool = False) -> None:
        nonlocal forgotten
        if forgotten == -math.inf:
            own(tune, force=True, wait=True)
        if time.monotonic() - forgotten >= FORGET_SECONDS:
            _forget_ended(tune)
            forgotten = time.monotonic()

    with _replaced(controller, "checkpoint", checkpoint):
        yield
    remove_tree(paths.tune)


def _forget_ended(controller: Any) -> None:
    for name in ("_trials_to_cache", "_stopped_trials", "_failed_trials"):
        getattr(controller, name, set[Any]()).clear()
    trials = controller.get_trials()  # the list itself; never empty, else Tune looks for trials in its state
    trials[:] = [trial for trial in trials if not trial.is_finished()] or trials[-1:]
