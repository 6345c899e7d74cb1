"""How much of a device one experiment takes: its memory, and whether it keeps it busy."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from flops_fit_ray.planning import Experiment, Plan
from flops_fit_ray.training.loop.worker import Worker
from flops_fit_ray.training.preflight.timing import middle_experiment, smallest_and_biggest
from flops_fit_ray.training.step.attention import attention_kernel
from flops_fit_ray.training.step.stepper import free_memory, torch_threads
from flops_fit_ray.training.user.parts import UserParts

WARM_STEPS = 3
TIMED_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class DeviceUsage:
    """What one model showed."""

    params: int
    peak_bytes: int  # of the device's memory; of the whole process where that is a CPU
    memory_bytes: int | None  # that the device has; None of a CPU: who gives it to whom is Ray's business
    busy: float  # share of the time in which the device computes


def measure_usages(plan: Plan, user: UserParts, device: str) -> list[DeviceUsage]:
    """Of the biggest, the smallest and a middle model of a sweep, from the smallest on."""
    smallest, biggest = smallest_and_biggest(plan)
    middle = middle_experiment(plan)
    place = torch.device(device)
    # On a CPU the process's peak is never given back, so only the last and biggest one counts
    chosen: Sequence[Experiment] = [e for e in (smallest, middle, biggest) if e is not None]
    with torch_threads(threads=1):
        return [measure_usage(e, user, place) for e in chosen]


def measure_usage(experiment: Experiment, user: UserParts, device: torch.device) -> DeviceUsage:
    """Of one model, on real batches in the plan's own recipe."""
    free_memory()
    long_enough = replace(experiment, steps=max(experiment.steps, WARM_STEPS + TIMED_STEPS))
    with attention_kernel(experiment.recipe.precision, device):
        worker = Worker(long_enough, user, device)
        worker.advance(WARM_STEPS)
        if device.type != "cuda":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            return DeviceUsage(params=experiment.params, peak_bytes=peak, memory_bytes=None, busy=1.0)
        torch.cuda.synchronize(device)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            began = time.perf_counter()
            worker.advance(TIMED_STEPS)
            torch.cuda.synchronize(device)
            seconds = time.perf_counter() - began
        computing = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
        free, total = torch.cuda.mem_get_info(device)  # what the driver keeps for the process included
        busy = min(1.0, computing / seconds)
        return DeviceUsage(params=experiment.params, peak_bytes=total - free, memory_bytes=total, busy=busy)
