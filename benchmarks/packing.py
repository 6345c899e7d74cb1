"""`python -m benchmarks.packing`: 1, 2, 4 and 8 trials on one GPU, and the tokens per second of all together.

A process each, as trials are, without Ray. Needs CUDA; on a CPU it runs 1 and 2 of the smallest model, a core each, to
show that it works. Beside the figures stands what `resources_per_trial: auto` would have chosen.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

from benchmarks.harness import device_here, hardware, wait_for
from benchmarks.step_gpu import ON_CPU, SIZES, app_state_of
from flops_fit_ray.engine.preflight import MEMORY_MARGIN
from flops_fit_ray.engine.resources import gpu_fraction
from flops_fit_ray.training.loop.worker import Worker
from flops_fit_ray.training.preflight.usage import measure_usage
from flops_fit_ray.training.step.stepper import torch_threads

WARM_STEPS = 20


def train(name: str, seconds: float, begin: Barrier, results: Any) -> None:
    """One trial: its tokens per second while all of them train."""
    device = device_here()
    with torch_threads(threads=1):
        experiment, user = app_state_of(name, device, 10**9)
        worker = Worker(experiment, user, device)
        worker.advance(WARM_STEPS)
        wait_for(device)
        begin.wait()
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            worker.advance(5)
            steps += 5
            wait_for(device)
        taken = time.perf_counter() - began
        results.put(steps * experiment.tokens / experiment.steps / taken)


def share_of(name: str, results: Any) -> None:
    """What `auto` gives this model."""
    device = device_here()
    experiment, user = app_state_of(name, device, 1000)
    found = measure_usage(experiment, user, device)
    memory = 0.0 if found.memory_bytes is None else MEMORY_MARGIN * found.peak_bytes / found.memory_bytes
    results.put((found.busy, found.peak_bytes, gpu_fraction(max(found.busy, memory))))


def main() -> None:
    """A line for each model and number of trials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    given = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    context = multiprocessing.get_context("spawn")
    for name in SIZES if on_gpu else ON_CPU[:1]:
        results = context.Queue()
        alone = context.Process(target=share_of, args=(name, results))
        alone.start()
        busy, peak, share = results.get(timeout=300)
        alone.join()
        first = 0.0
        for trials in (1, 2, 4, 8) if on_gpu else (1, 2):
            barrier, results = context.Barrier(trials), context.Queue()
            arguments = (name, given.seconds, barrier, results)
            processes = [context.Process(target=train, args=arguments) for _ in range(trials)]
            for process in processes:
                process.start()
            together = sum(results.get(timeout=600) for _ in processes)
            for process in processes:
                process.join()
            first = first or together
            line = {
                "name": "packing",
                "model": name,
                "trials": trials,
                "tokens_per_second": round(together),
                "over_one": round(together / first, 2),
                "busy_alone": round(busy, 3),
                "peak_megabytes_alone": round(peak / 1e6),
                "auto_would_pack": round(1 / share),
                "hardware": hardware() if not on_gpu else torch.cuda.get_device_name(0),
            }
            print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
