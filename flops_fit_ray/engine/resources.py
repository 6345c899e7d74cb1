"""Resources of a trial, and the number of concurrent trials. Pure functions, but for `live_entries`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flops_fit_ray.errors import ResourceError
from flops_fit_ray.ledger.hardware import Machine

Node = Mapping[str, float]  # Ray's resource names (CPU, GPU, ...) to amounts
NODE_LABEL = "ray.io/node-id"  # which Ray gives each node


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Resources of one trial and number of concurrent trials. `note` tells the user what differs from the request."""

    resources: Mapping[str, float]  # of one worker, by Tune's names: cpu, gpu, ...
    count: int
    note: str = ""
    workers: int = 1  # of one trial
    shares: tuple[tuple[int, float], ...] = ()  # (N, fraction of a GPU) up to that N; empty: whole GPUs

    def share(self, params: int) -> float:
        """Return the fraction of a GPU for a model of N = `params`; 1 for one larger than all measured ones."""
        return next((share for limit, share in self.shares if params <= limit), 1.0)

    def with_notes(self, notes: Sequence[str]) -> Slots:
        """Append notes for the user."""
        return replace(self, note="; ".join(filter(None, [self.note, *notes])))

    @property
    def bundles(self) -> list[dict[str, float]]:
        """Placement group bundles of a trial, one per worker."""
        return [{_ray_name(name): amount for name, amount in self.resources.items()}] * self.workers

    @property
    def options(self) -> dict[str, Any]:
        """Resource options of Ray tasks and actors for one worker."""
        custom = {name: amount for name, amount in self.resources.items() if name not in ("cpu", "gpu")}
        cpu, gpu = self.resources.get("cpu", 0), self.resources.get("gpu", 0)
        return {"num_cpus": cpu, "num_gpus": gpu, "resources": custom}

    @property
    def device(self) -> str:
        """Device of a trial, by its resources: a process without a GPU of its own may still see all of them."""
        return "cuda" if self.uses_gpu else "cpu"

    @property
    def uses_gpu(self) -> bool:
        """True if a trial has a GPU or a fraction of one."""
        return self.resources.get("gpu", 0) > 0

    @property
    def shares_gpu(self) -> bool:
        """True if several trials may be on one GPU."""
        return bool(self.shares) or 0 < self.resources.get("gpu", 0) < 1


def live_entries() -> dict[str, Mapping[str, Any]]:
    """Return Ray's entries of the nodes that are alive, by id."""
    import ray

    every = ray.nodes()  # type: ignore[no-untyped-call] # Ray leaves it untyped
    return {str(node["NodeID"]): node for node in every if node["Alive"]}


def live_nodes(avoid: Collection[str] = ()) -> list[Node]:
    """Return the resources of every node that is alive, but for those to avoid, by id."""
    return [dict(node["Resources"]) for name, node in live_entries().items() if name not in avoid]


def elsewhere(avoid: Collection[str]) -> dict[str, str]:
    """Return Ray's label selector of all nodes but some; empty where there are none to avoid."""
    return {NODE_LABEL: f"!in({','.join(sorted(avoid))})"} if avoid else {}


def choose_slots(
    wanted: Mapping[str, float], nodes: Sequence[Node], max_slots: int | None = None, workers: int = 1
) -> Slots:
    """Choose slots with `wanted` resources per worker; a CPU core replaces a GPU if no node has one.

    Args:
        max_slots: so many concurrent trials, even if fewer fit now: an autoscaling cluster grows for trials that wait.
            Then a GPU is waited for, and not replaced.
        workers: of one trial, each with `wanted`; they may be on several nodes.

    Raises:
        ResourceError: the nodes cannot provide it.
    """
    note = ""
    needed = {name: amount for name, amount in wanted.items() if amount > 0}
    if max_slots is not None:
        now = sum(fits(needed, node) for node in nodes) // workers
        if now < max_slots:
            asked = ", ".join(f"{name}: {amount:g}" for name, amount in needed.items())
            note = f"{now} of {max_slots} slots fit now; waiting for the cluster to grow ({{{asked}}} each)"
        return Slots(resources=needed, count=max_slots, note=note, workers=workers)
    if "gpu" in needed and not any(node.get("GPU", 0) for node in nodes):
        others = {name: amount for name, amount in needed.items() if name != "gpu"}
        needed = {"cpu": 1.0, **others}
        note = "no GPU in this cluster: each experiment runs on one CPU core"
    elif "gpu" in needed and any(node.get("CPU", 0) and not node.get("GPU", 0) for node in nodes):
        note = "experiments run on the nodes with GPUs alone"
    count = sum(fits(needed, node) for node in nodes)
    if 0 < count < workers:
        raise ResourceError(
            f"workers_per_trial is {workers}, but only {count} workers fit; reduce it, or set --slots if the cluster "
            "can grow"
        )
    if count == 0:
        largest = {name: max((node.get(_ray_name(name), 0) for node in nodes), default=0) for name in needed}
        have = ", ".join(f"{name}: {amount:g}" for name, amount in largest.items())
        asked = ", ".join(f"{name}: {amount:g}" for name, amount in needed.items())
        raise ResourceError(
            f"resources_per_trial is {{{asked}}}, but the largest node has {{{have}}}; reduce it, or set --slots if "
            "the cluster can grow"
        )
    return Slots(resources=needed, count=count // workers, note=note, workers=workers)


def gpu_kinds(machines: Mapping[str, Machine]) -> dict[str, set[str]]:
    """Return the nodes by the kind of their GPUs: name and memory; those whose driver says nothing are a kind, too."""
    found: dict[str, set[str]] = {}
    for node, machine in machines.items():
        kinds = {f"{gpu.name}{_in_gib(gpu.memory_total)}" for gpu in machine.gpus}
        found.setdefault(" and ".join(sorted(kinds)) or "unknown GPUs", set()).add(node)
    return found


def _in_gib(memory: int | None) -> str:
    return "" if memory is None else f" ({memory / 2**30:.0f} GiB)"


def greatest_needs(found: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Return for each N the largest fraction of a GPU that it needs, of those measured on every kind."""
    return [(of_one[0][0], max(need for _, need in of_one)) for of_one in zip(*found, strict=True)]


def on_gpus(slots: Slots, nodes: Sequence[Node], sizes: Sequence[tuple[int, float]]) -> Slots:
    """Let small models share a GPU.

    Args:
        slots: with a whole GPU each.
        sizes: (N, fraction of a GPU that a model of this N needs), N ascending. A model between two of them gets the
            fraction of the larger one.
    """
    shares = tuple((params, gpu_fraction(need)) for params, need in sizes)
    per_gpu = ", ".join(f"up to N = {params:,}: {round(1 / share)}" for params, share in shares)
    shared = replace(slots, shares=shares)
    return replace(shared, count=count_slots(shared, nodes)).with_notes([f"experiments per GPU: {per_gpu}"])


def count_slots(slots: Slots, nodes: Sequence[Node]) -> int:
    """Return how many experiments at a time fit into nodes."""
    if slots.shares:
        gpus = sum(math.floor(node.get("GPU", 0)) for node in nodes)
        return round(gpus / min(share for _, share in slots.shares))
    return sum(fits(slots.resources, node) for node in nodes) // slots.workers


def gpu_fraction(need: float) -> float:
    """Round a need up to 1/8, 1/4, 1/2 or all of a GPU."""
    return next((1 / parts for parts in (8, 4, 2) if need <= 1 / parts), 1.0)


def on_cpus(nodes: Sequence[Node], peak_bytes: float) -> Slots:
    """Give each trial one core, or several where the memory of a node is too small for a trial per core."""
    cores = 1.0
    for node in nodes:
        fitting = max(1.0, min(node.get("CPU", 0), node.get("memory", math.inf) / peak_bytes))
        cores = max(cores, math.ceil(node.get("CPU", 0) / math.floor(fitting)))
    resources = {"cpu": cores}
    count = sum(fits(resources, node) for node in nodes)
    note = f"{peak_bytes / 1e9:.1f} GB each, so each takes {cores:g} cores" if cores > 1 else ""
    return Slots(resources=resources, count=max(1, count), note=note)


def fits(needed: Mapping[str, float], node: Node) -> int:
    """Return how many times the needed resources fit into a node."""
    # 1e-9: three times 1/3 of a GPU fit into one
    return min(math.floor(node.get(_ray_name(name), 0) / amount + 1e-9) for name, amount in needed.items())


def _ray_name(name: str) -> str:
    return name.upper() if name in ("cpu", "gpu") else name
