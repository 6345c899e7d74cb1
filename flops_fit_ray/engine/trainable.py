"""One trial: look in the ledger, else train, record, and only then tell Tune."""

from __future__ import annotations

import gc
import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

import flops_fit_ray
from flops_fit_ray.errors import DivergedError, InterruptedSweepError, StorageError
from flops_fit_ray.layout import SweepPaths
from flops_fit_ray.ledger import Failure, FailureKind, Ledger, Progress, Result, hostname
from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.guest import Guest
from flops_fit_ray.training.loop import train_experiment

STORAGE_ERROR = "storage_error"  # the metric by which a trial tells the driver


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every trial of a sweep shares. It travels to the workers once."""

    root: Path
    load_guest: Callable[[], Guest]
    experiments: Mapping[str, Experiment]
    eval_samples: int
    uses_gpu: bool


class ExperimentTrainable(tune.Trainable):
    """Tune's view of an experiment. The process is kept and serves one experiment after the other."""

    def setup(self, config: dict[str, Any], job: Job | None = None) -> None:
        """Load the user's parts once for all experiments of this process."""
        assert job is not None  # tune.with_parameters passes it
        self._job = job
        self._ledger = Ledger(SweepPaths(job.root))
        self._guest = job.load_guest()
        self._key = str(config["key"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next experiment in the same process: a new one costs seconds."""
        self._key = str(new_config["key"])
        return True

    def step(self) -> dict[str, Any]:
        """The whole experiment."""
        try:
            status, storage_error = run_experiment(self._job, self._ledger, self._guest, self._key), ""
        except StorageError as e:  # Tune would only try again, on the same full disk
            status, storage_error = "storage", str(e)
        gc.collect()
        return {"done": True, "status": status, STORAGE_ERROR: storage_error}


def run_experiment(job: Job, ledger: Ledger, guest: Guest, key: str) -> str:
    """Train one experiment unless the ledger has its result, and record what came of it. Returns its status.

    What the user's code raises is recorded and ends this experiment alone; it is never retried by itself.

    Raises:
        StorageError: the ledger cannot be written.
    """
    if ledger.result(key) is not None:
        return "completed"
    experiment = job.experiments[key]
    attempt = ledger.begin_attempt(key)
    seen = 0
    started = time.perf_counter()

    def on_progress(tokens_seen: int, train_loss: float | None) -> None:
        nonlocal seen
        seen = tokens_seen
        ledger.record_progress(
            Progress(
                key=key,
                tokens_seen=tokens_seen,
                tokens=experiment.tokens,
                train_loss=train_loss,
                host=hostname(),
                pid=os.getpid(),
                updated_at=time.time(),
            )
        )
        if ledger.paths.stop.exists():
            raise InterruptedSweepError("the sweep is being stopped")

    try:
        on_progress(0, None)
        result = _train(job, experiment, guest, attempt, on_progress)
    except StorageError:
        raise
    except InterruptedSweepError:
        ledger.paths.progress(key).unlink(missing_ok=True)
        return "stopped"
    except (Exception, SystemExit) as e:  # noqa: BLE001 - a guest may raise anything; it is recorded whole
        failure = _failure(e, key, attempt, seen, time.perf_counter() - started)
        ledger.record_failure(failure)
        return failure.status
    ledger.record_result(result)
    return result.status


def _train(
    job: Job, experiment: Experiment, guest: Guest, attempt: int, on_progress: Callable[[int, float], None]
) -> Result:
    # By what the trial was given, never by what can be seen: without a GPU of its own a trial still sees them all.
    device = "cuda" if job.uses_gpu else "cpu"
    outcome = train_experiment(
        experiment, guest, eval_samples=job.eval_samples, device=device, threads=1, on_progress=on_progress
    )
    return Result(
        key=experiment.key,
        budget=experiment.budget,
        size=experiment.size,
        params=experiment.params,
        params_total=experiment.params_total,
        tokens=experiment.tokens,
        tokens_seen=outcome.tokens_seen,
        flops=outcome.tokens_seen * experiment.flops_per_token,
        loss=outcome.loss,
        loss_stderr=outcome.loss_stderr,
        train_loss=outcome.train_loss,
        lr=experiment.recipe.lr,
        steps=experiment.steps,
        seed=experiment.recipe.seed,
        seconds=outcome.seconds,
        attempts=attempt,
        device=torch.cuda.get_device_name() if job.uses_gpu else f"cpu {platform.machine()}",
        host=hostname(),
        versions=versions(),
        finished_at=time.time(),
    )


def versions() -> dict[str, str]:
    """What made a result."""
    return {
        "flops_fit_ray": flops_fit_ray.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
    }


def _failure(error: BaseException, key: str, attempt: int, seen: int, seconds: float) -> Failure:
    kind: FailureKind = "diverged" if isinstance(error, DivergedError) else "failed"
    return Failure(
        key=key,
        status=kind,
        error=f"{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
        tokens_seen=seen,
        seconds=seconds,
        attempts=attempt,
        host=hostname(),
        finished_at=time.time(),
    )
