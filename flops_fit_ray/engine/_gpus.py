"""The GPUs that Ray counts, tried by torch on every node before an experiment runs there.

Ray counts devices, and torch may be a build without CUDA, or newer than the driver: then every experiment would fail
with the same message, as if it were the model's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from flops_fit_ray import formatting as fmt
from flops_fit_ray.engine.resources import Slots, fits, live_entries
from flops_fit_ray.errors import ResourceError, first_line, last_line
from flops_fit_ray.storage.lock import hostname
from flops_fit_ray.waiting import waiting

ANSWER_SECONDS = 120.0  # a worker process has to start, and to import torch
CPU_WAY_OUT = "or run on CPUs with device: cpu (--device cpu)"


def unusable_gpus(slots: Slots) -> dict[str, str]:
    """Try by torch the GPUs of every node that an experiment fits on. A node that does not answer may be busy.

    Returns:
        The nodes on whose GPUs torch cannot compute, by Ray's id, and why.

    Raises:
        ResourceError: it cannot on any of them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not slots.uses_gpu:
        return {}
    tasks = {}
    for name, node in live_entries().items():
        if fits(slots.resources, node["Resources"]):
            there = NodeAffinitySchedulingStrategy(name, soft=False)
            # One call per process: what it opened on the GPUs is closed with it
            task = ray.remote(max_calls=1)(gpu_fault).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            tasks[task.remote(int(node["Resources"].get("GPU", 0)))] = name
    with waiting("trying the GPUs of every node"):
        answered, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=ANSWER_SECONDS) if tasks else ([], [])
    return those_left_out(dict.fromkeys(tasks.values(), "") | {tasks[task]: _answer(task) for task in answered})


def those_left_out(faults: Mapping[str, str]) -> dict[str, str]:
    """Return the nodes that have a fault.

    Args:
        faults: of every node that experiments fit on; "" without one.

    Raises:
        ResourceError: none is left.
    """
    found = {name: fault for name, fault in faults.items() if fault}
    if found and len(found) == len(faults):
        raise ResourceError("\n  ".join(["experiments cannot run on these GPUs:", *found.values()]))
    return found


def _answer(task: Any) -> str:
    import ray

    try:
        return str(ray.get(task))
    except ray.exceptions.RayError as e:
        return f"a node cannot run this package: {last_line(e)}"


def gpu_fault(counted: int) -> str:
    """Return why torch cannot use the `counted` GPUs of this node, with the way out; "" if it can."""
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" and os.environ.get("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        return ""  # Ray hides them from whoever holds none, as this task
    reason = _torch_fault(counted)
    if not reason:
        return ""
    return (
        f"{hostname()}: Ray counts {fmt.counted(counted, 'GPU')}, and torch {torch.__version__} {reason}, {CPU_WAY_OUT}"
    )


def _torch_fault(counted: int) -> str:
    import torch

    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call] # torch leaves it untyped
        return "is built without CUDA; install a build with CUDA there"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call] # as above
        found = torch.cuda.device_count()
        # A process sees one instance of a divided GPU (MIG) at most, whichever are visible
        if found < (1 if "MIG" in os.environ.get("CUDA_VISIBLE_DEVICES", "") else counted):
            return f"sees {found}; see nvidia-smi and CUDA_VISIBLE_DEVICES there"
        for index in range(min(found, counted)):
            (torch.ones(1, device=f"cuda:{index}") + 1).item()
    except torch.OutOfMemoryError:  # it is another's at the moment, and works
        return ""
    except (RuntimeError, AssertionError) as e:
        return f"cannot use them ({first_line(e)}); update the driver, or install a build of torch that fits it"
    return ""
