"""Requests to stop: Ctrl-C, SIGTERM (`ray job stop`, Kubernetes, Slurm), SIGUSR1 (Slurm, ahead of time), SIGHUP."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from flops_fit_ray.errors import DataDiffersError, InterruptedSweepError, StorageError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # the last: the terminal was closed
GRACE_SECONDS = 20.0  # for running experiments to save; Kubernetes and Slurm wait 30 s by default


class AskedToStop(KeyboardInterrupt):
    """A signal that ends the current work at once. No handler takes it for an error of the user's code.

    A KeyboardInterrupt of exactly that class would, where it meets an `exec` of a string (as dataclasses do when they
    are made), let `python -m` end by SIGINT (3.11) whatever is done about it, and not with our exit code.
    """


class StopRequest:
    """The request that a sweep ends, with the error that it ends with: of a signal, a full directory, or other data.

    Outside of `deferred` a signal ends what is going on at once; inside, the first one is only noted, because running
    experiments need a moment to save. A second signal never waits.
    """

    def __init__(self) -> None:
        self.error: InterruptedSweepError | StorageError | DataDiffersError | None = None  # of the first request
        self._signals = 0
        self._deferred = False

    @property
    def is_set(self) -> bool:
        """Return True once the end was requested."""
        return self.error is not None

    def set(self, error: InterruptedSweepError | StorageError | DataDiffersError) -> None:
        """Request the end: no new experiment starts."""
        self.error = self.error or error

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the first signal while the block runs.

        Raises:
            InterruptedSweepError, StorageError, DataDiffersError: the end was requested before.
        """
        if self.error is not None:
            raise self.error
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def on_signal(self, number: int, frame: Any) -> None:
        """Note a signal, or end at once."""
        self._signals += 1
        self.set(InterruptedSweepError(f"stopped by {signal.Signals(number).name}"))
        if self._signals > 1 or not self._deferred:
            raise AskedToStop(f"stopped by {signal.Signals(number).name}")


@contextlib.contextmanager
def interruptible() -> Iterator[StopRequest]:
    """Hear signals while the block runs. Only the main thread can; elsewhere its owner must stop the sweep.

    Raises:
        InterruptedSweepError: one ended the block.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # then a closed terminal is ignored
    heard = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
    before = {number: signal.signal(number, stop.on_signal) for number in heard}
    try:
        yield stop
    except KeyboardInterrupt as e:
        if stop.error is not None:
            raise stop.error from e
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
    """Restore our signal handlers after the block, in which a library may replace them (Ray takes SIGTERM)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
