"""The user's program around its objects: working directory and command line, taken over by workers.

Workers of a cluster start where their node was started, and with Ray's own arguments. Code that opens `data/x.npy` or
parses its arguments would find another file and other arguments there than in the driver, which planned with them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flops_fit_ray.engine.jobs import upload_of


@dataclass(frozen=True)
class Surroundings:
    """Working directory and arguments of the driver. A worker takes them over as it unpickles them.

    Whatever is unpickled after them may import the user's modules, which read files and arguments at once.
    """

    directory: Path | None  # None: each node has its own, as in a job's upload
    arguments: tuple[str, ...]

    def __reduce__(self) -> tuple[Callable[..., Surroundings], tuple[object, ...]]:
        return _take_over, (self.directory, self.arguments)


def surroundings_of_driver() -> Surroundings:
    """Return those of this process."""
    here = None
    with contextlib.suppress(FileNotFoundError):  # it was removed, and nothing can be relative to it
        here = Path.cwd()
    return Surroundings(None if here is None or upload_of(here) is not None else here, tuple(sys.argv))


def _take_over(directory: Path | None, arguments: tuple[str, ...]) -> Surroundings:
    import ray

    if ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        with contextlib.suppress(OSError):  # a node without it; code that needs it says so
            if directory is not None:
                os.chdir(directory)
        sys.argv = list(arguments)
    return Surroundings(directory, arguments)
