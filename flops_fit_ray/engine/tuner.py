"""The driver: let Tune execute what the dispatcher hands out, look in the ledger, and again if something is left.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flops_fit_ray.engine.cluster import ray_session
from flops_fit_ray.engine.dispatch import Dispatcher, vanished
from flops_fit_ray.engine.resources import Slots, choose_slots, live_nodes
from flops_fit_ray.engine.watch import Watcher
from flops_fit_ray.errors import InterruptedSweepError, ResourceError, SpecError
from flops_fit_ray.layout import SweepPaths
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning import Plan, Planner
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.training.guest import Guest

MAX_ROUNDS = 3  # of starting Tune, where it says that it is done and the ledger does not
MAX_RESTARTS = 3  # of one trial within a round, when its process dies


def run_plan(
    planner: Planner,
    *,
    spec: SweepSpec,
    root: Path,
    load_guest: Callable[[], Guest],
    address: str | None,
    watcher: Watcher,
    on_plan: Callable[[Plan], None],
) -> Plan:
    """Bring every experiment that the planner asks for to an outcome in the ledger; results are not touched.

    Args:
        on_plan: told of the plan at first and whenever it has grown, before anything new is begun.

    Returns:
        The plan in the end.

    Raises:
        ResourceError: the cluster cannot run such trials.
        InterruptedSweepError: a signal stopped the sweep.
        StorageError: the directory cannot be written any more.
    """
    paths = SweepPaths(root)
    ledger = Ledger(paths)
    watcher.take(ledger)

    def told(plan: Plan) -> None:
        on_plan(plan)
        watcher.on_plan(plan)

    paths.stop.unlink(missing_ok=True)
    dispatcher = Dispatcher(planner, ledger, told)
    if dispatcher.done():
        return dispatcher.plan
    with ray_session(address), _signals(paths) as stop:
        slots = choose_slots(spec.resources_per_trial, live_nodes())
        dispatcher.slots = slots.count
        watcher.on_slots(slots)
        with watcher.following():
            for round_number in range(MAX_ROUNDS):
                errors = _run_round(dispatcher, spec, paths, load_guest, slots)
                for key, words in errors.items():  # with Ray's own words, where the process died
                    failure = ledger.failure(key)
                    if failure is None or failure.status == "infrastructure":
                        ledger.record_failure(vanished(key, ledger, words))
                dispatcher.look()
                if dispatcher.done():
                    break
                if stop.is_set():
                    raise InterruptedSweepError("stopped by a signal")
                if round_number == MAX_ROUNDS - 1:
                    raise ResourceError("Ray Tune ended again and again before the sweep did; the same command goes on")
    return dispatcher.plan


def _run_round(
    dispatcher: Dispatcher,
    spec: SweepSpec,
    paths: SweepPaths,
    load_guest: Callable[[], Guest],
    slots: Slots,
) -> dict[str, str]:
    """Have Tune execute what the dispatcher hands out. Returns what Ray says of the trials whose process ended."""
    from ray import tune

    from flops_fit_ray.engine.searcher import ExperimentSearcher
    from flops_fit_ray.engine.trainable import ExperimentTrainable, Job

    job = Job(
        root=paths.root,
        load_guest=load_guest,
        spec=spec,
        eval_samples=dispatcher.plan.survey.data.eval_samples,
        uses_gpu=slots.uses_gpu,
    )
    trainable = tune.with_parameters(ExperimentTrainable, job=job)
    tuner = tune.Tuner(
        tune.with_resources(trainable, dict(slots.resources)),
        tune_config=tune.TuneConfig(
            search_alg=ExperimentSearcher(dispatcher),
            num_samples=-1,  # until the searcher has finished
            reuse_actors=True,
            max_concurrent_trials=slots.count,
        ),
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
    if dispatcher.error is not None:
        raise dispatcher.error
    for trial in (grid[i] for i in range(len(grid))):
        if trial.error is not None and trial.config is not None:
            errors[trial.config["key"]] = str(trial.error)
    return errors


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
