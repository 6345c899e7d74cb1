"""`python -m benchmarks.data_sharing`: what 8 trials of one node hold in memory, with the data once and 8 times.

A sweep on tensors of a few hundred megabytes through `find_optimal`, with one core cut into eight; the proportional set
size (a page that n processes share counts as 1/n for each) of all of Ray's processes while eight experiments run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flops_fit_ray.engine.processes import descendants

TRIALS = 8
TRY_SECONDS = 180.0
LOADED_SECONDS = 20.0
CODE = """
import sys, time
import torch
from torch import nn
import flops_fit_ray.engine.loaders as loaders
from flops_fit_ray import find_optimal

class Slow(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features, self.linear = features, nn.Linear(features, 1, bias=False)

    def forward(self, x):
        if self.training and not x.is_meta:
            time.sleep(0.5)
        return self.linear(x[:, : self.features])

if __name__ == "__main__":
    megabytes, shared, out = int(sys.argv[1]), sys.argv[2] == "shared", sys.argv[3]
    if not shared:
        loaders.MIN_SHARED_BYTES = float("inf")
    x = torch.randn(megabytes * 2**20 // 256, 64)
    find_optimal(
        Slow, "features", {}, (x, x[:, :1].clone()), "mse", [4e4, 8e4], output_dir=out, sizes=[4, 6, 8, 12],
        batch_size=4, lr=1e-2, optimizer="sgd", eval_samples=64, resources_per_trial={"cpu": 0.125}, slots=8,
        grid={"trunk": False},
    )
"""


def proportional_bytes(pid: int) -> int:
    """Of one process; 0 where it is gone."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return 0


def measured(megabytes: int, how: str) -> dict[str, float]:
    """The most that the trials and Ray's object store held at one time."""
    with tempfile.TemporaryDirectory() as where:
        script = Path(where) / "sweep.py"
        script.write_text(CODE)
        command = [sys.executable, str(script), str(megabytes), how, str(Path(where) / "out")]
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment)  # noqa: S603 - our own script
        most = {"trials": 0, "megabytes_of_trials": 0.0, "megabytes_in_all": 0.0}
        until = time.monotonic() + TRY_SECONDS
        while process.poll() is None and time.monotonic() < until:
            sizes = {}
            for pid in descendants(process.pid):
                with contextlib.suppress(OSError):
                    name = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode()
                    sizes[pid] = (name, proportional_bytes(pid))
            trials = [size for name, size in sizes.values() if "Trainable.train" in name]
            total = sum(size for _, size in sizes.values()) / 1e6
            if (len(trials), total) > (most["trials"], most["megabytes_in_all"]):
                if len(trials) == TRIALS > most["trials"]:  # all are there; what they load is soon there, too
                    until = time.monotonic() + LOADED_SECONDS
                most = {
                    "trials": len(trials),
                    "megabytes_of_trials": round(sum(trials) / 1e6),
                    "megabytes_in_all": round(total),
                }
            time.sleep(0.5)
        process.terminate()
        process.wait()
        return most


def main() -> None:
    """Both, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400)
    given = parser.parse_args()
    for how in ("copied", "shared"):
        found = {"name": "data_sharing", "how": how, "data_megabytes": given.megabytes}
        print(json.dumps({**found, **measured(given.megabytes, how)}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
