"""All that only a GPU can tell, in one command and one JSON file: `python -m benchmarks.gpu [--output gpu.json]`.

Tests for a GPU, one step of 100k to 124M parameters, trials side by side, a process that is killed, precisions, memory
between experiments, and a sweep where Ray is installed. The file is written after each part, so a run that is cut off
still tells. Each part has a share of the time; what there is none for is left out and said. Without CUDA, and with
`--quick`, everything is small: to see that it works.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import device_here, hardware
from benchmarks.parts import experiment_of
from benchmarks.step_gpu import app_state_of
from flops_fit_ray import __version__
from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED, first_line
from flops_fit_ray.ledger.hardware import Readings
from flops_fit_ray.planning import Experiment
from flops_fit_ray.sweep.directory import open_sweep
from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.save_policy import SavePolicy
from flops_fit_ray.training.loop.worker import Worker
from flops_fit_ray.training.step.stepper import free_memory
from flops_fit_ray.training.user.parts import UserParts

ROOT = Path(__file__).parent.parent
SECONDS = 480.0
SHARES = {"tests": 0.2, "step": 0.4, "packing": 0.2, "killed": 0.05, "precisions": 0.05, "memory": 0.02, "sweep": 0.3}
STEPS = 200
CHECKPOINT_STEPS = 20
EXAMPLE = ROOT / "examples" / "gpu_text"
# What of the example there is time for, on a GPU and where there is none
SHORT = ["budgets=[3e13, 1e14, 4e14]"]
SMALL = [
    "budgets=[2e9, 4e9]",
    "model.sizes=[32, 64, 96]",
    "model.kwargs={n_layer: 1, context: 32}",
    "data.kwargs={context: 32, limit: 400000}",
    "data.eval_samples=256",
    "train.batch_size=8",
    "train.precision=fp32",
    "train.cuda_graph=false",
    "train.lr=3e-3",
    "resources_per_trial={cpu: 1}",
]


def small_experiment(steps: int, quick: bool, precision: str | None = None) -> tuple[Experiment, UserParts]:
    """100k parameters, so many steps; quick, 4k of them."""
    device = device_here()
    precision = precision or ("bf16" if device.type == "cuda" else "fp32")
    if quick:
        return experiment_of(
            width=16, layers=1, heads=1, context=16, batch_size=2, steps=steps, vocab=256, precision=precision
        )
    experiment, user = app_state_of("100k", device, steps)
    return replace(experiment, recipe=replace(experiment.recipe, precision=precision)), user


def run_tests(seconds: float, quick: bool) -> dict[str, Any]:
    """`pytest -m gpu`, which skips all of them without CUDA."""
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return {"left_out": f"not installed: {', '.join(missing)}"}
    options = ["-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider"]
    code, said = _command([sys.executable, "-m", "pytest", "tests/test_gpu.py", *options], seconds)
    return {"exit_code": code, "summary": said[-1] if said else "", "output": said[-60:] if code else []}


def run_step(seconds: float, quick: bool) -> dict[str, Any]:
    """Tokens/s and MFU, eager, compiled and captured; losses of the graph against the eager step."""
    options = ["--sizes", "100k"] if quick else []
    return _lines(["benchmarks.step_gpu", "--seconds", str(seconds * 0.8), *options], seconds)


def run_packing(seconds: float, quick: bool) -> dict[str, Any]:
    """1, 2, 4 and 8 trials on one GPU."""
    return _lines(["benchmarks.packing", "--seconds", "1" if quick else "3"], seconds)


def run_killed(seconds: float, quick: bool) -> dict[str, Any]:
    """A process that trains is killed by SIGKILL, and another one goes on from its checkpoint."""
    steps = 60 if quick else STEPS
    experiment, user = small_experiment(steps, quick)
    whole = train_experiment(experiment, user, eval_samples=0, device=device_here().type)
    with tempfile.TemporaryDirectory() as directory:
        process = multiprocessing.get_context("spawn").Process(target=train_and_save, args=(steps, quick, directory))
        process.start()
        store = CheckpointStore(Path(directory), key=experiment.key)
        ends = time.monotonic() + seconds
        while not store.steps() and process.is_alive() and time.monotonic() < ends:
            time.sleep(0.002)
        if process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if not store.steps():
            return {"error": f"no checkpoint after {seconds:.0f} s"}
        policy = SavePolicy(store=store, checkpoint_steps=CHECKPOINT_STEPS)
        resumed = train_experiment(experiment, user, eval_samples=0, device=device_here().type, policy=policy)
    return {
        "resumed_from": resumed.resumed_from,
        "steps": steps,
        "loss": resumed.loss,
        "loss_without_a_kill": whole.loss,
        "same_bits": resumed.loss == whole.loss,
    }


def train_and_save(steps: int, quick: bool, directory: str) -> None:
    """What the process does that is killed."""
    experiment, user = small_experiment(steps, quick)
    store = CheckpointStore(Path(directory), key=experiment.key)
    policy = SavePolicy(store=store, checkpoint_steps=CHECKPOINT_STEPS)
    train_experiment(experiment, user, eval_samples=0, device=device_here().type, policy=policy)


def run_precisions(seconds: float, quick: bool) -> dict[str, Any]:
    """The same training in each precision."""
    found: dict[str, Any] = {}
    for precision in ("fp32", "bf16", "fp16"):
        experiment, user = small_experiment(20 if quick else STEPS, quick, precision)
        outcome = train_experiment(experiment, user, eval_samples=0, device=device_here().type)
        found[precision] = {
            "loss": outcome.loss,
            "tokens_per_second": outcome.tokens_per_second,
            "attention": outcome.attention,
            "peak_memory_bytes": outcome.peak_memory_bytes,
        }
    return found


def run_memory(seconds: float, quick: bool) -> dict[str, Any]:
    """What a kept process holds of the GPU after an experiment, before and after the cache is emptied."""
    device = device_here()
    if device.type != "cuda":
        return {"left_out": "without CUDA no memory is cached"}
    experiment, user = small_experiment(1000, quick) if quick else app_state_of("30M", device, 1000)
    worker = Worker(experiment, user, device)
    worker.advance(3)
    found = {"training": _memory_of(device)}
    del worker
    found["ended"] = _memory_of(device)
    free_memory()
    found["emptied"] = _memory_of(device)
    return found


def _memory_of(device: torch.device) -> dict[str, int]:
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "used": total - free,
    }


def run_sweep(seconds: float, quick: bool) -> dict[str, Any]:
    """The text example through Ray."""
    if importlib.util.find_spec("ray") is None:
        return {"left_out": "not installed: ray"}
    overrides = SMALL if quick else SHORT
    sets = [word for override in overrides for word in ("--set", override)]
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "flops_fit_ray", "run", str(EXAMPLE), *sets, "--output", directory, "--json"]
        code, said = _command(command, seconds)
        complete = code in (EXIT_DONE, EXIT_FAILED) and open_sweep(Path(directory)).complete  # with a law or without
    return {"exit_code": code, "complete": complete, "spec": overrides, "output": said[-40:]}


def _lines(module: list[str], seconds: float) -> dict[str, Any]:
    """The JSON lines of another benchmark; those before its time was over, too."""
    code, said = _command([sys.executable, "-m", *module], seconds)
    lines = [json.loads(line) for line in said if line.startswith("{")]
    return {"exit_code": code, "lines": lines, "said": [line for line in said if not line.startswith("{")][-20:]}


def _command(command: list[str], seconds: float) -> tuple[int | None, list[str]]:
    """Run a command. Returns its exit code, None when its time was over, and what it said."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile("w+") as output:
        try:
            done = subprocess.run(  # noqa: S603 - our own modules
                command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
            code: int | None = done.returncode
        except subprocess.TimeoutExpired:
            code = None
        output.seek(0)
        return code, output.read().splitlines()


PARTS: dict[str, Callable[[float, bool], dict[str, Any]]] = {
    "tests": run_tests,
    "step": run_step,
    "killed": run_killed,
    "precisions": run_precisions,
    "memory": run_memory,
    "packing": run_packing,
    "sweep": run_sweep,
}


def main() -> None:
    """Run the parts, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the time that may be used")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS), help="these alone")
    parser.add_argument("--quick", action="store_true", help="everything small, to see that it works")
    given = parser.parse_args()
    quick = given.quick or not torch.cuda.is_available()
    torch.set_num_threads(1)
    began = time.monotonic()
    machine = Readings().read()
    content: dict[str, Any] = {
        "date": date.today().isoformat(),
        "device": hardware(),
        "quick": quick,
        "versions": {
            "flops_fit_ray": __version__,
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "driver": machine.driver,
        },
        "parts": {},
    }
    failed = []
    for name in given.parts:
        left = given.seconds - (time.monotonic() - began)
        started = time.monotonic()
        try:
            seconds = min(left, SHARES[name] * given.seconds)
            found = PARTS[name](seconds, quick) if seconds > 1 else {"left_out": "the time is over"}
        except Exception as e:  # noqa: BLE001 - the other parts are to be run, and this one's error read
            found = {"error": f"{type(e).__name__}: {first_line(e)}"}
        if "error" in found or not found.get("complete", found.get("exit_code", 0) == 0):
            failed.append(name)
        content["parts"][name] = {"seconds": round(time.monotonic() - started, 1), **found}
        given.output.write_text(json.dumps(content, indent=1) + "\n")
        sys.stdout.write(f"{name}: {json.dumps(content['parts'][name])[:300]}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{given.output}: all figures\n")
    sys.exit(f"failed or cut off: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
