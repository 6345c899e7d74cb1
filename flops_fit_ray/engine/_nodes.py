"""The nodes of a cluster, before anything runs on them: whether each sees the sweep directory and the user's code.

Experiments go on from one another's checkpoints and the driver reads their results, so all of it lies where every node
sees the same files. Where it does not, each node would write results that nobody finds.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flops_fit_ray.engine.planned_code import WAY_OUT, PlannedCode, other_code
from flops_fit_ray.engine.resources import fits
from flops_fit_ray.errors import ResourceError, StorageError, last_line
from flops_fit_ray.ledger.hardware import Machine, Readings
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.lock import hostname
from flops_fit_ray.storage.storage_path import StoragePath, is_remote
from flops_fit_ray.waiting import waiting

ANSWER_SECONDS = 120.0  # a worker process has to start, and to import this package
SEE_SECONDS = 10.0  # shared file systems may show a new file late


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Answer of one node to the probe."""

    node: str
    host: str = ""
    sees_marker: bool = False  # the driver's file
    wrote: bool = False  # its own, which the driver must see
    has_code: bool = True
    differences: tuple[str, ...] = ()  # of its code from that of the plan
    versions: Mapping[str, str] | None = None
    machine: Machine | None = None
    error: str = ""  # instead of all that


def check_nodes(
    root: StoragePath, base: Path | None, code: PlannedCode | None, resources: Mapping[str, float]
) -> tuple[list[str], list[Machine]]:
    """Make sure that every node sees `root`, and has the code in `base` as it was planned with.

    Returns what is odd, and no reason to stop, and what each node has.

    A node that is the driver's own, and alone, is not asked, nor one that cannot run an experiment.

    Raises:
        ResourceError: a node does not; all of them are named.
        StorageError: the driver itself cannot write there.
    """
    import ray

    every = ray.nodes()  # type: ignore[no-untyped-call] # Ray leaves it untyped
    nodes = [node for node in every if node["Alive"] and fits(resources, node["Resources"])]
    own = ray.get_runtime_context().get_node_id()
    if {node["NodeID"] for node in nodes} <= {own}:
        return [], [this_machine()] if nodes else []
    token = uuid.uuid4().hex
    marker = root / f".probe-{token}.tmp"  # what a killed driver leaves of them, the next one removes
    write_json(marker, {"token": token})
    replies = {node["NodeID"]: root / f".probe-{token}-{number}.tmp" for number, node in enumerate(nodes)}
    try:
        with waiting(f"asking {len(nodes)} nodes of the cluster what they see"):
            answers = _ask(nodes, marker, replies, token, None if base is None else str(base), code)
        faults = _faults(answers, root, base, {a.node: _seen(replies[a.node], token) for a in answers if a.wrote})
    finally:
        for place in (marker, *replies.values()):
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)
    if faults:
        raise ResourceError("\n  ".join(["the nodes of the cluster do not have the same files:", *faults]))
    if not answers:
        raise ResourceError("no node of the cluster answers; start one, or leave --address out to run here")
    return _differences(answers), [a.machine for a in answers if a.machine is not None]


def this_machine() -> Machine:
    """Describe the machine of this process."""
    from flops_fit_ray.training.step.device import gpu_libraries

    found = Readings().read()
    cuda, nccl = gpu_libraries() if found.gpus else (None, None)
    return replace(found, cuda=cuda, nccl=nccl)


def _ask(
    nodes: Sequence[Mapping[str, Any]],
    marker: StoragePath,
    replies: Mapping[str, StoragePath],
    token: str,
    base: str | None,
    code: PlannedCode | None,
) -> list[Answer]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in nodes:
        name = str(node["NodeID"])
        there = NodeAffinitySchedulingStrategy(name, soft=False)
        task = ray.remote(look).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        asked[name] = task.remote(name, marker, replies[name], token, base, code)
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)
    answers, alive = [], {str(node["NodeID"]) for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call] # as above
    for node in nodes:
        name, address = str(node["NodeID"]), str(node["NodeManagerAddress"])
        try:
            answer: Answer = ray.get(asked[name], timeout=0)
            answers.append(replace(answer, host=f"{answer.host} ({address})"))
        except ray.exceptions.RayError as e:
            if name not in alive:
                continue  # it died a moment ago, and nothing will run there
            error = f"cannot run this package: {last_line(e)}"
            if isinstance(e, ray.exceptions.GetTimeoutError):
                error = f"does not answer within {ANSWER_SECONDS:g} s"
            answers.append(Answer(node=name, host=address, error=error))
    return answers


def look(
    node: str, marker: StoragePath, reply: StoragePath, token: str, base: str | None, code: PlannedCode | None
) -> Answer:
    """Run on a node: what it sees of the driver's files and has of its code, and a file for the driver to see."""
    from flops_fit_ray.engine._trainable import versions
    from flops_fit_ray.training.user.installed import library_versions

    sees, wrote = _seen(marker, token), False
    if sees:  # else a directory would be made that nobody else sees
        with contextlib.suppress(StorageError):
            write_json(reply, {"token": token})
            wrote = True
    return Answer(
        node=node,
        host=hostname(),
        sees_marker=sees,
        wrote=wrote,
        has_code=base is None or Path(base).is_dir(),
        differences=() if code is None else tuple(code.differences()),
        versions={**versions(), **library_versions(() if code is None else code.facts.libraries)},
        machine=this_machine(),
    )


def _seen(place: StoragePath, token: str) -> bool:
    until = time.monotonic() + SEE_SECONDS
    while True:
        with contextlib.suppress(StorageError):
            if (read_json(place) or {}).get("token") == token:
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.2)


def _faults(answers: Sequence[Answer], root: StoragePath, base: Path | None, seen: Mapping[str, bool]) -> list[str]:
    shared = "give --output a path on storage that all nodes share, or s3://..."
    if is_remote(root):
        shared = "give it the credentials and the route to that store"
    faults = []
    for answer in answers:
        where = f"node {answer.host}"
        if answer.error:
            faults.append(f"{where} {answer.error}")
        elif not answer.sees_marker:
            faults.append(f"{where} does not see {root}: {shared}")
        elif not (answer.wrote and seen[answer.node]):
            faults.append(f"{where} sees {root} and cannot write there: {shared}")
        elif not answer.has_code:
            faults.append(f"{where} does not have {base}, where the spec's code is: {WAY_OUT}")
        elif answer.differences:
            faults.append(f"{where} {other_code(list(answer.differences))}")
    return faults


def _differences(answers: Sequence[Answer]) -> list[str]:
    """Versions that are not the same everywhere; CPU and CUDA builds of one version are."""
    found = []
    for name in dict.fromkeys(name for answer in answers for name in answer.versions or ()):
        by_version: dict[str, list[str]] = {}
        for answer in answers:
            version = (answer.versions or {}).get(name, "?").partition("+")[0]
            by_version.setdefault(version, []).append(answer.host)
        if len(by_version) > 1:
            found.append(f"{name} is " + ", ".join(f"{v} on {', '.join(hosts)}" for v, hosts in by_version.items()))
    return found
