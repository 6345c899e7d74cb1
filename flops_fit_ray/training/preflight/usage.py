"""Memory and utilisation of a device by one experiment, to decide how many can share it."""

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
    """Memory and utilisation of one model."""

    params: int
    peak_bytes: int  # of device memory; of the whole process on a CPU
    memory_bytes: int | None  # of the device; None of a CPU, whose memory Ray assigns
    busy: float  # share of the time that the device computes


def measure_usages(plan: Plan, user: UserParts, device: str) -> list[DeviceUsage]:
    """Measure the smallest, a middle and the largest model of a sweep, in this order."""
    smallest, biggest = smallest_and_biggest(plan)
    middle = middle_experiment(plan)
    place = torch.device(device)
    # On a CPU the peak of the process never falls, so only the last and largest one counts
    chosen: Sequence[Experiment] = [e for e in (smallest, middle, biggest) if e is not None]
    with torch_threads(threads=1):
        return [measure_usage(e, user, place) for e in chosen]


def measure_usage(experiment: Experiment, user: UserParts, device: torch.device) -> DeviceUsage:
    """Train one model for a few steps on real batches, and measure its usage."""
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
            started = time.perf_counter()
            worker.advance(TIMED_STEPS)
            torch.cuda.synchronize(device)
            seconds = time.perf_counter() - started
        computing = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
        free, total = torch.cuda.mem_get_info(device)  # includes the CUDA context of the process
        busy = min(1.0, computing / seconds)
        return DeviceUsage(params=experiment.params, peak_bytes=total - free, memory_bytes=total, busy=busy)
