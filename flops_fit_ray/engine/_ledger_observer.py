"""Progress and events of an experiment for the ledger, and the watch over data that never come."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Literal

from flops_fit_ray.errors import InterruptedSweepError, StorageError
from flops_fit_ray.ledger import Failure, FailureKind, Ledger, Progress
from flops_fit_ray.ledger.hardware import EnergyMeter, Machine, Readings, read_gpus
from flops_fit_ray.planning import Experiment
from flops_fit_ray.storage.lock import hostname
from flops_fit_ray.storage.storage_path import REMOTE_POLL_SECONDS, is_remote
from flops_fit_ray.training.loop.observer import Observer
from flops_fit_ray.training.step.device import gpu_uuids
from flops_fit_ray.training.user.user_code import describe_error

STALLED_EXIT_CODE = 75
READ_SECONDS = 5.0  # between readings of the node
CURVE_SECONDS = 20.0  # between two looks at the curve of what runs
FIRST_CURVE_SECONDS = 5.0  # after which it is looked at first
BEAT_SECONDS = 15.0  # between signs of life while a step takes long, and at most
SIGNS_PER_SECOND = 100.0  # of all experiments together: each is a write, a rename and an fsync on what they share


class LedgerObserver(Observer):
    """Writes signs of life and events, and ends the experiment when the sweep is being stopped.

    Args:
        at_a_time: experiments that write into this directory; the more they are, the less often each does.
    """

    def __init__(self, ledger: Ledger, experiment: Experiment, attempt: int, deaths: int, at_a_time: int = 1) -> None:
        super().__init__()
        self._every = min(BEAT_SECONDS, at_a_time / SIGNS_PER_SECOND)
        self._ledger, self._experiment, self._attempt, self._deaths = ledger, experiment, attempt, deaths
        self._seen = 0
        self._train_loss: float | None = None
        self._readings, self._read_at = Readings(), -READ_SECONDS
        self._machine: Machine | None = None
        self._energy = EnergyMeter()
        self.others: Callable[[], Sequence[Machine]] = list  # readings of the other workers' nodes
        self._others: tuple[Machine, ...] | None = None
        self._drawn, self._drawn_at = 0, time.monotonic() - CURVE_SECONDS + FIRST_CURVE_SECONDS
        self._started_at = time.time()
        self._beaten = time.monotonic()
        self._beating = threading.Lock()  # two threads write signs of life
        self._remote = is_remote(ledger.paths.root)
        self._stopping = False
        self._waiting_since: float | None = None
        self._thread = threading.get_ident()

    def fetching(self) -> None:
        """From now on the user's data are waited for."""
        self._waiting_since = time.monotonic()

    def fetched(self) -> None:
        """Note that the samples came."""
        self._waiting_since = None

    def energy(self, workers: int) -> float | None:
        """Return the joules drawn since the first call; those of other workers' GPUs as of their last reading."""
        others = self._others or ()
        joules = self._energy.joules([*read_gpus(gpu_uuids()), *(gpu for machine in others for gpu in machine.gpus)])
        return joules if len(others) == workers - 1 else None

    def progress(self, tokens_seen: int, train_loss: float | None) -> None:
        """Write a sign of life, and end here if the sweep is being stopped."""
        self._seen, self._train_loss = tokens_seen, train_loss
        if self._remote and tokens_seen:  # the watching thread sees to it, so that no request holds up the training
            stopping = self._stopping
        else:
            if not tokens_seen or time.monotonic() - self._beaten >= self._every:
                with self._beating:
                    self._beat()
            stopping = self._ledger.paths.stop.exists()
        if stopping:
            raise InterruptedSweepError("the sweep is being stopped")

    def _beat(self) -> None:
        self._beaten = time.monotonic()
        point, speed = self.curve[-1] if self.curve else None, self.speed
        self._ledger.record_progress(
            Progress(
                key=self._experiment.key,
                tokens_seen=self._seen,
                tokens=self._experiment.tokens,
                train_loss=self._train_loss,
                host=hostname(),
                pid=os.getpid(),
                updated_at=time.time(),
                started_at=self._started_at,
                attempt=self._attempt,
                lr=None if point is None else point.lr,
                grad_norm=None if point is None else point.grad_norm,
                tokens_per_second=None if speed is None else speed.tokens_per_second,
                mfu=None if speed is None else speed.mfu,
                machine=self._machine,
                others=self._others,
            )
        )

    def _draw(self) -> None:
        """Write the curve so far, for whoever looks on; the end of the experiment writes all of it."""
        points, self._drawn_at = list(self.curve), time.monotonic()
        if len(points) <= self._drawn:
            return
        with contextlib.suppress(ValueError, TypeError):  # a table that cannot be made is no reason to watch no more
            self._ledger.record_curve(self._experiment.key, [asdict(point) for point in points])
            self._drawn = len(points)

    def event(self, message: str, *, level: Literal["info", "warning"] = "info") -> None:
        """Write a line of the experiment's log."""
        self._ledger.record_event(self._experiment.key, message, level=level)

    def failure(self, error: BaseException, status: FailureKind, seconds: float) -> Failure:
        """Return the failure that an exception means for the experiment."""
        return self._failure(status, describe_error(error), "".join(traceback.format_exception(error)), seconds)

    def _failure(self, status: FailureKind, error: str, trace: str, seconds: float) -> Failure:
        return Failure(
            key=self._experiment.key,
            status=status,
            error=error,
            traceback=trace,
            tokens_seen=self._seen,
            seconds=seconds,
            attempts=self._attempt,
            deaths=self._deaths,
            host=hostname(),
            finished_at=time.time(),
        )

    @contextlib.contextmanager
    def watched(self, timeout: float) -> Iterator[None]:
        """End the process when the data keep the experiment waiting for more than `timeout` seconds.

        Also give signs of life while a single step takes long.

        What blocks in the user's code (a lock, a socket, a file system) cannot be interrupted from within, so the
        failure is recorded with the place where it blocks, and the process goes. Ray starts another one.
        """
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(timeout, done, time.monotonic()), daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._beating:
                done.set()

    def _watch(self, timeout: float, done: threading.Event, started: float) -> None:
        while not done.wait(min(1.0, timeout / 20)):
            if time.monotonic() - self._read_at > READ_SECONDS:  # in this thread, so that no training waits for it
                self._machine, self._others = self._readings.read(gpu_uuids()), tuple(self.others()) or None
                self._read_at = time.monotonic()
            with self._beating, contextlib.suppress(StorageError, OSError):  # the training will hear of a full disk
                seconds = REMOTE_POLL_SECONDS if self._remote else BEAT_SECONDS
                if time.monotonic() - self._beaten > seconds and not done.is_set():
                    self._beat()
                    self._stopping = self._ledger.paths.stop.exists()
                if time.monotonic() - self._drawn_at > CURVE_SECONDS and not done.is_set():
                    self._draw()
            since = self._waiting_since
            if since is None or time.monotonic() - since < timeout:
                continue
            frame = sys._current_frames().get(self._thread)
            place = "".join(traceback.format_stack(frame)) if frame is not None else ""
            words = f"data.train gave no batch for {timeout:g} s (data.timeout_seconds)"
            self._ledger.record_failure(self._failure("stalled", words, place, time.monotonic() - started))
            os._exit(STALLED_EXIT_CODE)
