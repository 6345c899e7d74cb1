"""What one trial gets, and how many fit at once. The arithmetic is pure; only `live_nodes` asks Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flops_fit_ray.errors import ResourceError

Node = Mapping[str, float]  # Ray's resource names (CPU, GPU, ...) to amounts


@dataclass(frozen=True, kw_only=True)
class Slots:
    """How trials are placed. `note` is for the user where it is not what was asked for."""

    resources: Mapping[str, float]  # of one worker, in Tune's names: cpu, gpu, ...
    count: int
    note: str = ""
    workers: int = 1  # of one trial
    shares: tuple[tuple[int, float], ...] = ()  # up to which N a trial has which part of a GPU; none: a whole one

    def share(self, params: int) -> float:
        """The part of a GPU for a model of N = `params`; 1 of one that is larger than any that was measured."""
        return next((share for limit, share in self.shares if params <= limit), 1.0)

    def with_notes(self, notes: Sequence[str]) -> Slots:
        """The same with more to say."""
        return replace(self, note="; ".join(filter(None, [self.note, *notes])))

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What each worker of a trial has, in Ray's names."""
        return [{_ray_name(name): amount for name, amount in self.resources.items()}] * self.workers

    @property
    def options(self) -> dict[str, Any]:
        """What one worker has, as Ray's tasks and actors take it."""
        others = {name: amount for name, amount in self.resources.items() if name not in ("cpu", "gpu")}
        whole = {"num_cpus": self.resources.get("cpu", 0), "num_gpus": self.resources.get("gpu", 0)}
        return {**whole, "resources": others}

    @property
    def device(self) -> str:
        """By what a trial is given, never by what can be seen: without a GPU of its own it still sees them all."""
        return "cuda" if self.uses_gpu else "cpu"

    @property
    def uses_gpu(self) -> bool:
        """Whether a trial has a GPU."""
        return self.resources.get("gpu", 0) > 0


def live_nodes() -> list[Node]:
    """The resources of every node that is alive."""
    import ray

    return [
        dict(node["Resources"])
        for node in ray.nodes()  # type: ignore[no-untyped-call] # Ray leaves it untyped
        if node["Alive"]
    ]


def choose_slots(
    wanted: Mapping[str, float], nodes: Sequence[Node], max_slots: int | None = None, workers: int = 1
) -> Slots:
    """The slots for `wanted` resources per trial; where no node has a GPU, one CPU core takes its place.

    Args:
        most: so many at a time, whatever the nodes have now: the cluster grows, and what waits makes it grow. Then a
            GPU is waited for, and never replaced.
        workers: of one trial, each with `wanted`; they may be on several nodes.

    Raises:
        ResourceError: no node can ever provide what is asked for.
    """
    note = ""
    needed = {name: amount for name, amount in wanted.items() if amount > 0}
    if max_slots is not None:
        now = sum(fits(needed, node) for node in nodes) // workers
        if now < max_slots:
            asked = ", ".join(f"{name}: {amount:g}" for name, amount in needed.items())
            note = f"there is room for {now} now, and the cluster is asked to grow ({{{asked}}} each)"
        return Slots(resources=needed, count=max_slots, note=note, workers=workers)
    if "gpu" in needed and not any(node.get("GPU", 0) for node in nodes):
        others = {name: amount for name, amount in needed.items() if name != "gpu"}
        needed = {"cpu": 1.0, **others}
        note = "no GPU in this cluster: each experiment runs on one CPU core"
    count = sum(fits(needed, node) for node in nodes)
    if 0 < count < workers:
        raise ResourceError(
            f"workers_per_trial asks for {workers} workers, and there is room for {count}; ask for less, or with "
            "--slots for a cluster to grow"
        )
    if count == 0:
        largest = {name: max((node.get(_ray_name(name), 0) for node in nodes), default=0) for name in needed}
        have = ", ".join(f"{name}: {amount:g}" for name, amount in largest.items())
        asked = ", ".join(f"{name}: {amount:g}" for name, amount in needed.items())
        raise ResourceError(
            f"resources_per_trial asks for {{{asked}}}, and the largest node has {{{have}}}; ask for "
            "less, or with --slots for a cluster to grow"
        )
    return Slots(resources=needed, count=count // workers, note=note, workers=workers)


def on_gpus(slots: Slots, nodes: Sequence[Node], sizes: Sequence[tuple[int, float]]) -> Slots:
    """Small models share a GPU, large ones do not.

    Args:
        slots: with a whole GPU each.
        sizes: N, and the part of a GPU that a model of this size takes, from the smallest on. What lies between two of
            them takes what the larger one does.
    """
    shares = tuple((params, part_of(need)) for params, need in sizes)
    smallest = min(share for _, share in shares)
    gpus = sum(math.floor(node.get("GPU", 0)) for node in nodes)
    words = ", ".join(f"up to N = {params:,}: {round(1 / share)}" for params, share in shares)
    return replace(slots, shares=shares, count=round(gpus / smallest)).with_notes([f"experiments on one GPU: {words}"])


def part_of(need: float) -> float:
    """1/8, 1/4, 1/2 or all of a GPU: the least that is `need` or more."""
    return next((1 / parts for parts in (8, 4, 2) if need <= 1 / parts), 1.0)


def on_cpus(nodes: Sequence[Node], peak_bytes: float) -> Slots:
    """One thread and one core each, fewer where the memory that Ray gives away is too small for so many."""
    cores = 1.0
    for node in nodes:
        fitting = max(1.0, min(node.get("CPU", 0), node.get("memory", math.inf) / peak_bytes))
        cores = max(cores, math.ceil(node.get("CPU", 0) / math.floor(fitting)))
    resources = {"cpu": cores}
    count = sum(fits(resources, node) for node in nodes)
    room = f"{peak_bytes / 1e9:.1f} GB each"
    note = f"{room}, so each takes the place of {cores:g} cores" if cores > 1 else ""
    return Slots(resources=resources, count=max(1, count), note=note)


def fits(needed: Mapping[str, float], node: Node) -> int:
    """How many times a node has what is needed."""
    # A small allowance, so that 3 × 1/3 is one GPU.
    return min(math.floor(node.get(_ray_name(name), 0) / amount + 1e-9) for name, amount in needed.items())


def _ray_name(name: str) -> str:
    return name.upper() if name in ("cpu", "gpu") else name
