"""`python -m benchmarks.shard_model`: what each worker of an experiment holds, with the whole model and with its part.

The demo's transformer at 85M parameters, AdamW in fp32 (16 bytes per parameter), workers with gloo on the CPU, a few
steps. Memory is what a process has more than before it built the model: what it holds after a step, and its peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import time
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch

from benchmarks.parts import experiment_of
from flops_fit_ray.training.distributed.fsdp import ShardedGroup
from flops_fit_ray.training.distributed.group import Action, Group, connect_store, create_store, process_group
from flops_fit_ray.training.loop.worker import Worker
from flops_fit_ray.training.step.stepper import torch_threads

STEPS = 3
TIMEOUT = 600.0
MODEL = {"width": 768, "layers": 12, "heads": 12, "context": 64, "batch_size": 8}
QUICK = {"width": 256, "layers": 4, "heads": 4, "context": 64, "batch_size": 8}


def resident(name: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def work(group: Group, port: int, model: dict[str, int], found: Queue[dict[str, Any]]) -> None:
    """Be one of the workers."""
    experiment, user = experiment_of(**model, steps=STEPS)
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]).step()  # what torch imports for it is not the model's
    before = resident("VmRSS")
    with torch_threads(threads=1), process_group(connect_store("127.0.0.1", port, TIMEOUT), group, "cpu", TIMEOUT):
        worker = Worker(experiment, user, torch.device("cpu"), group=group)
        if not group.is_leader:
            for _ in group.actions(STEPS):
                worker.advance(1)
            return
        worker.advance(1)
        started = time.perf_counter()
        worker.advance(STEPS - 1)
        seconds = (time.perf_counter() - started) / (STEPS - 1)
        gc.collect()
        held, peak = resident("VmRSS") - before, resident("VmHWM") - before
        group.announce(Action.END)
    found.put({"params": experiment.params_total, "held": held, "peak": peak, "seconds": seconds})


def main() -> None:
    """Each way once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a model of 3M parameters")
    model = QUICK if parser.parse_args().quick else MODEL
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # so that what is given back is seen to be
    context = multiprocessing.get_context("spawn")
    for size, kind in ((1, Group), (2, Group), (2, ShardedGroup), (4, ShardedGroup)):
        store, port = create_store("127.0.0.1")
        found: Queue[dict[str, Any]] = context.Queue()
        workers = [context.Process(target=work, args=(kind(rank, size), port, model, found)) for rank in range(size)]
        for worker in workers:
            worker.start()
        measured = found.get(timeout=TIMEOUT)
        for worker in workers:
            worker.join()
        del store
        line = {
            "name": "shard_model",
            "workers": size,
            "model": "in parts" if kind is ShardedGroup else "whole",
            "params": measured["params"],
            "held_mb": round(measured["held"] / 2**20),
            "peak_mb": round(measured["peak"] / 2**20),
            "bytes_per_param": round(measured["held"] / measured["params"], 1),
            "seconds_per_step": round(measured["seconds"], 2),
        }
        print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
