"""Trackers are told what the ledger holds, and nothing that happens to them touches a sweep. F24."""

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flops_fit_ray.errors import SpecError
from flops_fit_ray.ledger import ExperimentResult, Failure, Ledger, Progress
from flops_fit_ray.ledger.watch import Watcher, Watchers
from flops_fit_ray.planning import Experiment
from flops_fit_ray.spec import SweepSpec, make_spec
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.trackers import check_installed, watchers_for
from flops_fit_ray.trackers._tracked import MAX_FAILURES, LoggedPoints, Tracker, TrackerView, run_name
from tests.hangs import HANG_SECONDS
from tests.nodes import free_port
from tests.parts import planned
from tests.sweeps import make_sweep, reference_parts, reference_spec

NEW = 3  # experiments that run while somebody looks


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every tracker come to its end, however busy the machine is."""
    monkeypatch.setattr("flops_fit_ray.trackers._choice.CLOSE_SECONDS", 600.0)


def spec_with(**trackers: Any) -> SweepSpec:
    spec = reference_spec()
    return SweepSpec.model_validate({**spec.model_dump(), "trackers": trackers})


def followed(root: Path, spec: SweepSpec, watchers: Sequence[Watcher]) -> Sweep:
    """A sweep of which `NEW` experiments are run under the eyes of `watchers`."""
    sweep = make_sweep(root, spec, reference_parts(spec), only=1)
    every = Watchers(watchers)
    every.take(Ledger(sweep.paths))
    every.on_plan(sweep.plan)
    with every.following():
        make_sweep(root, spec, reference_parts(spec), only=1 + NEW)
    return open_sweep(root)


def told(sweep: Sweep) -> dict[str, tuple[Experiment, ExperimentResult]]:
    by_key = {r.key: r for r in sweep.results}
    return {run_name(e): (e, by_key[e.key]) for e in sweep.plan.experiments[1 : 1 + NEW]}


def test_tensorboard_on_a_full_disk_raises_and_the_process_ends(tmp_path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from flops_fit_ray.trackers._tensorboard import TensorBoard
from tests.worlds import planner_of
e, board = planner_of().plan().experiments[0], TensorBoard(Path({str(tmp_path)!r}))
board.progress(e, [(0, {{"loss/train": 2.0}})])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # no file may grow beyond so many bytes
try:
    board.progress(e, [(step, {{"loss/train": 2.0}}) for step in range(1, 9)])
except OSError as error:
    print("raised", error.errno)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_SECONDS, check=True
    )
    assert done.stdout == f"raised {errno.EFBIG}\n" and not done.stderr


def test_tensorboard_shows_every_curve_and_the_hyperparameters(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped] # has no types

    spec, said = reference_spec(), list[str]()
    assert spec.trackers.tensorboard  # by default
    root = tmp_path / "s"
    sweep = followed(
        root, spec, watchers_for(spec, make_sweep(root, spec, reference_parts(spec), only=0).paths, said.append)
    )
    assert said == []
    runs = told(sweep)
    assert {path.name for path in sweep.paths.tensorboard.iterdir()} == set(runs)
    for name, (e, result) in runs.items():
        events = event_accumulator.EventAccumulator(str(sweep.paths.tensorboard / name))
        events.Reload()
        rows = [row for row in Ledger(sweep.paths).curve_rows(e.key) if row["train_loss"] is not None]
        shown = events.Scalars("loss/train")
        assert [point.step for point in shown] == [row["step"] for row in rows]
        assert [point.value for point in shown] == pytest.approx([row["train_loss"] for row in rows])
        assert {"lr", "grad_norm", "loss/held_out", "tokens"} <= set(events.Tags()["scalars"])
        assert events.Scalars("result/loss")[0].value == pytest.approx(result.loss)
        assert "_hparams_/session_start_info" in str(events.summary_metadata)


class Sink:
    """A tracker that counts."""

    name = "sink"

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.points: list[tuple[int, Mapping[str, float]]] = []

    def progress(self, e: Experiment, points: LoggedPoints) -> None:
        self.points += points

    def outcome(self, e: Experiment, record: ExperimentResult | Failure, points: LoggedPoints) -> None:
        self.outcomes.append(e.key)
        self.points += points

    def close(self) -> None:
        pass


class Raising(Sink):
    name = "raising"

    def outcome(self, e: Experiment, record: ExperimentResult | Failure, points: LoggedPoints) -> None:
        super().outcome(e, record, points)
        raise ConnectionError("nobody there")


class Hanging(Sink):
    name = "hanging"

    def __init__(self) -> None:
        super().__init__()
        self.hangs, self.ever = threading.Event(), threading.Event()

    def outcome(self, e: Experiment, record: ExperimentResult | Failure, points: LoggedPoints) -> None:
        super().outcome(e, record, points)
        self.hangs.set()
        self.ever.wait()


def watcher_of(tracker: Tracker, sweep: Sweep, said: list[str], time_limit: float = 600.0) -> Watcher:
    view = TrackerView(tracker, Ledger(sweep.paths), said.append)
    return Watcher(view, poll_seconds=0.05, time_limit=time_limit, name=tracker.name, say=said.append)


def shown_and_resumed(sweep: Sweep, trackers: Sequence[Tracker]) -> list[int]:
    """Let trackers see the second half of an experiment run: one sees the first part of it, the next one the rest.

    Returns the steps of its curve, each once.
    """
    ledger, result, said = Ledger(sweep.paths), sweep.results[0], list[str]()
    rows = ledger.curve_rows(result.key)
    running = Progress(
        key=result.key, tokens_seen=1, tokens=2, train_loss=1.0, host="h", pid=1, updated_at=1.0, tokens_per_second=3.0
    )
    parts = [0, len(rows) // 3, len(rows) // 2, len(rows) - 1]
    for number, tracker in enumerate(trackers):
        view = TrackerView(tracker, ledger, said.append)
        view.begin()
        view.plan(sweep.plan, 0)
        for end in parts[2 * number : 2 * number + 2]:
            ledger.record_curve(result.key, rows[:end])
            view.progress([running], 0, 1)
            view.progress([running], 0, 1)  # nothing new
        if number == len(trackers) - 1:
            ledger.record_curve(result.key, rows)
            view.outcome(result, 1, 1)
        view.end()
    assert said == []
    return sorted({row["step"] for row in rows})


def test_an_experiment_is_shown_while_it_runs_and_no_point_twice(tmp_path: Path) -> None:
    spec = reference_spec()
    sweep = make_sweep(tmp_path / "s", spec, reference_parts(spec), only=1)
    first, second = Sink(), Sink()
    steps = shown_and_resumed(sweep, [first, second])
    assert [step for sink in (first, second) for step, _ in sink.points] == steps
    rows = Ledger(sweep.paths).curve_rows(sweep.results[0].key)
    assert len(first.points) == len(rows) // 3 - 1  # before it was interrupted, without the newest
    (_, begun), (_, ended) = first.points[0], second.points[-1]
    assert begun["loss/train"] == rows[0]["train_loss"] and begun["lr"] == rows[0]["lr"] and begun["tokens"] > 0
    assert first.points[-1][1]["tokens_per_second"] == 3.0
    assert ended["loss/held_out"] == sweep.results[0].loss and "loss/train" in ended


def test_tensorboard_has_no_point_twice_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import event_accumulator

    from flops_fit_ray.trackers._tensorboard import TensorBoard

    spec = reference_spec()
    sweep = make_sweep(tmp_path / "s", spec, reference_parts(spec), only=1)
    steps = shown_and_resumed(sweep, [TensorBoard(local_path(sweep.paths.tensorboard)) for _ in range(2)])
    (run,) = sweep.paths.tensorboard.iterdir()
    events = event_accumulator.EventAccumulator(str(run))
    events.Reload()
    assert [point.step for point in events.Scalars("lr")] == steps
    assert [point.value for point in events.Scalars("tokens_per_second")] == [
        3.0
    ] * 3  # each time that there was something new


def test_one_that_raises_or_hangs_holds_up_nothing(tmp_path: Path) -> None:
    spec, said = reference_spec(), list[str]()
    alone = make_sweep(tmp_path / "alone", spec, reference_parts(spec), only=1 + NEW)
    empty = make_sweep(tmp_path / "s", spec, reference_parts(spec), only=0)
    raising, hanging, sink = Raising(), Hanging(), Sink()
    trackers = [(raising, 600.0), (hanging, 0.5), (sink, 600.0)]
    sweep = followed(tmp_path / "s", spec, [watcher_of(t, empty, said, time_limit) for t, time_limit in trackers])
    assert sweep.results_sha256 == alone.results_sha256
    assert hanging.hangs.wait(HANG_SECONDS)
    assert len(sink.outcomes) == NEW and len(raising.outcomes) == NEW and len(hanging.outcomes) == 1
    assert sorted(said) == [
        "hanging did not come to its end within 0.5 s, and is left behind",
        "raising failed (ConnectionError: nobody there); training continues",
        f"raising: {NEW} experiments were not logged; results.csv has them",
    ]
    hanging.ever.set()


def test_progress_that_always_succeeds_excuses_no_lost_outcome(tmp_path: Path) -> None:
    spec, said = reference_spec(), list[str]()
    sweep = make_sweep(tmp_path / "s", spec, reference_parts(spec), only=1)
    raising = Raising()
    view = TrackerView(raising, Ledger(sweep.paths), said.append)
    view.plan(sweep.plan, 0)
    key, now = sweep.results[0].key, time.time()
    running = Progress(key=key, tokens_seen=1, tokens=2, train_loss=1.0, host="h", pid=1, updated_at=now)
    for _ in range(MAX_FAILURES + 2):
        view.progress([running], 0, 1)
        view.outcome(sweep.results[0], 1, 1)
    view.end()
    assert len(raising.outcomes) == MAX_FAILURES  # then it is not asked any more
    assert said == [
        "raising failed (ConnectionError: nobody there); training continues",
        f"raising: {MAX_FAILURES + 2} experiments were not logged; results.csv has them",
    ]


def test_one_that_hangs_does_not_hold_up_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flops_fit_ray.ledger.watch.HURRIED_SECONDS", 0.1)
    spec, said = reference_spec(), list[str]()
    sweep = make_sweep(tmp_path / "s", spec, reference_parts(spec), only=1)
    hanging = Hanging()
    watcher = watcher_of(hanging, sweep, said)
    watcher.take(Ledger(sweep.paths))
    watcher.on_plan(sweep.plan)
    with pytest.raises(KeyboardInterrupt), watcher.following():
        make_sweep(tmp_path / "s", spec, reference_parts(spec), only=2)
        assert hanging.hangs.wait(HANG_SECONDS)
        raise KeyboardInterrupt
    assert said == ["hanging did not come to its end within 0.1 s, and is left behind"]
    hanging.ever.set()


def test_one_that_is_not_installed_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_installed(reference_spec())
    with pytest.raises(
        SpecError, match=r"trackers.wandb: wandb is not installed; run pip install 'flops-fit-ray\[wandb\]'"
    ):
        check_installed(spec_with(wandb={}, mlflow={}))


def test_a_secret_in_the_spec_is_refused_and_not_repeated() -> None:
    with pytest.raises(SpecError, match="holds credentials") as caught:
        make_spec(
            {**reference_spec().model_dump(), "trackers": {"mlflow": {"tracking_uri": "http://me:hunter2@h"}}}, "s"
        )
    assert "hunter2" not in str(caught.value)


def test_trackers_change_no_experiment() -> None:
    plain, tracked = reference_spec(), spec_with(tensorboard=False, mlflow={"tracking_uri": "http://x"})
    plans = [planned(spec, reference_parts(spec)) for spec in (plain, tracked)]
    assert [e.key for e in plans[0].experiments] == [e.key for e in plans[1].experiments]


def test_flops_beyond_64_bits_are_floats(tmp_path: Path) -> None:
    spec = reference_spec()
    (result, *_) = make_sweep(tmp_path / "s", spec, reference_parts(spec), only=1).results
    values = list(result.measured.values())
    assert len(values) >= 5 and all(type(value) is float for value in values)


def test_wandb_without_a_key_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    spec, said = spec_with(tensorboard=False, wandb={}), list[str]()
    paths = make_sweep(tmp_path / "s", spec, reference_parts(spec), only=0).paths
    sweep = followed(tmp_path / "s", spec, watchers_for(spec, paths, said.append))
    assert len(sweep.results) == 1 + NEW
    assert len(said) == 2 and said[0].startswith("W&B failed (SpecError: trackers.wandb: no API key")


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format (32 KiB blocks) behind 7 bytes of W&B's own."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its end
            yield whole
            whole = b""


def wandb_steps(directory: Path) -> list[tuple[str, list[int]]]:
    """Of every .wandb file the name of its run and the steps that were logged, in the order of time."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted(directory.rglob("run-*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        steps, name = [], ""
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined] # made by protobuf when it is imported
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                steps.append(int(record.history.step.num))
            name = record.run.display_name or name
        found.append((name, steps))
    return found


def test_wandb_goes_on_with_a_run_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from flops_fit_ray.trackers._wandb import Wandb

    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path))
    spec = spec_with(tensorboard=False, wandb={"mode": "offline"})
    assert spec.trackers.wandb is not None
    sweep = make_sweep(tmp_path / "s", spec, reference_parts(spec), only=1)
    place = local_path(sweep.paths.wandb)
    all_steps = shown_and_resumed(sweep, [Wandb(spec.trackers.wandb, "known", place) for _ in range(2)])
    (name, steps), (again, more) = wandb_steps(place)
    assert name == again == run_name(sweep.plan.experiments[0])
    assert steps and more and steps + more == all_steps


def test_wandb_offline_has_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    spec, said = spec_with(tensorboard=False, wandb={"mode": "offline", "project": "p"}), list[str]()
    paths = make_sweep(tmp_path / "s", spec, reference_parts(spec), only=0).paths
    sweep = followed(tmp_path / "s", spec, watchers_for(spec, paths, said.append))
    assert said == []
    found = {name: len(steps) for name, steps in wandb_steps(local_path(sweep.paths.wandb))}
    assert found == {
        name: len({row["step"] for row in Ledger(sweep.paths).curve_rows(e.key)})
        for name, (e, _) in told(sweep).items()
    }


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real one, on a port of its own."""
    pytest.importorskip("mlflow")
    place = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{place}/mlflow.db",
        "--artifacts-destination",
        str(place / "a"),
    ]
    with (place / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=place)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=2).close()  # noqa: S310 - our own server
                break
            assert server.poll() is None and time.monotonic() < until, (place / "server.log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, 9)
        server.wait()


@pytest.mark.slow
@pytest.mark.xdist_group("mlflow")  # one server
def test_an_mlflow_server_has_every_run(tmp_path: Path, mlflow_server: str) -> None:
    from mlflow.tracking import MlflowClient

    spec, said = spec_with(tensorboard=False, mlflow={"tracking_uri": mlflow_server, "experiment": "mine"}), list[str]()
    paths = make_sweep(tmp_path / "s", spec, reference_parts(spec), only=0).paths
    sweep = followed(tmp_path / "s", spec, watchers_for(spec, paths, said.append))
    assert said == []
    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == set(told(sweep))
    for run in runs:
        e, result = told(sweep)[run.info.run_name]
        assert run.info.status == "FINISHED" and run.data.tags["flops_fit_ray.key"] == e.key
        assert run.data.metrics["loss"] == result.loss and run.data.params["params"] == str(e.params)
        history = client.get_metric_history(run.info.run_id, "loss/train")
        rows = [row for row in Ledger(sweep.paths).curve_rows(e.key) if row["train_loss"] is not None]
        assert sorted((m.step, m.value) for m in history) == [(row["step"], row["train_loss"]) for row in rows]


@pytest.mark.slow
@pytest.mark.xdist_group("mlflow")
def test_mlflow_goes_on_with_a_run_after_a_resume(tmp_path: Path, mlflow_server: str) -> None:
    from mlflow.tracking import MlflowClient

    from flops_fit_ray.trackers._mlflow import Mlflow

    spec = spec_with(tensorboard=False, mlflow={"tracking_uri": mlflow_server, "experiment": "resumed"})
    assert spec.trackers.mlflow is not None
    sweep = make_sweep(tmp_path / "s", spec, reference_parts(spec), only=1)
    steps = shown_and_resumed(sweep, [Mlflow(spec.trackers.mlflow, "known") for _ in range(2)])
    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("resumed")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "lr")
    assert sorted(m.step for m in history) == steps and run.info.status == "FINISHED"


def test_an_mlflow_server_that_is_not_there_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    spec, said = spec_with(tensorboard=False, mlflow={"tracking_uri": f"http://127.0.0.1:{free_port()}"}), list[str]()
    paths = make_sweep(tmp_path / "s", spec, reference_parts(spec), only=0).paths
    sweep = followed(tmp_path / "s", spec, watchers_for(spec, paths, said.append))
    assert len(sweep.results) == 1 + NEW
    assert said[0].startswith("MLflow failed (MlflowException") and len(said) == 2
