"""The check of a sweep on a real worker: the same device, memory and libraries that its experiments will have."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flops_fit_ray.engine._gpus import unusable_gpus
from flops_fit_ray.engine._local_limits import usable_cores
from flops_fit_ray.engine._nodes import FoundNodes, NodeProbe, check_nodes
from flops_fit_ray.engine.cluster import ray_session, runs_here
from flops_fit_ray.engine.loaders import Loader, comparing_loader, share_data
from flops_fit_ray.engine.planned_code import PlannedCode
from flops_fit_ray.engine.resources import (
    Slots,
    choose_slots,
    count_slots,
    elsewhere,
    fits,
    gpu_kinds,
    greatest_needs,
    live_nodes,
    on_cpus,
    on_gpus,
)
from flops_fit_ray.errors import DataDiffersError, NodeUnfitError, ResourceError, last_line
from flops_fit_ray.planning import Plan
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.training.preflight.check import CheckItem, CheckReport, Verdict, check_plan
from flops_fit_ray.training.preflight.timing import PrecisionChoice, choose_precision
from flops_fit_ray.training.preflight.usage import DeviceUsage, measure_usages
from flops_fit_ray.training.user.parts import UserParts
from flops_fit_ray.waiting import waiting

MEMORY_MARGIN = 1.25  # evaluation, fragments, and what differs between two models of one size


def refuse_early(spec: SweepSpec, address: str | None) -> None:
    """Refuse resources that this machine can never provide, before Ray is started on it, which takes seconds.

    What else it has, only Ray knows.

    Raises:
        ResourceError: as `choose_slots` says it of a machine with all its cores and GPUs.
    """
    if not runs_here(address):
        return
    import torch

    wanted = {name: amount for name, amount in spec.whole_resources.items() if name in ("cpu", "gpu") and amount > 0}
    if wanted:
        machine = {"CPU": usable_cores(), "GPU": torch.cuda.device_count()}
        choose_slots(wanted, [machine], workers=spec.workers_per_trial)


def slots_for(spec: SweepSpec, max_slots: int | None, workers: int = 1) -> Slots:
    """Return the slots of the cluster for the experiments of a spec, whatever torch says of its GPUs.

    Args:
        max_slots, workers: as for `choose_slots`.

    Raises:
        ResourceError: the cluster cannot run such experiments.
    """
    slots = choose_slots(spec.whole_resources, live_nodes(), max_slots, workers)
    if spec.device == "cuda" and not slots.uses_gpu:
        raise ResourceError("device is cuda, and no node of this cluster has a GPU; leave it out to use the CPU")
    return slots


def slots_without(slots: Slots, left_out: Mapping[str, str]) -> Slots:
    """Return the slots that the other nodes have.

    Args:
        left_out: nodes that cannot run the sweep, by Ray's id, and why.

    Raises:
        ResourceError: they have none.
    """
    count = count_slots(slots, live_nodes(avoid=left_out))
    if not count:
        raise ResourceError("\n  ".join(["the nodes that can run this sweep are too small:", *left_out.values()]))
    return replace(slots, count=count)


def choose_on_worker(
    plan: Plan,
    spec: SweepSpec,
    *,
    load_user_parts: Loader,
    address: str | None,
    max_slots: int | None = None,
) -> PrecisionChoice:
    """Measure precision and compilation for `auto` where the sweep will run.

    Args:
        max_slots: as for the sweep.

    Raises:
        ResourceError: the cluster cannot be reached, can never run such an experiment, or its worker died.
    """
    import ray

    with ray_session(address) as head:
        slots = slots_for(spec, head.grows_to(max_slots))
        left_out = unusable_gpus(slots)
        try:
            compared = _shared(load_user_parts, spec, plan)
            with waiting("measuring precision and compilation on a worker"):
                found: PrecisionChoice = _on_fit_node(slots, left_out, _choose, plan, compared, slots)
        except ray.exceptions.RayError as e:
            last = last_line(e)
            raise ResourceError(
                f"auto could not be measured: {last}; say what train.precision and train.compile are"
            ) from e
        return found


def _shared(load_user_parts: Loader, spec: SweepSpec, plan: Plan) -> Loader:
    """Return the loader that the sweep's workers get."""
    found = plan.measurements
    return comparing_loader(share_data(load_user_parts, found.data.tensor_bytes), spec, found)


def _on(slots: Slots, function: Callable[..., Any], avoid: Collection[str] = ()) -> Any:
    """Return a function as a Ray task with the resources of one experiment, on none of the nodes to avoid."""
    import ray

    # One call per process: it takes over the driver's working directory, and a cluster has other users
    where = {"label_selector": elsewhere(avoid)} if avoid else {}
    return ray.remote(max_calls=1)(function).options(**slots.options, max_retries=0, **where)


def _on_fit_node(slots: Slots, left_out: Collection[str], function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function on a node that has the code of the plan, but for those left out: one after the other is tried.

    Raises:
        NodeUnfitError, DataDiffersError, ray.exceptions.RayError: as `_get`; the first where no node has it.
    """
    avoid = set(left_out)
    while True:
        try:
            return _get(_on(slots, function, avoid).remote(*arguments))
        except NodeUnfitError as e:
            avoid.add(e.node)
            if not any(fits(slots.resources, node) for node in live_nodes(avoid)):
                raise


def _get(task: Any) -> Any:
    """Wait for a task's value.

    Raises:
        DataDiffersError: its process has other data than the plan.
        NodeUnfitError: its node has other code.
        ray.exceptions.RayError: anything else went wrong.
    """
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as e:
        if isinstance(e.cause, DataDiffersError | NodeUnfitError):
            raise e.cause from None
        raise


def check_on_worker(
    plan: Plan,
    spec: SweepSpec,
    *,
    load_user_parts: Loader,
    address: str | None,
    max_slots: int | None = None,
    root: StoragePath | None = None,
    base: Path | None = None,
    code: PlannedCode | None = None,
) -> tuple[CheckReport, Slots]:
    """Run the check where an experiment would run. The death of its worker is a FAIL, not an error.

    Args:
        max_slots: as for the sweep.
        root: the sweep's directory, for which every node of a cluster is asked; None asks that of the worker alone.
        base, code: as for the sweep.

    Raises:
        ResourceError: the cluster cannot be reached, or can never run an experiment of this sweep.
    """
    import ray

    refuse_early(spec, address)
    asked = time.time()
    with ray_session(address) as head:
        slots = slots_for(spec, head.grows_to(max_slots))
        if root is None or head.local:
            left_out = unusable_gpus(slots)
        else:
            try:
                left_out = _left_out(root, base, code, slots)
            except ResourceError as e:
                return _only("FAIL", "nodes", str(e), asked), slots
        if left_out and max_slots is None:
            slots = slots_without(slots, left_out)
        try:
            compared = _shared(load_user_parts, spec, plan)
            with waiting("checking the smallest and the largest model on a worker"):
                report, began = _get(_on(slots, _check, left_out).remote(plan, compared, slots))
            nodes = [CheckItem("FAIL", "nodes", f"{fault}; `run` leaves it out") for fault in left_out.values()]
            report = replace(report, lines=(*report.lines, *nodes))
            rates = None if report.rates is None else replace(report.rates, start_seconds=max(0.0, began - asked))
            if spec.workers_per_trial > 1:
                return _of_one_worker(report, spec), slots
            return replace(report, rates=rates), slots
        except DataDiffersError as e:
            return CheckReport(
                lines=tuple(CheckItem("FAIL", "data", fault) for fault in e.faults),
                device="?",
                seconds=time.time() - asked,
                step_seconds={},
            ), slots
        except NodeUnfitError as e:
            return _only("FAIL", "code", e.fault, asked), slots
        except ray.exceptions.RayError as e:
            return _only("FAIL", "runs", f"the worker ended: {last_line(e)}", asked), slots


def _left_out(root: StoragePath, base: Path | None, code: PlannedCode | None, slots: Slots) -> dict[str, str]:
    with contextlib.closing(NodeProbe(root, base, code, gpus=slots.uses_gpu)) as probe:
        return check_nodes(probe, slots).left_out


def _only(verdict: Verdict, name: str, words: str, asked: float) -> CheckReport:
    item = CheckItem(verdict, name, words)
    return CheckReport(lines=(item,), device="?", seconds=time.time() - asked, step_seconds={})


def _of_one_worker(report: CheckReport, spec: SweepSpec) -> CheckReport:
    """Qualify the answers of one worker about a model that several will train together."""
    workers = spec.workers_per_trial
    lines = list(report.lines)
    if spec.shard_model:
        split = f"; shard_model splits it over {workers}, which was not tried here"
        lines = [
            replace(line, verdict="WARN", words=line.words + split)
            if line.verdict == "FAIL" and "memory" in line.words.lower()
            else line
            for line in lines
        ]
    words = f"of one worker; nothing says yet how much faster {workers} together are"
    return replace(report, rates=None, lines=(*lines, CheckItem("WARN", "speed", words)))


def shared_slots(plan: Plan, spec: SweepSpec, load_user_parts: Loader, slots: Slots, found: FoundNodes) -> Slots:
    """Return the slots for `resources_per_trial: auto`, from measured memory and utilization of this sweep's models.

    On GPUs they are measured on a node of every kind of GPU, and what the least of them can share holds for all.

    Args:
        found: the nodes that can run the sweep, and those that cannot, by Ray's id.

    Raises:
        ResourceError: they could not be measured there.
    """
    import ray

    kinds = gpu_kinds(found.machines) if slots.uses_gpu else {}
    avoided = [set(found.left_out)]
    if len(kinds) > 1:
        avoided = [found.left_out.keys() | (found.machines.keys() - nodes) for nodes in kinds.values()]
    try:
        compared = _shared(load_user_parts, spec, plan)
        with waiting("measuring memory and utilization on a worker"):
            tasks = [_on(slots, _usages, avoid).remote(plan, compared, slots) for avoid in avoided]
            usages: list[list[DeviceUsage]] = [_get(task) for task in tasks]
    except ray.exceptions.RayError as e:
        last = last_line(e)
        raise ResourceError(f"resources_per_trial: auto could not be measured: {last}; say what it is") from e
    nodes = live_nodes(found.left_out)
    if not slots.uses_gpu:
        return on_cpus(nodes, usages[0][-1].peak_bytes)
    shared = on_gpus(slots, nodes, greatest_needs([[(u.params, _gpu_need(u)) for u in of_one] for of_one in usages]))
    return shared if len(kinds) < 2 else shared.with_notes([f"measured on {', '.join(sorted(kinds))}"])


def _gpu_need(usage: DeviceUsage) -> float:
    return max(usage.busy, MEMORY_MARGIN * usage.peak_bytes / (usage.memory_bytes or 1))


def _load(load_user_parts: Callable[[], UserParts], plan: Plan) -> UserParts:
    return replace(load_user_parts(), loss_facts=plan.measurements.loss)


def _usages(plan: Plan, load_user_parts: Callable[[], UserParts], slots: Slots) -> list[DeviceUsage]:
    return measure_usages(plan, _load(load_user_parts, plan), slots.device)


def _choose(plan: Plan, load_user_parts: Callable[[], UserParts], slots: Slots) -> PrecisionChoice:
    return choose_precision(plan, _load(load_user_parts, plan), device=slots.device)


def _check(plan: Plan, load_user_parts: Callable[[], UserParts], slots: Slots) -> tuple[CheckReport, float]:
    """Return the report, and the time at which the worker was ready to train, in seconds since the epoch."""
    user = _load(load_user_parts, plan)
    began = time.time()
    return check_plan(plan, user, device=slots.device, slots=slots.count), began
