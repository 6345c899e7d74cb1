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
from tests.chaos import Driver, children_of, make_project, plain_sweep
from tests.records import recorded
from tests.test_cli import call

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TOGETHER = ("--set", "workers_per_trial=2")
CORES = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2}'}  # of the machine that Ray starts on
SHARED = ("--set", "shard_model=true")
FAILS = """

class Odd(Slow):
    def forward(self, x):
        import torch.distributed as dist
        if dist.is_initialized() and dist.get_rank() == 1 and self.features == 10:
            raise ValueError("only the other worker sees this")
        if dist.is_initialized() and dist.get_rank() == 1 and self.features == 20:
            exit(3)
        return super().forward(x)
"""


def others_of(experiments: StoragePath) -> list[dict[str, Any]]:
    """What the other workers of running experiments have sent."""
    signs = [read_json(path) or {} for path in experiments.glob("*/progress.json")]
    return [reading for sign in signs for reading in sign.get("others") or ()]


def test_two_workers_find_what_one_finds_and_their_deaths_are_nobodys_failure(tmp_path: Path) -> None:
    spec = make_project(tmp_path / "project")
    alone = plain_sweep(tmp_path / "alone")
    together = Driver(
        spec, tmp_path / "together", *TOGETHER, *SHARED, pause=0.01, environment=CORES
    )  # each with half of the model
    root = together.root
    assert together.until(lambda: len(recorded(root)) >= 2)
    followers = [pid for pid, words in children_of(together.process.pid).items() if "ray::Follower" in words]
    assert len(followers) == 1
    running = SweepPaths(root).experiments
    assert together.until(lambda: any(o["host"] for o in others_of(running)))  # a reading of the other's node
    os.kill(followers[0], signal.SIGKILL)  # in the middle of a step, as far as the leader knows
    assert together.until(lambda: len(recorded(root)) >= 5)
    together.process.send_signal(signal.SIGTERM)
    assert together.wait(60) == 4, together.said
    before = recorded(root)
    together = Driver(spec, root, *TOGETHER, pause=0, environment=CORES)
    assert together.wait(200) == 0, together.said
    assert "cluster: 1 experiments at a time" in together.said
    two = open_sweep(root)
    losses = {r.key: r.loss for r in alone.results}
    assert {r.key for r in two.results} == set(losses) and not two.failures and two.num_deaths == 1
    for result in two.results:
        assert result.workers == 2 and result.tokens_seen == result.tokens
        assert result.loss == pytest.approx(losses[result.key], rel=1e-6)
    assert {key: recorded(root)[key] for key in before} == before


def test_an_error_of_another_worker_is_that_experiments_failure(tmp_path: Path) -> None:
    spec = make_project(tmp_path / "project")
    with (spec.parent / "parts.py").open("a") as file:
        file.write(FAILS)
    few = ("--set", "budgets=[{flops: 2e4, sizes: [7, 10, 14]}, {flops: 4e4, sizes: [7, 14, 20]}]")
    driver = Driver(
        spec, tmp_path / "out", *TOGETHER, *few, "--set", "model.target=parts:Odd", pause=0, environment=CORES
    )
    assert driver.wait(200) == 1, driver.said
    sweep = open_sweep(driver.root)
    assert len(sweep.results) == 4 and [f.status for f in sweep.failures] == ["failed", "failed"]
    for failure in sweep.failures:
        assert "only the other worker sees this" in failure.error or "the code calls exit()" in failure.error
        assert failure.deaths == 0 and Ledger(SweepPaths(driver.root)).num_attempts(failure.key) == 1


def test_more_workers_than_there_are_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = make_project(tmp_path / "project")
    more = ("--set", "workers_per_trial=4", "--set", "resources_per_trial={cpu: 64}")
    assert call("run", spec, "--output", tmp_path / "out", *more) == 2
    assert "the largest node has {cpu:" in capsys.readouterr().err
