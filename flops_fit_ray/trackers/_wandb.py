"""Weights & Biases: a run per experiment, grouped by sweep, logged while it trains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flops_fit_ray.errors import SpecError
from flops_fit_ray.ledger import ExperimentResult, Failure
from flops_fit_ray.planning import Experiment
from flops_fit_ray.spec import WandbSection
from flops_fit_ray.trackers._tracked import LoggedPoints, config_of, run_name


class Wandb:
    """Weights & Biases as a `Tracker`. `directory` holds W&B's own files; None for W&B's default."""

    name = "W&B"

    def __init__(self, asked: WandbSection, sweep: str, directory: Path | None) -> None:
        self._asked, self._sweep, self._directory = asked, sweep, directory
        self._runs: dict[str, Any] = {}

    def progress(self, e: Experiment, points: LoggedPoints) -> None:
        """Log the next points of the curve.

        Raises:
            SpecError: there is no API key.
        """
        run = self._run(e)
        for step, figures in points:
            run.log(dict(figures), step=step, commit=True)

    def outcome(self, e: Experiment, record: ExperimentResult | Failure, points: LoggedPoints) -> None:
        """Log the rest of the curve and the summary, and finish the run.

        Raises:
            SpecError: as `progress`.
        """
        completed = isinstance(record, ExperimentResult)
        try:
            self.progress(e, points)
            summary = record.measured if isinstance(record, ExperimentResult) else {"error": record.error}
            self._run(e).summary.update({"status": record.status, **summary})
        finally:
            if (run := self._runs.pop(e.key, None)) is not None:
                run.finish(exit_code=0 if completed else 1)

    def close(self) -> None:
        """Finish the runs of experiments that were interrupted as preempted; a resumed sweep goes on with them."""
        while self._runs:
            run = self._runs.popitem()[1]
            run.mark_preempting()
            run.finish(exit_code=1)

    def _run(self, e: Experiment) -> Any:
        """Return the run of an experiment: the same in a resumed sweep."""
        if e.key not in self._runs:
            import wandb

            if self._asked.mode == "online" and not wandb.api.api_key:
                raise SpecError(
                    "trackers.wandb", ["no API key: set WANDB_API_KEY, run `wandb login`, or set mode: offline"]
                )
            os.environ.setdefault("WANDB_SILENT", "true")
            if self._directory is not None:
                self._directory.mkdir(parents=True, exist_ok=True)
            self._runs[e.key] = wandb.init(
                project=self._asked.project or self._sweep,
                entity=self._asked.entity,
                mode=self._asked.mode,
                dir=self._directory,
                id=e.key,
                resume="allow",
                group=self._sweep,
                name=run_name(e),
                config=config_of(e),
                reinit="create_new",
                save_code=False,
                settings=wandb.Settings(console="off", disable_git=True, x_disable_stats=True),
            )
        return self._runs[e.key]
