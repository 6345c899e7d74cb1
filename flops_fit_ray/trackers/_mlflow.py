"""MLflow: an MLflow experiment per sweep with a run per experiment, logged while it trains."""

from __future__ import annotations

import os
import time
from typing import Any

from flops_fit_ray.ledger import ExperimentResult, Failure
from flops_fit_ray.planning import Experiment
from flops_fit_ray.spec import MlflowSection
from flops_fit_ray.storage.storage_path import expanded
from flops_fit_ray.trackers._tracked import LoggedPoints, config_of, run_name

MAX_METRICS = 1000  # in one request


class Mlflow:
    """MLflow as a `Tracker`."""

    name = "MLflow"

    def __init__(self, asked: MlflowSection, sweep: str) -> None:
        self._asked, self._sweep = asked, sweep
        self._client: Any = None
        self._experiment = ""
        self._runs: dict[str, str] = {}  # ids of open runs, by the experiment's key

    def progress(self, e: Experiment, points: LoggedPoints) -> None:
        """Log the next points of the curve."""
        self._log(self._run(e), points, int(1000 * time.time()))

    def outcome(self, e: Experiment, record: ExperimentResult | Failure, points: LoggedPoints) -> None:
        """Log the rest of the curve and the result, and end the run."""
        run, moment = self._run(e), int(1000 * record.finished_at)
        completed = isinstance(record, ExperimentResult)
        measured = [(e.steps, record.measured)] if isinstance(record, ExperimentResult) else []
        self._log(run, [*points, *measured], moment)
        if isinstance(record, Failure):
            self._client.set_tag(run, "error", f"{record.status}: {record.error}"[:5000])
        self._client.set_terminated(run, "FINISHED" if completed else "FAILED", moment)
        del self._runs[e.key]

    def close(self) -> None:
        """End the runs of experiments that were interrupted: a resumed sweep goes on with them."""
        while self._runs:
            self._client.set_terminated(self._runs.popitem()[1], "KILLED")

    def _log(self, run: str, points: LoggedPoints, moment: int) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(tag, v, moment, step) for step, figures in points for tag, v in figures.items()]
        for i in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(run, metrics=metrics[i : i + MAX_METRICS])

    def _run(self, e: Experiment) -> str:
        """Return the id of an experiment's run: that of an earlier start, or a new one."""
        if e.key in self._runs:
            return self._runs[e.key]
        self._connect()
        from mlflow.entities import Param

        tags = {"flops_fit_ray.key": e.key, "flops_fit_ray.sweep": self._sweep}
        same = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found = self._client.search_runs([self._experiment], filter_string=same, max_results=1)
        if found:
            run = str(found[0].info.run_id)
            self._client.update_run(run, status="RUNNING")
        else:
            run = str(self._client.create_run(self._experiment, run_name=run_name(e), tags=tags).info.run_id)
            self._client.log_batch(run, params=[Param(name, str(value)) for name, value in config_of(e).items()])
        self._runs[e.key] = run
        return run

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
