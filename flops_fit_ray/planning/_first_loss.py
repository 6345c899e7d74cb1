"""The loss of an untrained model, by which another process can tell if it has the same model and loss.

The plan is made in one process, and others train. In those none of the lines of a script runs, the environment may be
another one, and so may the files that a constructor reads: the same code then makes another model, and nothing fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

USUAL_CAUSES = (
    "usual causes: a line of the script that changes a library or a module (workers run none of its lines), an "
    "environment variable, a file that the model or the loss reads, another version of a library"
)
WAY_OUT = "put what the model depends on into its module or its arguments, so that every process makes the same one"
ELSEWHERE = 1e-3  # relative difference that other processors may make
ROUNDING = 1e-5  # the same on one machine, where processes differ in their number of threads


@dataclass(frozen=True, kw_only=True)
class FirstLoss:
    """Loss of one model before it is trained, built with seeded generators, on samples that travel with it."""

    size: int | str
    kwargs: Mapping[str, Any]  # of the constructor
    batch: Any  # as training reads it
    loss: float
    rounding: float  # relative, of the model's numbers
    host: str

    def difference(self, there: float, host: str) -> str | None:
        """Describe how the loss of this process on a host, `there`, differs from this one; None if it does not."""
        rounding = max(self.rounding, ROUNDING if host == self.host else ELSEWHERE)
        if math.isclose(there, self.loss, rel_tol=rounding, abs_tol=ROUNDING):
            return None
        return (
            f"a worker's process on {host} makes another model or loss than the plan: of the same seed, and on the "
            f"same samples, the untrained model of size {self.size} has a loss of {there:.6g}, and one of "
            f"{self.loss:.6g} in the process that planned; {USUAL_CAUSES}. The way out: {WAY_OUT}"
        )
