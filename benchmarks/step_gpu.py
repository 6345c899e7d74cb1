"""Tokens/s and MFU of one training step on one GPU: eager, compiled, and captured as one CUDA graph.

`python -m benchmarks.step_gpu [--seconds 540]`. One command on any machine with one GPU: no network, no Ray. GPTs of
100k to 124M parameters in bf16 on real text. What there is no time for is left out and said. Without CUDA it runs the
two smallest sizes on the CPU, where there is no graph to capture, to show that it works.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch

from benchmarks.harness import Line, device_here, interleaved, wait_for
from benchmarks.parts import experiment_of
from benchmarks.peers import Peer
from flops_fit_ray.errors import first_line
from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.observer import Observer
from flops_fit_ray.training.loop.worker import Worker
from flops_fit_ray.training.step.device import device_name, peak_flops
from flops_fit_ray.training.user.parts import UserParts

# name: width, layers, heads, context, samples a step, vocabulary
SIZES = {
    "100k": (64, 2, 2, 256, 64, 256),
    "1M": (128, 5, 4, 256, 64, 256),
    "3M": (256, 4, 4, 256, 64, 256),
    "10M": (320, 8, 5, 512, 32, 256),
    "30M": (512, 9, 8, 1024, 16, 4096),
    "124M": (768, 12, 12, 1024, 16, 50_304),
}
ON_CPU = ("100k", "1M")
BLOCKS = 6
BLOCK_SECONDS = 0.5
COMPARED_STEPS = 200


class Words(Observer):
    """Remembers what was said aloud: a graph that could not be captured, above all."""

    def __init__(self) -> None:
        super().__init__()
        self.aloud: list[str] = []

    def event(self, words: str, *, level: Literal["info", "warning"] = "info") -> None:
        """Keep it."""
        if level == "warning":
            self.aloud.append(words)


def app_state_of(name: str, device: torch.device, steps: int) -> tuple[Experiment, UserParts]:
    """The experiment of a size, in bf16; on a CPU with a smaller batch."""
    width, layers, heads, context, batch_size, vocab = SIZES[name]
    return experiment_of(
        width=width,
        layers=layers,
        heads=heads,
        context=context,
        batch_size=batch_size if device.type == "cuda" else 8,
        steps=steps,
        vocab=vocab,
        precision="bf16",
    )


def ours(experiment: Experiment, user: UserParts, device: torch.device, *, graph: bool) -> tuple[Worker, Words]:
    """Our loop, with a graph or without."""
    observer = Words()
    wanted = replace(experiment, recipe=replace(experiment.recipe, cuda_graph=graph))
    return Worker(wanted, user, device, observer=observer), observer


def synchronized(steps: Callable[[int], None], count: int, device: torch.device) -> Callable[[], None]:
    """So many steps, and the wait until they are done."""

    def block() -> None:
        steps(count)
        wait_for(device)

    return block


def block_steps(steps: Callable[[int], None], device: torch.device) -> int:
    """How many steps take about half a second."""
    block = synchronized(steps, 3, device)
    block()
    started = time.perf_counter()
    block()
    return max(1, round(BLOCK_SECONDS / ((time.perf_counter() - started) / 3)))


def main() -> None:
    """Print one line per size and kind of step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=540.0, help="the time that may be used")
    parser.add_argument("--sizes", nargs="*", default=None, choices=list(SIZES), help="these alone")
    given = parser.parse_args()
    device = device_here()
    torch.set_num_threads(1)
    ends = time.monotonic() + given.seconds
    if device.type == "cuda":
        compare_losses(device)
    names = given.sizes or (list(SIZES) if device.type == "cuda" else list(ON_CPU))
    for name in names:
        if time.monotonic() > ends:
            sys.stderr.write(f"{name}: left out, the time is over\n")
            continue
        try:
            measure_size(name, device, ends)
        except torch.OutOfMemoryError as e:
            sys.stderr.write(f"{name}: left out, {first_line(e)}\n")


def compare_losses(device: torch.device) -> None:
    """Losses of the captured graph against the eager step, over 200 steps."""
    experiment, user = app_state_of("1M", device, COMPARED_STEPS)
    observer = Words()
    eager = train_experiment(experiment, user, eval_samples=0, device=device.type)
    graph = replace(experiment, recipe=replace(experiment.recipe, cuda_graph=True))
    captured = train_experiment(graph, user, eval_samples=0, device=device.type, observer=observer)
    pairs = [
        (a.train_loss or math.nan, b.train_loss or math.nan) for a, b in zip(captured.curve, eager.curve, strict=True)
    ]
    largest = max(abs(a - b) for a, b in pairs)
    Line(
        name="step_gpu/captured_against_eager",
        ratio=None,
        ci95=None,
        pairs=len(pairs),
        target=None,
        limit="0: the same losses",
        same_answer=not observer.aloud and largest < 3e-3,
        details={"largest_difference": largest, "last": pairs[-1], "said": observer.aloud},
    ).print()


def measure_size(name: str, device: torch.device, ends: float) -> None:
    """All kinds of step of one size, interleaved."""
    experiment, user = app_state_of(name, device, 1_000_000)
    kinds, said = _kinds(experiment, user, device, ends)
    counts = {kind: block_steps(steps, device) for kind, steps in kinds.items()}
    runners = {kind: synchronized(steps, counts[kind], device) for kind, steps in kinds.items()}
    seconds = interleaved(runners, BLOCKS, clock=time.perf_counter)
    per_step = {kind: [s / counts[kind] for s in values] for kind, values in seconds.items()}
    peak, source = peak_flops(device_name(device), device.type, "bf16", 1)
    tokens = experiment.tokens // experiment.steps
    for kind, values in per_step.items():
        rate = tokens / sorted(values)[len(values) // 2]
        target = 5.0 if experiment.params <= 4e6 else 1.3
        Line.of(
            per_step["eager"],
            values,
            name=f"step_gpu/{name}/{kind}",
            target=target if kind == "captured" else None,
            limit=source if peak is None else f"{peak / 1e12:.3g} TFLOP/s, {source}",
            same_answer=not said,
            details={
                "params": experiment.params,
                "tokens_per_second": round(rate),
                "mfu": None if peak is None else round(rate * experiment.flops_per_token / peak, 4),
                "ms_per_step": round(1e3 * tokens / rate, 3),
                "said": said,
            },
        ).print()


def _kinds(
    experiment: Experiment, user: UserParts, device: torch.device, ends: float
) -> tuple[dict[str, Callable[[int], None]], list[str]]:
    eager, _ = ours(experiment, user, device, graph=False)
    kinds: dict[str, Callable[[int], None]] = {"eager": eager.advance}
    if device.type != "cuda":
        return kinds, []
    captured, observer = ours(experiment, user, device, graph=True)
    captured.advance(5)
    kinds["captured"] = captured.advance
    options: dict[str, Any] = {"plain": False, "device": "cuda", "dtype": torch.bfloat16, "compile": True}
    for kind, mode in (("compiled", "default"), ("reduce-overhead", "reduce-overhead")):
        if time.monotonic() > ends - 60:
            sys.stderr.write(f"{kind}: left out, the time is over\n")
            continue
        peer = Peer(experiment, user, mode=mode, **options)
        resident = [t.to(device) for t in next(peer.batches)]
        peer.use(itertools.repeat(resident))  # no loader: the step alone
        peer.steps(3)
        kinds[kind] = peer.steps
    return kinds, observer.aloud


if __name__ == "__main__":
    main()
