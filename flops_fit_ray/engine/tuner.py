"""The driver: ask what is next, let Tune execute it, look in the ledger, ask again.

It decides nothing. What Tune says about its trials is never believed: after an interruption its grid calls unfinished
trials terminated and free of errors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flops_fit_ray.engine.cluster import ray_session
from flops_fit_ray.engine.resources import Slots, choose_slots, live_nodes
from flops_fit_ray.engine.watch import Watcher
from flops_fit_ray.errors import InterruptedSweepError, SpecError, StorageError
from flops_fit_ray.layout import SweepPaths
from flops_fit_ray.ledger import RETRY_ON_NEXT_RUN, Failure, Ledger, hostname
from flops_fit_ray.planning import Experiment, Plan, next_experiments
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.training.guest import Guest

MAX_ROUNDS = 3  # of handing to Tune what has no outcome, though Tune says that it is done
MAX_RESTARTS = 3  # of one trial within a round, when its process dies


def run_plan(
    plan: Plan,
    *,
    spec: SweepSpec,
    root: Path,
    load_guest: Callable[[], Guest],
    address: str | None,
    watcher: Watcher,
) -> None:
    """Bring every experiment of the plan to an outcome in the ledger; those that have a result are not touched.

    Raises:
        ResourceError: the cluster cannot run such trials.
        InterruptedSweepError: a signal stopped the sweep.
        StorageError: the directory cannot be written any more.
    """
    paths = SweepPaths(root)
    ledger = Ledger(paths)
    keys = [e.key for e in plan.experiments]
    for failure in ledger.failures(keys):
        if failure.status in RETRY_ON_NEXT_RUN:
            ledger.retry(failure.key)
    if not next_experiments(plan, ledger.settled(keys)):
        return
    paths.stop.unlink(missing_ok=True)
    with ray_session(address), _signals(paths) as stop:
        slots = choose_slots(spec.resources_per_trial, live_nodes())
        watcher.on_slots(slots)
        with watcher.following(ledger, plan):
            for round_number in range(MAX_ROUNDS):
                todo = next_experiments(plan, ledger.settled(keys))
                if not todo:
                    return
                errors = _run_round(todo, plan, spec, paths, load_guest, slots)
                left = next_experiments(plan, ledger.settled(keys))
                if left and stop.is_set():
                    raise InterruptedSweepError("stopped by a signal")
                for experiment in left:  # Tune has tried these again and again; others it has only lost
                    if experiment.key in errors or round_number == MAX_ROUNDS - 1:
                        ledger.record_failure(_vanished(experiment, ledger, errors.get(experiment.key, "")))


def _run_round(
    todo: Sequence[Experiment],
    plan: Plan,
    spec: SweepSpec,
    paths: SweepPaths,
    load_guest: Callable[[], Guest],
    slots: Slots,
) -> dict[str, str]:
    """Have Tune execute `todo`. Returns what Ray says of the trials whose process ended without an outcome."""
    from ray import tune

    from flops_fit_ray.engine.trainable import STORAGE_ERROR, ExperimentTrainable, Job

    job = Job(
        root=paths.root,
        load_guest=load_guest,
        experiments={e.key: e for e in todo},
        spec=spec,
        eval_samples=plan.survey.data.eval_samples,
        uses_gpu=slots.uses_gpu,
    )
    trainable = tune.with_parameters(ExperimentTrainable, job=job)
    tuner = tune.Tuner(
        tune.with_resources(trainable, dict(slots.resources)),
        param_space={"key": tune.grid_search([e.key for e in todo])},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=slots.count),
        run_config=tune.RunConfig(
            name=f"round-{time.time_ns()}",
            storage_path=str(paths.tune),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the ledger holds what matters
            failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
        ),
    )
    errors: dict[str, str] = {}
    grid = tuner.fit()
    for trial in (grid[i] for i in range(len(grid))):
        storage_error = (trial.metrics or {}).get(STORAGE_ERROR)
        if storage_error:
            raise StorageError(storage_error)
        if trial.error is not None and trial.config is not None:
            errors[trial.config["key"]] = str(trial.error)
    return errors


def _vanished(experiment: Experiment, ledger: Ledger, error: str) -> Failure:
    return Failure(
        key=experiment.key,
        status="infrastructure",
        error=f"its worker ended {ledger.num_attempts(experiment.key)} times without an outcome"
        + (f": {error.strip().splitlines()[-1]}" if error.strip() else ""),
        traceback=error,
        tokens_seen=0,
        seconds=0.0,
        attempts=ledger.num_attempts(experiment.key),
        host=hostname(),
        finished_at=time.time(),
    )


@contextlib.contextmanager
def _signals(paths: SweepPaths) -> Iterator[threading.Event]:
    """SIGINT and SIGTERM stop Tune gracefully (its own signal for that is SIGUSR1); a second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        with contextlib.suppress(OSError):  # else Tune waits long for experiments that nobody waits for
            paths.stop.touch()
        if signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, signal.SIG_IGN, None):
            raise KeyboardInterrupt  # Tune is not running now, so there is nothing to be graceful with
        os.kill(os.getpid(), signal.SIGUSR1)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    usr1 = signal.getsignal(signal.SIGUSR1)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGUSR1, usr1)
        with contextlib.suppress(OSError):
            paths.stop.unlink(missing_ok=True)


def loader_for(guest: Guest) -> Callable[[], Guest]:
    """A loader that carries the user's objects themselves.

    Raises:
        SpecError: an object cannot be pickled; it is named.
    """
    from ray import cloudpickle

    for name in (field.name for field in dataclasses.fields(guest)):
        try:
            cloudpickle.dumps(getattr(guest, name))  # type: ignore[no-untyped-call] # Ray leaves it untyped
        except Exception as e:
            raise SpecError(
                "find_optimal",
                [
                    f"{name} cannot be sent to a worker: {type(e).__name__}: {e}; open files, locks and "
                    "connections inside the worker instead"
                ],
            ) from e
    return functools.partial(_itself, guest)


def _itself(guest: Guest) -> Guest:
    return guest
