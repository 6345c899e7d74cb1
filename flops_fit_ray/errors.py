"""Every error that the package raises on purpose, and the exit code of each.

Exit codes of the commands: 0 all done and counted, 1 finished with failed experiments or a fit that could not be
made, 2 the input is wrong, 4 interrupted and resumable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 4


class FlopsFitError(Exception):
    """The root of the tree. `exit_code` is what a command ends with."""

    exit_code = EXIT_FAILED


class SpecError(FlopsFitError):
    """The input is wrong, and no compute was spent. `faults` has one line per fault: key path, value, way out."""

    exit_code = EXIT_INPUT

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__(source, self.faults)  # both arguments, so that the error survives pickling

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return f"{self.source}: {self.faults[0]}"
        return "\n".join([f"{self.source}: {len(self.faults)} faults", *(f"  - {fault}" for fault in self.faults)])


def first_line(error: BaseException) -> str:
    """What an error says, without what follows its first line; its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextlib.contextmanager
def faults_of(source: str) -> Iterator[None]:
    """Give faults found deep inside the name of the file or call that the user knows."""
    try:
        yield
    except SpecError as e:
        raise SpecError(source, e.faults) from e.__cause__


class DirectoryError(FlopsFitError):
    """A sweep directory is missing, not one, written by somebody else now, or holds another sweep."""

    exit_code = EXIT_INPUT


class StorageError(FlopsFitError):
    """A file of the sweep directory could not be written (disk full, quota, permissions); what is recorded stands."""

    exit_code = EXIT_INTERRUPTED


class ResourceError(FlopsFitError):
    """The cluster can never provide what one experiment asks for."""

    exit_code = EXIT_INPUT


class WorkerLostError(FlopsFitError):
    """One of several workers of an experiment died, or its node; nobody's failure."""


class FitError(FlopsFitError):
    """The results do not support the number that was asked for."""


class ExperimentError(FlopsFitError):
    """An experiment ended without a result. `status` is what the ledger calls that."""

    status: Literal["failed", "diverged", "out_of_memory"] = "failed"


class DivergedError(ExperimentError):
    """The training or the held-out loss became NaN or infinite, or rose far above its start."""

    status: Literal["failed", "diverged", "out_of_memory"] = "diverged"


class MemoryExhaustedError(ExperimentError):
    """The device has too little memory for this model, however small the micro-batch."""

    status: Literal["failed", "diverged", "out_of_memory"] = "out_of_memory"


class DataEndedError(ExperimentError):
    """The training data ended before D."""


class InterruptedSweepError(FlopsFitError):
    """The sweep was stopped from outside; the same command goes on."""

    exit_code = EXIT_INTERRUPTED


class HeadLostError(InterruptedSweepError):
    """The head of the Ray cluster is gone, and Ray with it."""
