"""Sweeps on a real Ray from Python: trained once, bit-equal to a plain loop, not stopped by a failure.

Ray starts once for all of them.
"""

import importlib
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.tune import ExperimentAnalysis, ResultGrid, registry
from torch import Tensor

from flops_fit_ray import Result, SpecError, check, find_optimal
from flops_fit_ray.analysis import fit_to_json
from flops_fit_ray.engine._searcher import ErrorReader
from flops_fit_ray.engine._trainable import TrialContext, run_experiment
from flops_fit_ray.engine.loaders import Loader, ObjectLoader, SharedLoader, code_loader
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.errors import ResourceError, StorageError
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning import Experiment, Plan, is_single_run
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import open_sweep
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.outcome import Outcome
from flops_fit_ray.training.preflight.timing import PrecisionChoice
from flops_fit_ray.training.user.losses import mse
from flops_fit_ray.training.user.parts import make_user_parts
from flops_fit_ray.training.user.user_code import NO_ARGUMENTS
from tests.parts import (
    BIGRAM,
    Mlp,
    Pairs,
    TruncatedRegression,
    planned,
    power_law_regression,
    regression,
    spec_of,
    user_parts_of,
)
from tests.records import outcomes
from tests.streams import every_kind
from tests.sweeps import make_sweep, reference_parts, reference_spec
from tests.test_checkpoint import Dropping

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray"), pytest.mark.usefixtures("no_figures")]


def few() -> SweepSpec:
    """`reference_spec` with four sizes for each of two budgets, three of them the same."""
    spec = reference_spec(2)
    return spec.model_copy(
        update={"budgets": [b.model_copy(update={"sizes": (b.sizes or [])[::2]}) for b in spec.budgets]}
    )


def arguments_of(**changes: Any) -> dict[str, Any]:
    """What `find_optimal` needs for that sweep."""
    return {
        "model_size_param": "features",
        "dataset": power_law_regression(),
        "loss_fn": "mse",
        "compute_budgets": [{"flops": b.flops, "sizes": b.sizes} for b in few().budgets],
        "batch_size": 4,
        "lr": 0.04,
        "optimizer": "sgd",
        "grad_clip": None,
        "warmup_tokens": 0,
        "quiet": True,
        "resources_per_trial": {"cpu": 1},  # bit-equality is promised on the CPU
        **changes,
    }


def known(output: Path, **changes: Any) -> Result:
    return find_optimal(TruncatedRegression, output_dir=output, train=True, **arguments_of(**changes))


def test_a_sweep_is_bit_equal_to_a_plain_loop_and_runs_once(
    ray_here: None, shared_data: list[Loader], tmp_path: Path
) -> None:
    """Two experiments at a time, over data that lie once per node."""
    result = known(tmp_path / "ray", resources_per_trial={"cpu": 0.5})
    assert result.complete and isinstance(shared_data[0], SharedLoader)
    cluster = Ledger(SweepPaths(tmp_path / "ray")).cluster()
    assert cluster is not None and cluster.slots == 2
    frame = result.to_frame()
    assert (frame["tokens"] == frame["tokens_seen"]).all()
    assert set(frame["attempts"]) == {1}

    spec = few()
    plain = make_sweep(tmp_path / "plain", spec, reference_parts(spec)).to_frame()
    for column in ("budget", "size", "tokens_seen", "loss", "loss_stderr", "train_loss"):
        assert list(frame[column]) == list(plain[column]), column

    (directory,) = (tmp_path / "ray" / "tune").glob("round-*")  # Tune's own table says the same
    grid = ResultGrid(ExperimentAnalysis(str(directory)))
    trials = [grid[i] for i in range(len(grid))]
    seen = {trial.config["key"]: trial.metrics for trial in trials if trial.config}
    by_key = frame.set_index("key")
    assert set(seen) == set(by_key.index)
    for key, metrics in seen.items():
        row = by_key.loc[key]
        assert metrics is not None and metrics["status"] == "completed" and metrics["size"] == str(row["size"])
        for name, column in {"loss": "loss", "tokens": "tokens_seen", "flops": "flops", "budget": "budget"}.items():
            assert metrics[name] == row[column] and type(metrics[name]) is float

    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "ray" / "experiments").rglob("*")}
    again = known(tmp_path / "ray")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "ray" / "experiments").rglob("*")} == files
    assert fit_to_json(again.fit) == fit_to_json(result.fit)


def test_every_kind_of_data_gives_the_same_bits_in_a_trial(ray_here: None, tmp_path: Path) -> None:
    """One worker trains them one after the other: to start a worker takes longer than to train."""
    spec = spec_of(model=BIGRAM, data={"train": "tests.parts:text", "max_epochs": 9}, loss="cross_entropy",
                   budgets=[4e6, 8e6], train={"batch_size": 8, "lr": 1e-2})  # fmt: skip

    def trial(context: TrialContext, experiment: Experiment) -> str:
        return run_experiment(context, Ledger(SweepPaths(context.root)), context.load_user_parts, experiment)

    task = ray.remote(trial).options(num_cpus=1)
    for kind in ("augmented", "token file", "iterable", "loader"):
        here, there = (user_parts_of(spec, model=Dropping, train=every_kind(tmp_path)[kind]) for _ in range(2))
        plan = planned(spec, here)
        context = TrialContext(
            root=tmp_path / kind,
            load_user_parts=ObjectLoader(there),
            spec=spec,
            eval_samples=plan.measurements.data.eval_samples,
            slots=Slots(resources={"cpu": 1}, count=1),
        )
        experiment = plan.experiments[1]
        assert ray.get(task.remote(context, experiment)) == "completed"
        result = Ledger(SweepPaths(context.root)).result(experiment.key)
        outcome = train_experiment(experiment, here, eval_samples=context.eval_samples)
        assert result is not None and (result.loss, result.train_loss) == (outcome.loss, outcome.train_loss), kind


def test_python_users_can_check_first(ray_here: None) -> None:
    names = ("model_size_param", "dataset", "loss_fn", "compute_budgets", "batch_size", "lr", "resources_per_trial")
    arguments = arguments_of()
    report = check(TruncatedRegression, **{name: arguments[name] for name in names})
    assert report.verdict == "PASS" and len(report.lines) == 10
    assert str(report).splitlines()[0].startswith("PASS  runs        size 8: 8 parameters, size 136: 136 parameters")


def test_auto_is_measured_once_and_a_directory_that_cannot_be_written_loses_nothing(
    ray_here: None, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"precision": "auto", "compile": "auto", "grid": {"trunk": False}}
    (tmp_path / "experiments").mkdir()
    for precision in ("fp32", "bf16"):
        chosen_then = arguments_of(**{**arguments, "precision": precision, "compile": False})
        planned = find_optimal(TruncatedRegression, train=False, **chosen_then).experiments
        last = min(planned, key=lambda e: e.tokens * e.flops_per_token)  # the cheapest is the last to run
        # A file where the ledger needs a directory: its write fails as on a full disk
        (tmp_path / "experiments" / last.key).touch()
    with pytest.raises(StorageError, match="/experiments/.* cannot be written: .*; fix that"):
        known(tmp_path, **arguments)
    before = outcomes(tmp_path)
    assert len(before) == len(planned) - 1
    for blocked in (tmp_path / "experiments").iterdir():
        if blocked.is_file():
            blocked.unlink()
    (chosen,) = {result.precision for result in open_sweep(tmp_path).results}
    assert chosen in ("fp32", "bf16")
    other = {"fp32": "bf16", "bf16": "fp32"}[chosen]
    with pytest.MonkeyPatch.context() as patch:  # were it measured again, the other one would come out
        choice = PrecisionChoice(precision=other, compile=True, seconds={})
        patch.setattr("flops_fit_ray.engine.preflight.choose_on_worker", lambda *a, **k: choice)
        again = known(tmp_path, **arguments)
    assert again.complete and set(again.to_frame()["precision"]) == {chosen}
    assert not any(e.recipe.compile for e in again.plan.experiments)  # seconds of training are not worth it
    assert before.items() <= outcomes(tmp_path).items()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_trial_with_a_gpu_trains_on_it(ray_here: None, tmp_path: Path) -> None:
    frame = known(tmp_path / "gpu", resources_per_trial={"gpu": 1}).to_frame()
    spec = few()
    plain = make_sweep(tmp_path / "plain", spec, reference_parts(spec)).to_frame()
    assert set(frame["device"]) == {torch.cuda.get_device_name()}
    assert list(frame["tokens_seen"]) == list(plain["tokens_seen"])
    assert list(frame["loss"]) == pytest.approx(list(plain["loss"]), rel=1e-3)


class Blocking(Pairs):
    """A dataset that gives no more samples while somebody says so."""

    blocked = False

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        while Blocking.blocked:
            time.sleep(0.1)
        return super().__getitem__(index)


class Fragile(Mlp):
    """Fails, dies, diverges, leaves, waits or asks for too much, each at one width."""

    def __init__(self, width: int, marks: str, inputs: int = 8) -> None:
        super().__init__(width, inputs)
        self.width, self.marks = width, Path(marks)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        when = 20 if self.width == 20 else 100  # one dies before its first checkpoint, and never gets further
        if x.device.type != "meta" and self.calls == when and (self.marks / "armed").exists():
            if self.width == 6:
                raise RuntimeError("my own bug")
            if self.width == 8:
                os._exit(3)
            if self.width == 12 and not (self.marks / "died").exists():
                (self.marks / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.width == 20:
                os.abort()
            if self.width == 16:
                return super().forward(x) * torch.nan
            if self.width == 10:
                Blocking.blocked = True
            if self.width == 14:
                raise torch.OutOfMemoryError("CUDA out of memory")
            if self.width == 18 and len(x) > 2:
                self.calls -= 1
                raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def alone(plan: Plan, key: str, marks: Path) -> Outcome:
    """One experiment without Ray, and with nothing that goes wrong."""
    user = make_user_parts(
        model=Fragile,
        model_kwargs={"marks": str(marks / "elsewhere")},
        loss=mse,
        train=Blocking(*regression(20_000).tensors),
        held_out=None,
        data=spec_of().data,
    )
    (experiment,) = [e for e in plan.experiments if e.key == key]
    return train_experiment(experiment, user, eval_samples=plan.measurements.data.eval_samples)


def test_failures_are_recorded_and_stop_nothing(ray_here: None, tmp_path: Path) -> None:
    (tmp_path / "armed").touch()
    arguments: dict[str, Any] = {
        "model_size_param": "width",
        "model_kwargs": {"marks": str(tmp_path)},
        "dataset": Blocking(*regression(20_000).tensors),
        "loss_fn": "mse",
        "compute_budgets": [
            {"flops": 8e5, "sizes": [4, 6, 8, 10, 12, 14, 16, 18, 20, 24]},
            {"flops": 1.6e6, "sizes": [4, 12, 14, 18, 24]},
        ],
        "timeout_seconds": 3,
        "max_retries": 1,  # each costs the start of a worker; test_dispatch.py counts to the default of three
        "checkpoint": {"steps": 30},
        "batch_size": 8,
        "lr": 1e-2,
        "resources_per_trial": {"cpu": 1},
        "output_dir": tmp_path / "out",
        "quiet": True,
    }
    result = find_optimal(Fragile, **arguments)
    frame = result.to_frame().set_index(["size", "budget"])
    status = {size: set(frame.loc[size]["status"]) for size in (4, 6, 8, 10, 12, 14, 16, 18, 20, 24)}
    assert status == {
        4: {"completed"},
        6: {"failed"},
        8: {"failed"},
        10: {"stalled"},
        12: {"completed"},
        14: {"completed"},
        18: {"completed"},
        16: {"diverged"},
        20: {"infrastructure"},
        24: {"completed"},
    }
    assert list(frame.loc[6]["error"]) == ["RuntimeError: my own bug"]
    (left,) = frame.loc[8]["error"]
    assert left.startswith("SystemExit: the code calls exit(); ") and list(frame.loc[8]["attempts"]) == [1]
    assert list(frame.loc[6]["attempts"]) == [1]  # the user's errors are not retried by themselves
    assert sorted(frame.loc[12]["attempts"]) == [1, 2]  # a dead worker is, up to max_retries times
    assert list(frame.loc[20]["attempts"]) == [2]  # in a row without getting further
    aborted = frame.loc[20]["error"].item()
    assert aborted.startswith('its worker ended 2 times without an outcome: Fatal Python error: Aborted (File "')
    assert aborted.endswith(" in forward)")
    assert list(frame.loc[10]["attempts"]) == [1]
    assert list(frame.loc[10]["error"]) == ["data.train gave no batch for 3 s (data.timeout_seconds)"]
    # Once out of memory is once halved; the larger budget begins at the trunk with what fitted, and is halved again
    assert list(frame.loc[14]["micro_batch_size"]) == [4, 2]
    assert list(frame.loc[18]["micro_batch_size"]) == [2, 2]
    sweep = open_sweep(result.output)
    (stalled,) = [f for f in sweep.failures if f.status == "stalled"]
    assert "in __getitem__" in stalled.traceback and stalled.seconds > 2.7
    (killed,) = [r for r in sweep.results if r.size == 12 and r.attempts == 2]
    assert killed.resumed_from == 90  # killed in step 100, a checkpoint every 30
    words = [e.message for e in Ledger(sweep.paths).events(killed.key)]
    assert "resuming from the checkpoint at step 90" in words
    assert killed.loss == alone(sweep.plan, killed.key, tmp_path).loss  # as if nothing had happened, to the last bit
    kept = {p.parent.parent.name for p in sweep.paths.experiments.glob("*/checkpoints/*.pt")}
    assert kept <= {f.key for f in sweep.failures}
    (own_bug,) = [f for f in sweep.failures if f.error.startswith("RuntimeError")]
    assert "in forward" in own_bug.traceback
    assert "my own bug" in local_path(sweep.paths.report).read_text()


def test_a_session_of_ours_starts_nothing_that_idles(ray_here: None) -> None:
    """Neither an autoscaler nor a dashboard nor a log monitor: half of the CPU time of a start."""
    worker: Any = ray._private.worker
    assert set(worker._global_node.all_processes) == {"gcs_server", "raylet"}


def test_what_the_cluster_cannot_give_is_refused_at_once(ray_here: None, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"is \{cpu: 4096\}, but the largest node has \{cpu: "):
        known(tmp_path, resources_per_trial={"cpu": 4096})


def test_gpus_that_torch_cannot_use_are_refused_before_anything_runs(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.backends.cuda.is_built():  # type: ignore[no-untyped-call] # torch leaves it untyped
        pytest.skip("needs a build of torch for the CPU")
    (node,) = ray.nodes()  # type: ignore[no-untyped-call] # Ray leaves it untyped
    node["Resources"]["GPU"] = 2.0  # as Ray counts those of the driver
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    words = (
        r"Ray counts 2 GPUs, and torch .* is built without CUDA; .*, or run on CPUs with device: cpu \(--device cpu\)"
    )
    with pytest.raises(ResourceError, match=words):
        known(tmp_path, resources_per_trial={"gpu": 1})
    assert not list(tmp_path.glob("experiments/*"))
    assert known(tmp_path, resources_per_trial={"gpu": 1}, device="cpu").complete


def test_a_gpu_that_is_asked_for_is_not_replaced(ray_here: None, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="device is cuda, and no node of this cluster has a GPU"):
            known(tmp_path, resources_per_trial={"gpu": 1}, device="cuda")


def test_workers_have_the_drivers_directory_search_path_arguments_and_settings_of_torch(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Ray has started elsewhere
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "from_a_notebook.py").write_text("def loss(outputs, targets):\n    return 12.0\n")
    monkeypatch.syspath_prepend("lib")
    monkeypatch.setattr(sys, "argv", ["train.py", "--mine"])
    loss = importlib.import_module("from_a_notebook").loss
    parts = replace(reference_parts(reference_spec(2)), loss=loss)
    torch.set_float32_matmul_precision("high")
    loader = ObjectLoader(parts)
    torch.set_float32_matmul_precision("highest")

    def look(loader: Loader) -> tuple[str, list[str], str, float | None]:
        found = loader().loss(None, None) if isinstance(loader, ObjectLoader) else None
        return str(Path.cwd()), sys.argv, torch.get_float32_matmul_precision(), found

    there = ray.get(ray.remote(max_calls=1)(look).remote(loader))
    assert there == (str(tmp_path), ["train.py", "--mine"], "high", 12.0)
    code = code_loader(reference_spec(2), tmp_path)
    there = ray.get(ray.remote(max_calls=1)(look).remote(code))
    assert there == (str(tmp_path), [str(tmp_path), NO_ARGUMENTS], "highest", None)


def test_what_cannot_travel_is_refused_before_ray(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w") as handle, pytest.raises(SpecError, match="loss cannot be sent to a worker"):
        known(tmp_path / "out", loss_fn=lambda a, b: (handle, (a - b).pow(2).mean())[1])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_until_adds_single_runs_in_python(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a sweep that is too large for Tune to keep a state of its trials: what it does for each does not grow."""
    monkeypatch.setattr("flops_fit_ray.engine._rounds.MAX_STATE_EXPERIMENTS", 0)
    monkeypatch.setattr("flops_fit_ray.engine._lean_tune.FORGET_SECONDS", 0.0)
    held, asked = list[int](), list[bytes]()  # trials that Tune holds when one is added; questions to the head
    ask = vars(registry)["_internal_kv_get"]
    monkeypatch.setattr(ErrorReader, "on_trial_add", lambda _, tune, trial: held.append(len(tune.get_trials())))
    monkeypatch.setattr(registry, "_internal_kv_get", lambda key: [asked.append(key), ask(key)][1])  # type: ignore[func-returns-value] # of the first no value is taken
    arguments: dict[str, Any] = {
        "compute_budgets": [5e4, 2e5],
        "grid": {"tokens_per_param": 40, "seeds": 0, "first_sizes": 5, "max_experiments": 17},
    }
    result = known(tmp_path, **arguments, until="1.00001@1e6")
    chosen = [e for e in result.plan.experiments if is_single_run(e)]
    assert result.complete and chosen and not (tmp_path / "tune").exists()
    assert [(e.budget, e.size) for e in chosen] == [(run.flops, run.size) for run in result._sweep.spec.grid.runs]
    assert {r.key for r in result._sweep.results} >= {e.key for e in chosen}
    assert len(held) >= 10 and max(held) <= 3 and len(asked) < len(held)
    again = known(tmp_path, **arguments)
    assert {e.key for e in again.plan.experiments} == {e.key for e in result.plan.experiments}
