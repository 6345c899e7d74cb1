"""The nodes of a running sweep: those that join are looked at, and those that cannot run it are left out and named."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flops_fit_ray.engine._dispatch import Dispatcher
from flops_fit_ray.engine._nodes import Answer, FoundNodes, NodeProbe, live_nodes_for
from flops_fit_ray.engine.cluster import Head
from flops_fit_ray.engine.interrupt import StopRequest
from flops_fit_ray.engine.resources import count_slots
from flops_fit_ray.errors import InterruptedSweepError, StorageError
from flops_fit_ray.ledger.hardware import Cluster, Machine

LOOK_SECONDS = 2.0
AGAIN_SECONDS = 60.0  # after which a node that was left out is asked again: it may have been put right


class NodeWatch:
    """Looks at the cluster now and then, and tells the dispatcher how many experiments run at a time, and where not.

    Args:
        found: the nodes that were looked at before the sweep began.
        max_slots: experiments at a time that were asked for; None: as many as fit now.
        record: keeps what is known of the cluster, for people.
    """

    def __init__(
        self,
        probe: NodeProbe,
        found: FoundNodes,
        head: Head,
        max_slots: int | None,
        record: Callable[[Cluster], object],
    ) -> None:
        self._probe, self._head, self._max_slots = probe, head, max_slots
        self._machines, self.left_out_at_first = dict(found.machines), found.left_out
        self._record = record
        self._asked: dict[str, Any] = {}  # nodes with references to their answers
        self._left_out: dict[str, float] = {}  # nodes, and when they were
        self._looked = time.monotonic()
        self._shown: Cluster | None = None

    def look(self, dispatcher: Dispatcher, stop: StopRequest) -> None:
        """Look, if it is time to. Quick: nodes are asked in the background."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if not self._head.answers():  # Ray would wait for it for a minute, and then end this process
            return
        nodes = live_nodes_for(dispatcher.slots.resources)
        if not self._head.local:
            self._ask(nodes, dispatcher, now)
        self.follow(nodes, dispatcher, stop)

    def follow(self, nodes: Mapping[str, Mapping[str, Any]], dispatcher: Dispatcher, stop: StopRequest) -> None:
        """Let the dispatcher use those of the live nodes that were looked at and can run experiments.

        Args:
            nodes: Ray's entries, by id.
        """
        usable = [name for name in nodes if name in self._machines and name not in dispatcher.left_out]
        if not usable and any(name in self._machines for name in dispatcher.left_out.keys() & nodes.keys()):
            faults = "\n  ".join(dispatcher.left_out.values())
            stop.set(
                InterruptedSweepError(
                    "no node is left that can run experiments of this sweep (if the code was edited meanwhile, what "
                    f"resumes it takes the edit):\n  {faults}"
                )
            )
            return
        slots = dispatcher.slots
        if not self._head.local and self._max_slots is None:  # one at least: what waits makes a cluster grow
            slots = replace(slots, count=max(1, count_slots(slots, [nodes[name]["Resources"] for name in usable])))
            dispatcher.slots = slots
        notes = [slots.note, *(f"left out: {fault}" for fault in dispatcher.left_out.values())]
        machines = tuple(self._machines[name] for name in usable)
        shown = Cluster(slots=slots.count, note="; ".join(filter(None, notes)), machines=machines)
        if self._shown is None or _without_readings(shown) != _without_readings(self._shown):
            self._shown = shown
            self._record(shown)

    def _ask(self, nodes: Mapping[str, Mapping[str, Any]], dispatcher: Dispatcher, now: float) -> None:
        import ray

        for name in [name for name in self._asked if name not in nodes]:
            del self._asked[name]
        dispatcher.take_back(name for name in list(dispatcher.left_out) if name not in nodes)
        for name in dispatcher.left_out:
            self._left_out.setdefault(name, now)
        for name, node in nodes.items():
            again = name in dispatcher.left_out and now - self._left_out[name] > AGAIN_SECONDS
            if name not in self._asked and (again or name not in self._machines | dispatcher.left_out):
                try:
                    self._asked[name] = self._probe.ask(node)
                except StorageError as e:
                    dispatcher.stop_for(e)
                    return
        for name in [name for name, task in self._asked.items() if ray.wait([task], timeout=0)[0]]:
            answer = self._probe.answer(nodes[name], self._asked.pop(name))
            if answer is not None:
                self._take(answer, dispatcher, now)

    def _take(self, answer: Answer, dispatcher: Dispatcher, now: float) -> None:
        fault = self._probe.fault(answer)
        self._probe.remove_reply(answer.node)
        if fault is not None:
            self._left_out[answer.node] = now
            dispatcher.leave_out(answer.node, fault)
            return
        self._left_out.pop(answer.node, None)
        dispatcher.take_back([answer.node])
        if answer.machine is not None:
            self._machines[answer.node] = answer.machine


def _without_readings(cluster: Cluster) -> Cluster:
    return replace(cluster, machines=tuple(Machine(host=machine.host) for machine in cluster.machines))
