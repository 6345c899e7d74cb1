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
from flops_fit_ray.trackers._tracked import LoggedPoints, config_of, run_name


class TensorBoard:
    """TensorBoard as a `Tracker`: curves over steps as they come, the hyperparameters with the result at the end."""

    name = "TensorBoard"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writers: dict[str, Any] = {}

    def progress(self, e: Experiment, points: LoggedPoints) -> None:
        """Log the next points of the curve."""
        writer = self._writer(e)
        for step, figures in points:
            _add_values(writer, figures, step)
        writer.flush()

    def outcome(self, e: Experiment, record: ExperimentResult | Failure, points: LoggedPoints) -> None:
        """Log the rest of the curve, and the hyperparameters with the result."""
        from tensorboardX.summary import hparams, text  # type: ignore[import-untyped] # it has no types

        self.progress(e, points)
        writer = self._writer(e)
        if isinstance(record, ExperimentResult):
            measured = {f"result/{name}": value for name, value in record.measured.items()}
            _add_values(writer, measured, record.steps)
            for summary in hparams(config_of(e), measured):
                _add(writer, summary, 0)
        else:
            _add(writer, text("failure", f"{record.status}: {record.error}"), 0)
        self._writers.pop(e.key).close()

    def close(self) -> None:
        """Close the writers that are still open."""
        while self._writers:
            self._writers.popitem()[1].close()

    def _writer(self, e: Experiment) -> Any:
        if e.key not in self._writers:
            from tensorboardX.event_file_writer import (  # type: ignore[import-untyped] # it has no types
                EventsWriter,
            )

            directory = self._directory / run_name(e)
            directory.mkdir(parents=True, exist_ok=True)
            suffix = f".{time.time_ns()}"  # else a file of the same second would be written over
            self._writers[e.key] = EventsWriter(str(directory / "events"), filename_suffix=suffix)
        return self._writers[e.key]


def _add_values(writer: Any, figures: Mapping[str, float], step: int) -> None:
    """Write all values of a step as one event: five times as cheap as one event each."""
    from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[import-untyped] # it has no types

    _add(writer, Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]), step)


def _add(writer: Any, summary: Any, step: int) -> None:
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped] # it has no types

    writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
