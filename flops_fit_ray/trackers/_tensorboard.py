"""TensorBoard event files: a run per experiment with its curves and hyperparameters.

Written without tensorboardX's `SummaryWriter`: its thread ends on a full disk, and whoever waits for it then waits for
ever, at the latest at the exit of the process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flops_fit_ray.ledger import ExperimentResult, Failure
from flops_fit_ray.planning import Experiment
from flops_fit_ray.trackers._event_file import EventFile
from flops_fit_ray.trackers._tracked import LoggedPoints, config_of, run_name


class TensorBoard:
    """TensorBoard as a `Tracker`: curves over steps as they come, the hyperparameters with the result at the end."""

    name = "TensorBoard"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, EventFile] = {}

    def progress(self, e: Experiment, points: LoggedPoints) -> None:
        """Log the next points of the curve."""
        self._file(e).write([_values(figures, step) for step, figures in points])

    def outcome(self, e: Experiment, record: ExperimentResult | Failure, points: LoggedPoints) -> None:
        """Log the rest of the curve, and the hyperparameters with the result."""
        from tensorboardX.summary import hparams, text  # type: ignore[import-untyped] # it has no types

        events = [_values(figures, step) for step, figures in points]
        if isinstance(record, ExperimentResult):
            measured = {f"result/{name}": value for name, value in record.measured.items()}
            events.append(_values(measured, record.steps))
            events += [_event(summary, 0) for summary in hparams(config_of(e), measured)]
        else:
            events.append(_event(text("failure", f"{record.status}: {record.error}"), 0))
        self._file(e).write(events)
        self._files.pop(e.key).close()

    def close(self) -> None:
        """Close the files that are still open."""
        while self._files:
            self._files.popitem()[1].close()

    def _file(self, e: Experiment) -> EventFile:
        if e.key not in self._files:
            self._files[e.key] = EventFile(self._directory / run_name(e))
        return self._files[e.key]


def _values(figures: Mapping[str, float], step: int) -> Any:
    """Return all values of a step as one event: five times as cheap as one event each."""
    from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[import-untyped] # it has no types

    return _event(Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]), step)


def _event(summary: Any, step: int) -> Any:
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped] # it has no types

    return Event(wall_time=time.time(), step=step, summary=summary)
