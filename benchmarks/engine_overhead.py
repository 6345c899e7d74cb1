"""`python -m benchmarks.engine_overhead`: what Ray and the bookkeeping cost, for 35 experiments of 2 s on 2 slots.

The figure is wall time × slots / the sum of training; experiments wait instead of computing, so that no core is fought
for. 35 experiments leave one of 2 slots idle while the last one runs, so that 36 / 35 is the least there can be. Peers:
a Tune function trainable as the documentation writes it, which starts a process for every trial, and a class with
`reuse_actors`; both import torch, as training does, and record nothing.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EXPERIMENTS, SECONDS, STEPS, SLOTS = 35, 2.0, 50, 2
SIZES = [10, 11, 12, 13, 14]
BUDGETS = [6.0 * 12 * 4 * steps for steps in (47, 48, 49, 50, 51, 52, 53)]
PARTS = f"""
import time
import torch
from torch import nn


class Waits(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features, self.linear = features, nn.Linear(features, 1, bias=False)

    def forward(self, x):
        if self.training and not x.is_meta:
            time.sleep({SECONDS / STEPS})
        return self.linear(x[:, : self.features])


def data():
    x = torch.randn(40_000, 64, generator=torch.Generator().manual_seed(0))
    return x, x[:, :1].clone()
"""
SPEC = f"""
model: {{target: "parts:Waits", size_param: features, sizes: {SIZES}}}
data: {{train: "parts:data", eval_samples: 64}}
loss: mse
budgets: {BUDGETS}
train: {{batch_size: 4, lr: 1e-3, optimizer: sgd, warmup_tokens: 0}}
grid: {{trunk: false}}
resources_per_trial: {{cpu: 1}}
fit: {{draws: 200}}
"""
PEER = f"""
import json, logging, os, sys, time
os.environ.update(RAY_AIR_NEW_OUTPUT="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1")
import ray
from ray import tune


def waits():
    import torch  # noqa: F401
    began = time.time()
    for _ in range({STEPS}):
        time.sleep({SECONDS / STEPS})
    return {{"began": began, "ended": time.time(), "pid": os.getpid()}}


def function(config):
    tune.report(waits())


class Class(tune.Trainable):
    def setup(self, config):
        import torch

    def reset_config(self, config):
        return True

    def step(self):
        return {{**waits(), "done": True}}


if __name__ == "__main__":
    reuse, where = sys.argv[1] == "reuse_actors", sys.argv[2]
    quiet = dict(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.init(address="local", num_cpus={SLOTS}, **quiet)
    began = time.time()
    grid = tune.Tuner(
        tune.with_resources(Class if reuse else function, {{"cpu": 1}}),
        param_space={{"number": tune.grid_search(list(range({EXPERIMENTS})))}},
        tune_config=tune.TuneConfig(reuse_actors=reuse, max_concurrent_trials={SLOTS}),
        run_config=tune.RunConfig(
            storage_path=where,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False if reuse else None),
        ),
    ).fit()
    spans = [(r.metrics["began"], r.metrics["ended"]) for r in grid]
    print(len({{r.metrics["pid"] for r in grid}}), "processes")
    print(json.dumps({{"wall": time.time() - began, "spans": spans}}))
"""


def ours(where: Path) -> tuple[float, list[tuple[float, float]]]:
    """Wall seconds from the cluster's start to the last result, and when each experiment began and ended."""
    from flops_fit_ray.storage.paths import SweepPaths

    (where / "parts.py").write_text(PARTS)
    (where / "sweep.yaml").write_text(SPEC)
    command = [sys.executable, "-m", "flops_fit_ray.run", "sweep.yaml", "--output", "out", "--slots", str(SLOTS)]
    began = 0.0
    process = subprocess.Popen(  # noqa: S603 - our own command
        command, cwd=where, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("cluster:"):  # Ray is up, as it is for the peers when they are asked
            began = time.time()
    assert process.wait() == 0
    results = [json.loads(p.read_bytes()) for p in SweepPaths(where / "out").experiments.glob("*/result.json")]
    spans = [(r["finished_at"] - r["seconds_executed"], r["finished_at"]) for r in results]
    return max(end for _, end in spans) - began, spans


def peer(where: Path, how: str) -> tuple[float, list[tuple[float, float]]]:
    """The same of plain Tune."""
    (where / "peer.py").write_text(PEER)
    command = [sys.executable, "peer.py", how, str(where / "tune")]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=True)  # noqa: S603 - our own script
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found["wall"], found["spans"]


def gaps(spans: list[tuple[float, float]]) -> list[float]:
    """Seconds from the end of one experiment of a slot to the beginning of its next one."""
    free: list[float] = []
    found = []
    for begin, end in sorted(spans):
        before = max((moment for moment in free if moment <= begin), default=None)
        if before is not None:
            free.remove(before)
            found.append(begin - before)
        free.append(end)
    return found


def main() -> None:
    """Each once, one after the other."""
    for how in ("ours", "reuse_actors", "function"):
        with tempfile.TemporaryDirectory() as where:
            wall, spans = ours(Path(where)) if how == "ours" else peer(Path(where), how)
        training = sum(end - begin for begin, end in spans)
        busy = max(end for _, end in spans) - min(begin for begin, _ in spans)
        line = {
            "name": "engine_overhead",
            "how": how,
            "experiments": len(spans),
            "training_seconds": round(training, 1),
            "wall_seconds": round(wall, 1),
            "whole": round(wall * SLOTS / training, 3),
            "after_warm_up": round(busy * SLOTS / training, 3),
            "least": round(math.ceil(len(spans) / SLOTS) * SLOTS / len(spans), 3),
            "gap_seconds": round(statistics.median(gaps(spans)), 3),
        }
        print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
