"""The nodes of a cluster, before anything runs on them: what each sees of the sweep, and has of the user's code.

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

from flops_fit_ray import formatting as fmt
from flops_fit_ray.engine._gpus import gpu_fault, unusable_gpus
from flops_fit_ray.engine.planned_code import WAY_OUT, PlannedCode, other_code
from flops_fit_ray.engine.resources import Slots, fits, live_entries
from flops_fit_ray.errors import ResourceError, StorageError, last_line
from flops_fit_ray.ledger.hardware import Machine, Readings
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.lock import hostname
from flops_fit_ray.storage.storage_path import StoragePath, is_remote
from flops_fit_ray.waiting import waiting

ANSWER_SECONDS = 120.0  # a worker process has to start, and to import this package
SEE_SECONDS = 10.0


@dataclass(frozen=True)
class Mark:
    """A file of this run's own: who sees it with its token sees the sweep's directory, and no copy of it."""

    place: StoragePath
    token: str

    def is_seen(self) -> bool:
        """Return True if this process sees it; shared file systems may show a new file late."""
        until = time.monotonic() + SEE_SECONDS
        while True:
            with contextlib.suppress(StorageError):
                if (read_json(self.place) or {}).get("token") == self.token:
                    return True
            if time.monotonic() > until:
                return False
            time.sleep(0.2)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Answer of one node to the probe."""

    node: str
    host: str = ""
    sees_marker: bool = False  # the driver's file
    wrote: bool = False  # its own, which the driver must see
    has_code: bool = True
    differences: tuple[str, ...] = ()  # of its code from that of the plan
    gpu_fault: str = ""
    versions: Mapping[str, str] | None = None
    machine: Machine | None = None
    error: str = ""  # instead of all that


class NodeProbe:
    """Asks nodes what they see of a sweep, have of its code, and can compute on. The driver's mark stays until `close`.

    Args:
        base: the directory of the user's code that every node must have; None where it travels.
        code: the user's code; None where it is not known.
        gpus: whether experiments need GPUs.
    """

    def __init__(self, root: StoragePath, base: Path | None, code: PlannedCode | None, *, gpus: bool) -> None:
        self._root, self._base, self._code, self._gpus = root, base, code, gpus
        token = uuid.uuid4().hex
        self._mark = Mark(root / f".probe-{token}.tmp", token)  # what a killed driver leaves, the next one removes
        self._marked = False

    @property
    def mark(self) -> Mark:
        """The driver's mark, which is there from now on.

        Raises:
            StorageError: the driver itself cannot write there.
        """
        if not self._marked:
            write_json(self._mark.place, {"token": self._mark.token})
            self._marked = True
        return self._mark

    def ask(self, node: Mapping[str, Any]) -> Any:
        """Begin to ask a node of Ray's list. Returns a reference to its `Answer`.

        Raises:
            StorageError: the driver itself cannot write there.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        name = str(node["NodeID"])
        there = NodeAffinitySchedulingStrategy(name, soft=False)
        # One call per process: what it opened on the GPUs is closed with it
        task = ray.remote(max_calls=1)(look).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        gpus = int(node["Resources"].get("GPU", 0)) if self._gpus else 0
        return task.remote(name, self.mark, self._reply(name), None if self._base is None else str(self._base),
                           self._code, gpus)  # fmt: skip

    def answer(self, node: Mapping[str, Any], task: Any) -> Answer | None:
        """Return the answer of a node that was asked; None of one that died a moment ago."""
        import ray

        name, address = str(node["NodeID"]), str(node["NodeManagerAddress"])
        try:
            answer: Answer = ray.get(task, timeout=0)
            return replace(answer, host=f"{answer.host} ({address})")
        except ray.exceptions.RayError as e:
            if name not in live_entries():
                return None  # nothing will run there
            error = f"cannot run this package: {last_line(e)}"
            if isinstance(e, ray.exceptions.GetTimeoutError):
                error = f"does not answer within {ANSWER_SECONDS:g} s"
            return Answer(node=name, host=address, error=error)

    def fault(self, answer: Answer) -> str | None:
        """Return the sentence on why a node cannot run experiments, with the way out; None if it can."""
        shared = "give --output a path on storage that all nodes share, or s3://..."
        if is_remote(self._root):
            shared = "give it the credentials and the route to that store"
        where = f"node {answer.host}"
        if answer.error:
            return f"{where} {answer.error}"
        if not answer.sees_marker:
            return f"{where} does not see {self._root}: {shared}"
        if not (answer.wrote and Mark(self._reply(answer.node), self._mark.token).is_seen()):
            return f"{where} sees {self._root} and cannot write there: {shared}"
        if not answer.has_code:
            return f"{where} does not have {self._base}, where the spec's code is: {WAY_OUT}"
        if answer.differences:
            return f"{where} {other_code(list(answer.differences))}"
        return answer.gpu_fault or None

    def remove_reply(self, name: str) -> None:
        """Remove what a node has written as its answer."""
        with contextlib.suppress(OSError):
            self._reply(name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the driver's mark."""
        with contextlib.suppress(OSError):
            self._mark.place.unlink(missing_ok=True)

    def _reply(self, name: str) -> StoragePath:
        return self._root / f".probe-{self._mark.token}-{name[:16]}.tmp"


@dataclass(frozen=True, kw_only=True)
class FoundNodes:
    """The nodes of a cluster before a sweep begins, by Ray's id."""

    machines: dict[str, Machine]  # of those that can run experiments
    left_out: dict[str, str]  # those that cannot, and why
    odd: tuple[str, ...] = ()  # what is no reason to leave one out


def check_nodes(probe: NodeProbe, slots: Slots) -> FoundNodes:
    """Ask which nodes can run experiments of this sweep.

    A node that is the driver's own, and alone, is not asked, nor one that is too small for an experiment.

    Raises:
        ResourceError: none can; all of them are named.
        StorageError: the driver itself cannot write there.
    """
    import ray

    nodes = live_nodes_for(slots.resources)
    own = ray.get_runtime_context().get_node_id()
    if nodes.keys() <= {own}:
        unusable_gpus(slots)  # none is left without it
        return FoundNodes(machines={name: this_machine() for name in nodes}, left_out={})
    with waiting(f"asking {fmt.counted(len(nodes), 'node')} of the cluster what they see"):
        tasks = {name: probe.ask(node) for name, node in nodes.items()}
        ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=ANSWER_SECONDS)
    answers = [a for name, node in nodes.items() if (a := probe.answer(node, tasks[name])) is not None]
    left_out = {answer.node: fault for answer in answers if (fault := probe.fault(answer)) is not None}
    for name in nodes:
        probe.remove_reply(name)
    if not answers:
        raise ResourceError("no node of the cluster answers; start one, or leave --address out to run here")
    good = [answer for answer in answers if answer.node not in left_out]
    if not good:
        raise ResourceError("\n  ".join(["no node of the cluster can run this sweep:", *left_out.values()]))
    machines = {a.node: a.machine for a in good if a.machine is not None}
    return FoundNodes(machines=machines, left_out=left_out, odd=tuple(differences(good)))


def live_nodes_for(resources: Mapping[str, float]) -> dict[str, Mapping[str, Any]]:
    """Return Ray's entries of the nodes that are alive and can run an experiment, by id."""
    return {name: node for name, node in live_entries().items() if fits(resources, node["Resources"])}


def this_machine() -> Machine:
    """Describe the machine of this process."""
    from flops_fit_ray.training.step.device import gpu_libraries

    found = Readings().read()
    cuda, nccl = gpu_libraries() if found.gpus else (None, None)
    return replace(found, cuda=cuda, nccl=nccl)


def look(node: str, mark: Mark, reply: StoragePath, base: str | None, code: PlannedCode | None, gpus: int) -> Answer:
    """Run on a node: what it sees of the driver's files and has of its code, and a file for the driver to see."""
    from flops_fit_ray.engine._versions import versions
    from flops_fit_ray.training.user.installed import library_versions

    sees, wrote = mark.is_seen(), False
    if sees:  # else a directory would be made that nobody else sees
        with contextlib.suppress(StorageError):
            write_json(reply, {"token": mark.token})
            wrote = True
    return Answer(
        node=node,
        host=hostname(),
        sees_marker=sees,
        wrote=wrote,
        has_code=base is None or Path(base).is_dir(),
        differences=() if code is None else tuple(code.differences()),
        gpu_fault=gpu_fault(gpus) if gpus else "",
        versions={**versions(), **library_versions(() if code is None else code.facts.libraries)},
        machine=this_machine(),
    )


def differences(answers: Sequence[Answer]) -> list[str]:
    """Return versions that are not the same everywhere; CPU and CUDA builds of one version are."""
    found = []
    for name in dict.fromkeys(name for answer in answers for name in answer.versions or ()):
        by_version: dict[str, list[str]] = {}
        for answer in answers:
            version = (answer.versions or {}).get(name, "?").partition("+")[0]
            by_version.setdefault(version, []).append(answer.host)
        if len(by_version) > 1:
            found.append(f"{name} is " + ", ".join(f"{v} on {', '.join(hosts)}" for v, hosts in by_version.items()))
    return found
