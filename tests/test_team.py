"""Experiments of several workers, through Ray: two processes with gloo here, GPUs with NCCL elsewhere."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from flops_fit_ray.ledger import Ledger
from flops_fit_ray.storage.atomic import read_json
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.sweep.directory import open_sweep
from tests.chaos import Driver, Row, children_of, make_project, plain_sweep
from tests.chaos.stops import moved_ray, stop_by
from tests.hangs import HANG_SECONDS
from tests.records import recorded
from tests.test_cli import call

pytestmark = pytest.mark.ray

TOGETHER = ("--set", "workers_per_trial=2")
CORES = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2}'}  # of the machine that Ray starts on
SHARED = ("--set", "shard_model=true")
FAILS = """

class Odd(Slow):
    def forward(self, x):
        import torch.distributed as dist
        rank = dist.get_rank() if dist.is_initialized() else None
        if rank == 1 and self.features == 10:
            raise ValueError("only the other worker sees this")
        if rank == 1 and self.features == 14:
            exit(3)
        if rank == 1 and self.features == 20 and not self.training:
            raise MemoryError("too much for the other worker")
        if rank == 0 and self.features == 28:
            raise RuntimeError("only the leader sees this")
        return super().forward(x)
"""
FAILURES: dict[
    int | str, tuple[str, str, str]
] = {  # with a sharded model every worker waits for the others in each layer
    10: ("failed", "ValueError: only the other worker sees this", "in another worker of this experiment"),
    14: ("failed", "the code calls exit()", "in another worker of this experiment"),
    20: ("out_of_memory", "out of memory: too much for the other worker", "in another worker of this experiment"),
    28: ("failed", "RuntimeError: only the leader sees this", "in forward"),
}


def others_of(experiments: StoragePath) -> list[dict[str, Any]]:
    """What the other workers of running experiments have sent."""
    signs = [read_json(path) or {} for path in experiments.glob("*/progress.json")]
    return [reading for sign in signs for reading in sign.get("others") or ()]


@pytest.mark.slow
def test_two_workers_find_what_one_finds_and_their_deaths_are_nobodys_failure(tmp_path: Path) -> None:
    spec = make_project(tmp_path / "project")
    alone = plain_sweep(tmp_path / "alone")
    places = {**CORES, **moved_ray(tmp_path)}
    together = Driver(  # each with half of the model
        spec, tmp_path / "together", *TOGETHER, *SHARED, pause=0.01, environment=places
    )
    root = together.root
    assert together.until(lambda: len(recorded(root)) >= 2)
    followers = [pid for pid, words in children_of(together.process.pid).items() if "ray::Follower" in words]
    assert len(followers) == 1
    running = SweepPaths(root).experiments
    assert together.until(lambda: any(o["host"] for o in others_of(running)))  # a reading of the other's node
    os.kill(followers[0], signal.SIGKILL)  # in the middle of a step, as far as the leader knows
    assert together.until(lambda: len(recorded(root)) >= 5)
    stop_by(together, "SIGTERM to everything", row := Row("SIGTERM"))
    assert row.violations == []
    before = recorded(root)
    together = Driver(spec, root, *TOGETHER, pause=0, environment=CORES)
    assert together.wait(HANG_SECONDS) == 0, together.said
    assert "cluster: 1 experiment at a time" in together.said
    two = open_sweep(root)
    losses = {r.key: r.loss for r in alone.results}
    assert {r.key for r in two.results} == set(losses) and not two.failures and two.num_deaths == 1
    for result in two.results:
        assert result.workers == 2 and result.tokens_seen == result.tokens
        assert result.loss == pytest.approx(losses[result.key], rel=1e-6)
    assert {key: recorded(root)[key] for key in before} == before


@pytest.mark.parametrize(
    "sizes",  # each failure ends two processes, and two more begin
    [(5, 7, 9, 13, 20, 28), pytest.param((5, 7, 10, 14, 20, 28), marks=pytest.mark.slow)],
    ids=["two kinds", "all kinds"],
)
def test_an_error_of_one_worker_is_that_experiments_failure_and_nobody_waits_for_it(
    sizes: tuple[int, ...], tmp_path: Path
) -> None:
    expected: dict[int | str, tuple[str, str, str]] = {size: FAILURES[size] for size in sizes if size in FAILURES}
    spec = make_project(tmp_path / "project")
    with (spec.parent / "parts.py").open("a") as file:
        file.write(FAILS)
    few = (
        "--set",
        f"budgets=[{{flops: 2e4, sizes: {list(sizes[:3])}}}, {{flops: 4e4, sizes: {list(sizes[3:])}}}]",
        "--set",
        "model.target=parts:Odd",
    )
    driver = Driver(spec, tmp_path / "out", *TOGETHER, *SHARED, *few, pause=0, environment=CORES)
    assert driver.wait(HANG_SECONDS) == 1, driver.said
    sweep = open_sweep(driver.root)
    assert len(sweep.results) == len(sizes) - len(expected)
    size_of = {e.key: e.size for e in sweep.plan.experiments}
    assert len(sweep.failures) == len(expected) and {size_of[f.key] for f in sweep.failures} == set(expected)
    for failure in sweep.failures:
        status, error, trace = expected[size_of[failure.key]]
        assert failure.status == status and error in failure.error and trace in failure.traceback
        assert failure.deaths == 0 and Ledger(SweepPaths(driver.root)).num_attempts(failure.key) == 1


def test_more_workers_than_there_are_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = make_project(tmp_path / "project")
    more = ("--set", "workers_per_trial=4", "--set", "resources_per_trial={cpu: 64}")
    assert call("run", spec, "--output", tmp_path / "out", *more) == 2
    assert "the largest node has {cpu:" in capsys.readouterr().err
