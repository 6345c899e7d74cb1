"""Tokens per CPU-second of one thread against a plain loop, against SDPA with fused AdamW, and against the GEMM peak.

`python -m benchmarks.step_cpu [--quick]`. Byte-level GPTs on real text: three of the demo's sizes with its 512 tokens a
step, and about 100k, 800k and 3M parameters with 2,048. Ours runs as in a trial, in the precision that `auto` chooses.
`loop_share` is the part of our step that a bare loop of the same work does not have.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from dataclasses import replace

import torch

from benchmarks.harness import Line, interleaved, ratio_of
from benchmarks.parts import experiment_of
from benchmarks.peers import Peer
from flops_fit_ray.planning import Experiment
from flops_fit_ray.training.data import make_feed
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.worker import Worker
from flops_fit_ray.training.preflight.timing import time_training
from flops_fit_ray.training.step.attention import attention_kernel
from flops_fit_ray.training.step.device import device_name, peak_flops, peak_memory_bytes
from flops_fit_ray.training.user.parts import UserParts

SIZES = {  # width, layers, heads, context
    "demo-16": (16, 2, 2, 64),
    "demo-32": (32, 2, 2, 64),
    "demo-64": (64, 2, 2, 64),
    "100k": (64, 2, 2, 256),
    "800k": (128, 4, 4, 256),
    "3M": (256, 4, 8, 256),
}
BLOCK_STEPS = {"demo-16": 60, "demo-32": 50, "demo-64": 30, "100k": 12, "800k": 4, "3M": 2}
LIMIT_TARGETS = {"100k": 0.30, "800k": 0.50, "3M": 0.60}
BATCH = 8
PEAK_STEPS = 30
SAME = 0.02  # nats between the losses of 20 steps, bf16 against fp32
CPU = torch.device("cpu")


def ours(experiment: Experiment, user: UserParts) -> Worker:
    """Our loop, ready to go."""
    return Worker(experiment, user, CPU)


def advance(worker: Worker, experiment: Experiment, steps: int) -> None:
    """Some steps, with the kernels that a trial has."""
    with attention_kernel(experiment.recipe.precision, CPU):
        worker.advance(steps)


def with_kernel(peer: Peer, experiment: Experiment, steps: int) -> None:
    """A bare loop with our kernels: what remains is the model's own time."""
    with attention_kernel(experiment.recipe.precision, CPU):
        peer.steps(steps)


def chosen(experiment: Experiment, user: UserParts) -> Experiment:
    """In the faster precision, by measurement: what `auto` does for one size."""
    found = {}
    for precision in ("fp32", "bf16"):
        candidate = replace(experiment, recipe=replace(experiment.recipe, precision=precision))
        found[precision] = (time_training(candidate, user, CPU).step_seconds, candidate)
    return min(found.values(), key=lambda pair: pair[0])[1]


def same_losses(experiment: Experiment, user: UserParts, steps: int) -> tuple[float, float]:
    """The loss after the same steps on the same batches: ours, and the plain loop's."""
    tokens = steps * experiment.tokens // experiment.steps
    outcome = train_experiment(replace(experiment, steps=steps, tokens=tokens), user, eval_samples=0)
    peer = Peer(experiment, user, plain=True)
    feed = make_feed(user.train_data, experiment.recipe.batch_size, experiment.recipe.seed, 1e9)
    peer.use(feed.next_batch().content for _ in range(steps))
    peer.steps(steps)
    return outcome.curve[-1].train_loss or math.nan, peer.loss


def main() -> None:
    """Print one line per size and peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two sizes, about half a minute")
    parser.add_argument("--peak", nargs=2, metavar=("SIZE", "LOOP"), help="print the peak memory of `ours` or `plain`")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        sys.stdout.write(f"{peak_of(*given.peak)}\n")
        return
    for name in ("demo-32", "100k") if given.quick else SIZES:
        measure_size(name, 4 if given.quick else 16)


def app_state_of(name: str) -> tuple[Experiment, UserParts]:
    """The experiment of a size."""
    width, layers, heads, context = SIZES[name]
    return experiment_of(width=width, layers=layers, heads=heads, context=context, batch_size=BATCH, steps=100_000)


def peak_of(name: str, loop: str) -> int:
    """Bytes resident at most in this process, which runs one loop and nothing else."""
    experiment, user = app_state_of(name)
    if loop == "ours":
        advance(ours(experiment, user), experiment, PEAK_STEPS)
    else:
        Peer(experiment, user, plain=True).steps(PEAK_STEPS)
    return peak_memory_bytes(CPU) or 0


def peaks_of(name: str) -> dict[str, int]:
    """Both loops, each in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.step_cpu", "--peak", name]
    return {
        loop: int(subprocess.check_output([*command, loop], text=True)) // 1_000_000  # noqa: S603 - this file itself
        for loop in ("ours", "plain")
    }


def measure_size(name: str, blocks: int) -> None:
    """All lines of one size."""
    experiment, user = app_state_of(name)
    block_steps, context = BLOCK_STEPS[name], SIZES[name][3]
    best = chosen(experiment, user)
    mine, reference = same_losses(best, user, 20)
    same = math.isfinite(mine) and abs(mine - reference) < SAME
    full = replace(best, recipe=replace(best.recipe, precision="fp32"))
    dtype = torch.bfloat16 if best.recipe.precision == "bf16" else None
    worker, exact = ours(best, user), ours(full, user)
    plain, fused = Peer(experiment, user, plain=True), Peer(experiment, user, plain=False)
    bare = Peer(experiment, user, plain=False, dtype=dtype)
    batch = make_feed(user.train_data, BATCH, 0, 1e9).next_batch().content
    bare.use(iter(lambda: batch, None))  # no data at all: what is left is the model and its optimizer
    seconds = interleaved(
        {
            "ours": lambda: advance(worker, best, block_steps),
            "ours_fp32": lambda: advance(exact, full, block_steps),
            "plain": lambda: plain.steps(block_steps),
            "sdpa_fused": lambda: fused.steps(block_steps),
            "bare": lambda: with_kernel(bare, best, block_steps),
        },
        blocks + 1,
    )
    seconds = {key: values[1:] for key, values in seconds.items()}  # the first block warms up
    tokens = block_steps * BATCH * context
    rates = {key: round(tokens / statistics.median(values)) for key, values in seconds.items()}
    peaks = {p: measured_peak(p) for p in ("fp32", best.recipe.precision)}
    details = {
        "params": experiment.params,
        "precision": best.recipe.precision,
        "tokens_per_cpu_second": rates,
        "losses_after_20_steps": [round(mine, 4), round(reference, 4)],
        "peak_mb": peaks_of(name),
    }
    limit = f"GEMM peak {peaks[best.recipe.precision] / 1e9:.0f} GFLOP/s in {best.recipe.precision}"
    demo = name.startswith("demo")
    for peer, target in (("plain", None if demo else 3.0), ("sdpa_fused", None if demo else 2.0)):
        Line.of(
            seconds[peer],
            seconds["ours"],
            name=f"step_cpu/{name}/{peer}",
            target=target,
            limit=limit,
            same_answer=same,
            details=details,
        ).print()
    ratio, _ = ratio_of(seconds["bare"], seconds["ours"])
    Line.of(
        seconds["bare"],
        seconds["ours"],
        digits=4,
        name=f"step_cpu/{name}/loop_share",
        target=0.97,
        limit="1: nothing but the model and its optimizer",
        same_answer=same,
        details={"loop_share": round(1 - ratio, 4)},
    ).print()
    rate = rates["ours"] * experiment.flops_per_token
    Line(
        name=f"step_limit/{name}",
        ratio=round(rate / peaks[best.recipe.precision], 3),
        ci95=None,
        pairs=blocks,
        target=LIMIT_TARGETS.get(name),
        limit=limit,
        same_answer=same,
        details={
            "fp32_share": round(rates["ours_fp32"] * experiment.flops_per_token / peaks["fp32"], 3),
            "gflops": round(rate / 1e9, 1),
        },
    ).print()


def measured_peak(precision: str) -> float:
    """FLOP/s of the best product.

    Raises:
        SystemExit: the machine is busy.
    """
    peak, source = peak_flops(device_name(CPU), "cpu", precision, 1)
    if peak is None:
        sys.exit(source)
    return peak


if __name__ == "__main__":
    main()
