"""Weights & Biases: a run per experiment, grouped by sweep, logged when it ends."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flops_fit_ray.errors import SpecError
from flops_fit_ray.ledger import ExperimentResult, Failure, Progress
from flops_fit_ray.planning import Experiment
from flops_fit_ray.spec import WandbSection
from flops_fit_ray.trackers._tracked import config_of, curve_metrics, measured_of, run_name


class Wandb:
    """Weights & Biases as a `Tracker`. `directory` holds W&B's own files; None for W&B's default."""

    name = "W&B"

    def __init__(self, asked: WandbSection, sweep: str, directory: Path | None) -> None:
        self._asked, self._sweep, self._directory = asked, sweep, directory

    def progress(self, e: Experiment, progress: Progress) -> None:
        """Do nothing: a run is logged when it ends."""

    def outcome(self, e: Experiment, record: ExperimentResult | Failure, curve: Sequence[Mapping[str, Any]]) -> None:
        """Log a run; logged again, it is the same run.

        Raises:
            SpecError: there is no API key.
        """
        import wandb

        if self._asked.mode == "online" and not wandb.api.api_key:
            raise SpecError(
                "trackers.wandb", ["no API key: set WANDB_API_KEY, run `wandb login`, or set mode: offline"]
            )
        os.environ.setdefault("WANDB_SILENT", "true")
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
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
        try:
            for step, figures in curve_metrics(curve):
                run.log(figures, step=step)
            if isinstance(record, ExperimentResult):
                run.summary.update(measured_of(record))
            else:
                run.summary.update({"status": record.status, "error": record.error})
        finally:
            run.finish(exit_code=0 if isinstance(record, ExperimentResult) else 1)

    def close(self) -> None:
        """Do nothing: every run is closed when it is logged."""
