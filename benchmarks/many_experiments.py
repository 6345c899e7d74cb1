"""`python -m benchmarks.many_experiments`: 2,000 real experiments of milliseconds through Ray, on one slot.

What an experiment costs besides its training: CPU time of the driver, by a straight line through its readings, and in
the first and last quarter, so that growth shows; memory, files; and then the seconds of `status` and of a second run,
which finds nothing to do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

PARTS = """
import torch
from torch import nn


class Linear(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features, self.linear = features, nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x):
        return self.linear(x[:, : self.features])


def data():
    scale = torch.arange(1, 411) ** -0.5
    x = torch.randn(9_000, 410, generator=torch.Generator().manual_seed(0)) * scale
    return x, x @ scale[:, None]
"""
BUDGETS = [6.0 * 60 * 4 * steps for steps in (100, 110, 120, 130, 140)]  # of 60 features, 4 samples each
RUN = ["-m", "flops_fit_ray.run", "sweep.yaml", "--output", "out", "--slots", "1"]
EVERY_SECONDS = 0.5


def make_project(where: Path, experiments: int) -> None:
    """Write a spec of so many experiments, and its parts."""
    sizes = list(range(10, 10 + experiments // len(BUDGETS)))
    (where / "parts.py").write_text(PARTS)
    (where / "sweep.yaml").write_text(f"""
model: {{target: "parts:Linear", size_param: features}}
data: {{train: "parts:data", eval_samples: 64}}
loss: mse
budgets: {[{"flops": c, "sizes": sizes} for c in BUDGETS]}
train: {{batch_size: 16, lr: 1e-2, optimizer: sgd, grad_clip: null, warmup_tokens: 0}}
grid: {{trunk: false}}
resources_per_trial: {{cpu: 1}}
fit: {{draws: 200}}
""")


def run(where: Path) -> tuple[list[tuple[int, float]], float, float]:
    """Run it. Returns (results, CPU seconds of the driver) as they came, the peak of its memory in MB, wall seconds."""
    began = time.perf_counter()
    parent = psutil.Popen([sys.executable, *RUN], cwd=where, stdout=subprocess.PIPE, text=True)
    done = 0
    readings: list[tuple[int, float]] = []
    peak = read_at = 0.0
    for line in parent.stdout:
        if not line.startswith("["):
            continue
        done = int(line[1:].partition("/")[0])
        if time.perf_counter() - read_at < EVERY_SECONDS:
            continue
        driver = parent.children()[0]
        times, read_at = driver.cpu_times(), time.perf_counter()
        readings.append((done, times.user + times.system))
        peak = max(peak, driver.memory_info().rss / 1e6)
    assert parent.wait() in (0, 1)  # 1: such budgets have no law
    return readings, peak, time.perf_counter() - began


def slope(readings: list[tuple[int, float]]) -> float:
    """Milliseconds for each result."""
    count, seconds = np.array(readings).T
    return round(float(np.polyfit(count, 1e3 * seconds, 1)[0]), 2)


def seconds_of(where: Path, *command: str) -> tuple[float, float]:
    """Wall and CPU seconds of a command, the least of three."""
    found = []
    for _ in range(3):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=where, stdout=subprocess.DEVNULL, check=False)  # noqa: S603 - ours
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append((round(time.perf_counter() - began, 2), round(cpu, 2)))
    return min(found)


def main() -> None:
    """One line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=2000)
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path.cwd())
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        make_project(where, given.experiments)
        readings, peak, wall = run(where)
        quarter = len(readings) // 4
        out = where / "out"
        status, status_cpu = seconds_of(where, "-m", "flops_fit_ray", "status", "out")
        rerun, rerun_cpu = seconds_of(where, *RUN)
        line = {
            "name": "many_experiments",
            "experiments": given.experiments,
            "driver_ms_each": slope(readings),
            "driver_ms_each_first_quarter": slope(readings[:quarter]),
            "driver_ms_each_last_quarter": slope(readings[-quarter:]),
            "driver_peak_megabytes": round(peak),
            "wall_seconds": round(wall, 1),
            "files_each": round(sum(path.is_file() for path in out.rglob("*")) / given.experiments, 2),
            "directories_each": round(sum(path.is_dir() for path in out.rglob("*")) / given.experiments, 2),
            "status_seconds": status,
            "status_cpu_seconds": status_cpu,
            "rerun_seconds": rerun,
            "rerun_cpu_seconds": rerun_cpu,
        }
        print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
