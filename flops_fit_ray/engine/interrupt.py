"""Being asked to stop: Ctrl-C, SIGTERM (`ray job stop`, Kubernetes, Slurm), SIGUSR1 (Slurm, ahead of time), SIGHUP."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from flops_fit_ray.errors import InterruptedSweepError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # the last: the terminal was closed
GRACE_SECONDS = 20.0  # for running experiments to save; whoever asked waits for 30 s at most


class AskedToStop(KeyboardInterrupt):
    """A signal that is not waited for. Nobody takes it for an error of the user's code.

    A KeyboardInterrupt of exactly that class would, where it meets an `exec` of a string (as dataclasses do when they
    are made), let `python -m` end by SIGINT (3.11) whatever is done about it, and not with our exit code.
    """


class Interrupt:
    """Whether somebody wants the sweep to end, and who.

    Outside of `patience` the first signal ends what is going on at once; inside, it is only noted, because experiments
    run that need a moment to save. A second signal never waits.
    """

    def __init__(self) -> None:
        self.by = ""
        self._asked = threading.Event()
        self._patient = False

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._asked.is_set()

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """While the block runs, the first signal is only noted.

        Raises:
            InterruptedSweepError: one came before.
        """
        if self.asked:
            raise self.error()
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def error(self) -> InterruptedSweepError:
        """What ends the sweep."""
        return InterruptedSweepError(f"stopped by {self.by}")

    def on_signal(self, number: int, frame: Any) -> None:
        """Note a signal, or end at once."""
        first = not self.asked
        self.by = signal.Signals(number).name
        self._asked.set()
        if not (first and self._patient):
            raise AskedToStop(str(self.error()))


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Hear signals while the block runs. Only the main thread can; elsewhere its owner must stop the sweep.

    Raises:
        InterruptedSweepError: one ended the block.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # then a closed terminal is nobody's concern
    heard = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
    before = {number: signal.signal(number, interrupt.on_signal) for number in heard}
    try:
        yield interrupt
    except KeyboardInterrupt as e:
        if interrupt.asked:
            raise interrupt.error() from e
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
    """Undo what a library does to the handlers of our signals while the block runs (Ray takes SIGTERM)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
