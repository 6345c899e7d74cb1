"""Check of a cluster's nodes before anything runs on them: each must see the sweep directory and the user's code.

Experiments start from one another's checkpoints and the driver reads their results, so every node must see the same
files. Otherwise each node would write results that the driver never finds.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flops_fit_ray.engine.resources import fits
from flops_fit_ray.errors import ResourceError, StorageError
from flops_fit_ray.ledger.hardware import Machine, Readings
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.lock import hostname
from flops_fit_ray.storage.storage_path import StoragePath, is_remote

REPLY_SECONDS = 120.0  # a worker process has to start, and to import this package
VISIBLE_SECONDS = 10.0  # shared file systems may show a new file late


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """Reply of one node."""

    node: str
    host: str = ""
    sees_marker: bool = False  # a file of the driver
    wrote: bool = False  # a file of its own, which the driver must see
    has_code: bool = True
    versions: Mapping[str, str] | None = None
    machine: Machine | None = None
    error: str = ""  # why there is nothing else


def check_nodes(
    root: StoragePath, base: Path | None, resources: Mapping[str, float]
) -> tuple[list[str], list[Machine]]:
    """Check that every node sees `root` and the code in `base`.

    Returns warnings, and the machine of each node. The driver's node is not asked if it is the only one, nor are nodes
    that cannot run an experiment.

    Raises:
        ResourceError: some do not; all of them are named.
        StorageError: the driver itself cannot write there.
    """
    import ray

    every = ray.nodes()  # type: ignore[no-untyped-call] # Ray leaves it untyped
    nodes = [node for node in every if node["Alive"] and fits(resources, node["Resources"])]
    own = ray.get_runtime_context().get_node_id()
    if {node["NodeID"] for node in nodes} <= {own}:
        return [], [this_machine()] if nodes else []
    token = uuid.uuid4().hex
    marker = root / f".probe-{token}.tmp"  # if the driver is killed, the next one removes it
    write_json(marker, {"token": token})
    replies = {node["NodeID"]: root / f".probe-{token}-{number}.tmp" for number, node in enumerate(nodes)}
    try:
        reports = _ask(nodes, marker, replies, token, None if base is None else str(base))
        faults = _faults(reports, root, base, {a.node: _seen(replies[a.node], token) for a in reports if a.wrote})
    finally:
        for place in (marker, *replies.values()):
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)
    if faults:
        raise ResourceError("\n  ".join(["the nodes of the cluster do not see the same files:", *faults]))
    if not reports:
        raise ResourceError("no node of the cluster replies; start one, or leave out --address to run on this machine")
    return _differences(reports), [a.machine for a in reports if a.machine is not None]


def this_machine() -> Machine:
    """Return the hardware and libraries of this machine."""
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
) -> list[NodeReport]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in nodes:
        name = str(node["NodeID"])
        there = NodeAffinitySchedulingStrategy(name, soft=False)
        task = ray.remote(probe_node).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        asked[name] = task.remote(name, marker, replies[name], token, base)
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=REPLY_SECONDS)
    reports, alive = [], {str(node["NodeID"]) for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call] # as above
    for node in nodes:
        name, address = str(node["NodeID"]), str(node["NodeManagerAddress"])
        try:
            report: NodeReport = ray.get(asked[name], timeout=0)
            reports.append(replace(report, host=f"{report.host} ({address})"))
        except ray.exceptions.RayError as e:
            if name not in alive:
                continue  # it has just died, and nothing will run there
            error = f"cannot run this package: {str(e).strip().splitlines()[-1]}"
            if isinstance(e, ray.exceptions.GetTimeoutError):
                error = f"did not reply within {REPLY_SECONDS:g} s"
            reports.append(NodeReport(node=name, host=address, error=error))
    return reports


def probe_node(node: str, marker: StoragePath, reply: StoragePath, token: str, base: str | None) -> NodeReport:
    """Read the driver's file and write one for the driver. Runs on the node."""
    from flops_fit_ray.engine.trainable import versions

    sees, wrote = _seen(marker, token), False
    if sees:  # else it would make a directory that no other node sees
        with contextlib.suppress(StorageError):
            write_json(reply, {"token": token})
            wrote = True
    return NodeReport(
        node=node,
        host=hostname(),
        sees_marker=sees,
        wrote=wrote,
        has_code=base is None or Path(base).is_dir(),
        versions=versions(),
        machine=this_machine(),
    )


def _seen(place: StoragePath, token: str) -> bool:
    until = time.monotonic() + VISIBLE_SECONDS
    while True:
        with contextlib.suppress(StorageError):
            if (read_json(place) or {}).get("token") == token:
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.2)


def _faults(reports: Sequence[NodeReport], root: StoragePath, base: Path | None, seen: Mapping[str, bool]) -> list[str]:
    shared = "give --output a path on storage that all nodes share, or s3://..."
    if is_remote(root):
        shared = "give it the credentials and the route to that store"
    faults = []
    for report in reports:
        where = f"node {report.host}"
        if report.error:
            faults.append(f"{where} {report.error}")
        elif not report.sees_marker:
            faults.append(f"{where} does not see {root}: {shared}")
        elif not (report.wrote and seen[report.node]):
            faults.append(f"{where} sees {root} and cannot write there: {shared}")
        elif not report.has_code:
            faults.append(
                f"{where} does not have {base}, where the spec's code is: put it on shared storage, or send it with a "
                "job (flops-fit-ray submit)"
            )
    return faults


def _differences(reports: Sequence[NodeReport]) -> list[str]:
    """Return a line per package whose version differs between nodes; CPU and CUDA builds of a version are the same."""
    found = []
    for name in reports[0].versions or ():
        by_version: dict[str, list[str]] = {}
        for report in reports:
            version = (report.versions or {}).get(name, "?").partition("+")[0]
            by_version.setdefault(version, []).append(report.host)
        if len(by_version) > 1:
            found.append(f"{name} is " + ", ".join(f"{v} on {', '.join(hosts)}" for v, hosts in by_version.items()))
    return found
