"""MLflow: an MLflow experiment per sweep with a run per experiment, logged when it ends."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from flops_fit_ray.ledger import ExperimentResult, Failure, Progress
from flops_fit_ray.planning import Experiment
from flops_fit_ray.spec import MlflowSection
from flops_fit_ray.storage.storage_path import expanded
from flops_fit_ray.trackers._tracked import config_of, curve_metrics, measured_of, run_name

MAX_METRICS = 1000  # in one request


class Mlflow:
    """MLflow as a `Tracker`."""

    name = "MLflow"

    def __init__(self, asked: MlflowSection, sweep: str) -> None:
        self._asked, self._sweep = asked, sweep
        self._client: Any = None
        self._experiment = ""

    def progress(self, e: Experiment, progress: Progress) -> None:
        """Do nothing: a run is logged when it ends."""

    def outcome(self, e: Experiment, record: ExperimentResult | Failure, curve: Sequence[Mapping[str, Any]]) -> None:
        """Log a run with its parameters, curve and status."""
        self._connect()
        from mlflow.entities import Metric, Param

        client, moment = self._client, int(1000 * record.finished_at)
        tags = {"flops_fit_ray.key": e.key, "flops_fit_ray.sweep": self._sweep}
        run = client.create_run(self._experiment, run_name=run_name(e), tags=tags).info.run_id
        metrics = [Metric(tag, v, moment, step) for step, figures in curve_metrics(curve) for tag, v in figures.items()]
        if isinstance(record, ExperimentResult):
            metrics += [Metric(name, value, moment, e.steps) for name, value in measured_of(record).items()]
        client.log_batch(run, params=[Param(name, str(value)) for name, value in config_of(e).items()])
        for i in range(0, len(metrics), MAX_METRICS):
            client.log_batch(run, metrics=metrics[i : i + MAX_METRICS])
        if isinstance(record, Failure):
            client.set_tag(run, "error", f"{record.status}: {record.error}"[:5000])
        client.set_terminated(run, "FINISHED" if isinstance(record, ExperimentResult) else "FAILED", moment)

    def close(self) -> None:
        """Do nothing: every run is closed when it is logged."""

    def _connect(self) -> None:
        """Connect once, with short timeouts: a server that does not answer would keep the thread alive."""
        if self._client is not None:
            return
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow.tracking import MlflowClient

        uri = self._asked.tracking_uri
        client = MlflowClient(uri if uri is None or ":" in uri else expanded(uri, "trackers.mlflow.tracking_uri"))
        name = self._asked.experiment or self._sweep
        found = client.get_experiment_by_name(name)
        self._experiment = client.create_experiment(name) if found is None else found.experiment_id
        self._client = client
