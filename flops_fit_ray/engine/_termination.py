"""SIGTERM for a worker: its node is being shut down, and nothing is wrong with what it runs."""

from __future__ import annotations

import contextlib
import signal
from typing import Any, NoReturn


class WorkerTerminated(SystemExit):
    """SIGTERM for this process. No error of the user's code, which may exit too: Ray sees that the process is gone."""


def end_on_sigterm() -> None:
    """Raise WorkerTerminated on SIGTERM. Ray's own handler raises what `exit()` raises."""
    with contextlib.suppress(ValueError):  # only the main thread hears of signals
        signal.signal(signal.SIGTERM, _raise)


def _raise(number: int, frame: Any) -> NoReturn:
    raise WorkerTerminated(128 + number)
