"""Sweep directories for tests of what reads them, made by the real training loop without Ray."""

from __future__ import annotations

import hashlib
import os
import shutil
import weakref
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from flops_fit_ray.engine._dispatch import Dispatcher
from flops_fit_ray.engine._live_plan import LivePlan
from flops_fit_ray.engine._trainable import TrialContext, run_experiment
from flops_fit_ray.engine.interrupt import StopRequest
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning import Plan, Planner
from flops_fit_ray.spec import FitSection, SweepSpec, TrackersSection, dump_spec
from flops_fit_ray.storage.atomic import write_json
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.sweep.recorded import Origin, record_origin, record_spec, recorded_constants
from flops_fit_ray.training.preflight.model_size import measure_sizes
from flops_fit_ray.training.user.parts import UserParts
from tests.parts import TruncatedRegression, planned, power_law_regression, spec_of, user_parts_of

KNOWN_TRAIN = {"batch_size": 4, "lr": 0.04, "optimizer": "sgd", "grad_clip": None, "warmup_tokens": 0}


def reference_spec(budgets: int = 3, **sections: Any) -> SweepSpec:
    """`Truncated` on data with a power-law spectrum: the optimum is known to grow as C^(1/2)."""
    return spec_of(
        name="known",
        model={"target": "tests.parts:TruncatedRegression", "size_param": "features"},
        data={"train": "tests.parts:power_law_regression"},
        budgets=[
            {"flops": 1e5 * 4**i, "sizes": [round(24 * 2**i * 2 ** (k / 2)) for k in range(-3, 4)]}
            for i in range(budgets)
        ],
        train=KNOWN_TRAIN,
        **sections,
    )


def reference_parts(spec: SweepSpec) -> UserParts:
    """The parts of `reference_spec`."""
    return trained_once(user_parts_of(spec, model=TruncatedRegression, train=power_law_regression()))


def trained_once(user: UserParts) -> UserParts:
    """The same parts, whose sweeps `make_sweep` trains once for all workers of a test run."""
    _reference[id(user)] = user
    return user


def make_sweep(root: StoragePath, spec: SweepSpec, user: UserParts, *, only: int | None = None) -> Sweep:
    """A sweep directory in which the first `only` experiments have run, all of them by default.

    A sweep of parts that are `trained_once` is trained by one worker of a test run, and copied from then on.
    """
    shared = os.environ.get("REFERENCE_SWEEPS")  # set by conftest.py
    known = _reference.get(id(user)) is user
    if shared is None or not known or not isinstance(root, Path) or SweepPaths(root).plan.exists():
        return _train_sweep(root, spec, user, only)
    what = spec.model_copy(update={"fit": FitSection(), "trackers": TrackersSection()})  # which change no experiment
    trained = Path(shared) / hashlib.sha256(dump_spec(what).encode()).hexdigest()
    with FileLock(f"{trained}.lock"):
        if not trained.exists():
            _train_sweep(trained.with_suffix(".unfinished"), spec, user, None)
            trained.with_suffix(".unfinished").rename(trained)
    run = {experiment.key for experiment in open_sweep(trained).plan.experiments[:only]}
    shutil.copytree(trained, root, dirs_exist_ok=True, ignore=partial(_not_run, run))
    record_spec(SweepPaths(root), spec)
    return open_sweep(root)


_reference: weakref.WeakValueDictionary[int, UserParts] = weakref.WeakValueDictionary()


def _not_run(run: Collection[str], directory: str, names: list[str]) -> list[str]:
    """What `copytree` leaves out: experiments and trunks of experiments that have not run."""
    return [name for name in names if name not in run] if Path(directory).name in ("experiments", "trunks") else []


def _train_sweep(root: StoragePath, spec: SweepSpec, user: UserParts, only: int | None) -> Sweep:
    plan = planned(spec, user)
    paths = SweepPaths(root)
    record_spec(paths, spec)
    write_json(paths.plan, {**plan.to_json(), "command": "flops-fit-ray run somewhere"}, sealed=True)
    job = TrialContext(
        root=root,
        load_user_parts=lambda: user,
        spec=spec,
        eval_samples=plan.measurements.data.eval_samples,
        slots=Slots(resources={"cpu": 1}, count=1),
    )
    for experiment in plan.experiments[:only]:
        run_experiment(job, Ledger(paths), lambda: user, experiment)
    return open_sweep(root)


def grow_sweep(root: StoragePath, spec: SweepSpec, user: UserParts) -> Sweep:
    """A whole sweep as the engine runs it, but for Ray: planned, handed out, trained, planned again."""
    paths, ledger = SweepPaths(root), Ledger(SweepPaths(root))
    record_spec(paths, spec)

    def record(plan: Plan) -> None:
        origin = Origin(command="flops-fit-ray run somewhere", base=str(root), frame=plan.constants)
        record_origin(paths, origin)
        write_json(paths.plan, {**plan.to_json(), "command": origin.command, "base": origin.base}, sealed=True)

    live = LivePlan(Planner(spec, measure_sizes(spec, user), recorded_constants(paths)), ledger, record)
    slots, stop = Slots(resources={"cpu": 1}, count=1), StopRequest()
    dispatcher = Dispatcher(live, slots, stop)
    facts = live.plan.measurements.data
    job = TrialContext(
        root=root,
        load_user_parts=lambda: user,
        spec=spec,
        eval_samples=facts.eval_samples,
        slots=slots,
    )
    while (experiment := dispatcher.next()) is not None:
        run_experiment(job, ledger, lambda: user, experiment)
        dispatcher.ended(experiment.key, died=False)
    if stop.error is not None:
        raise stop.error
    assert live.done()
    return open_sweep(root)


def adaptive_reference_spec(**grid: object) -> SweepSpec:
    """`Truncated` with sizes and whatever else left to the planner."""
    return spec_of(
        name="known",
        model={"target": "tests.parts:TruncatedRegression", "size_param": "features"},
        data={"train": "tests.parts:power_law_regression"},
        budgets=[5e4, 2e5, 8e5],
        train=KNOWN_TRAIN,
        grid={"tokens_per_param": 40, "first_sizes": 5, **grid},
    )
