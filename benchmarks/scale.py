"""`python -m benchmarks.scale`: 10,000 experiments on 1,024 GPUs, nodes dying, in simulated time.

The planner, the dispatcher and the ledger are the real ones, with real files; a clock and random numbers stand for
the GPUs. A node dies with all its experiments, which go on elsewhere from their newest checkpoint, and comes back.
"""

from __future__ import annotations

import argparse
import heapq
import json
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flops_fit_ray.engine._dispatch import Dispatcher
from flops_fit_ray.engine._live_plan import LivePlan
from flops_fit_ray.engine.interrupt import StopRequest
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.planning import DataFacts, Experiment, Measurements, ModelSize, Planner
from flops_fit_ray.planning.slots import lower_bound, trunk_share
from flops_fit_ray.spec import SweepSpec, make_spec
from flops_fit_ray.storage import atomic as files
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath

GPUS_PER_NODE = 8
FLOPS_PER_SECOND = 4e14  # of one GPU: 40 % of a H200's bf16
CHECKPOINT_SECONDS = 300.0
REPAIR_SECONDS = 1800.0
START_SECONDS = 5.0  # of an experiment, in a process that is there
DATA = DataFacts(
    train_samples=None,
    eval_samples=0,
    tokens_per_sample=2048,
    token_unit="one target token",  # noqa: S106 - no password
    eval_source="none",
    fingerprint="0",
)


def make_planner(experiments: int) -> Planner:
    """A static grid of so many experiments: ten budgets over two decades, and sizes from 20M to 3B parameters."""
    budgets = [float(c) for c in np.geomspace(1e18, 1e20, 10)]
    count = experiments // len(budgets)
    spec: SweepSpec = make_spec(
        {
            "model": {"target": "m:M", "size_param": "d", "sizes": list(range(1, count + 1))},
            "data": {"train": "m:data"},
            "budgets": budgets,
            "train": {"batch_size": 32, "lr": 1e-3},
        },
        "scale",
    )
    params = np.geomspace(2e7, 3e9, count)
    sizes = tuple(
        ModelSize(
            size=i + 1,
            kwargs={"d": i + 1},
            params=int(n),
            params_total=int(n),
            params_non_embedding=int(n),
            params_source="counted",
            flops_per_token=6.0 * float(n),
            flops_source="counted",
        )
        for i, n in enumerate(params)
    )
    return Planner(spec, Measurements(sizes=sizes, data=DATA))


@dataclass
class Running:
    """One experiment on a GPU."""

    experiment: Experiment
    node: int
    began: float
    done: float  # seconds of its own training that a checkpoint holds


class Simulated:
    """The cluster: a clock, GPUs, and nodes that die."""

    def __init__(self, planner: Planner, root: Path, gpus: int, mtbf_days: float, seed: int = 0) -> None:
        self.now, self.wasted, self.deaths, self.node_deaths = 0.0, 0.0, 0, 0
        self.ledger = Ledger(SweepPaths(root))
        self.live = LivePlan(planner, self.ledger, lambda plan: None)
        slots = Slots(resources={"gpu": 1}, count=gpus)
        self.dispatcher = Dispatcher(self.live, slots, StopRequest(), lambda: self.now)
        self._random = np.random.default_rng(seed)
        self._mtbf = mtbf_days * 86400
        self._free = [node for node in range(gpus // GPUS_PER_NODE) for _ in range(GPUS_PER_NODE)]
        self._down: set[int] = set()
        self._running: dict[str, Running] = {}
        self._progress: dict[str, float] = {}
        self._events: list[tuple[float, int, str, Running | int]] = []
        self._count = 0
        for node in range(gpus // GPUS_PER_NODE):
            self._push(self._random.exponential(self._mtbf), "dies", node)

    def _push(self, at: float, what: str, whom: Running | int) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, what, whom))

    def run(self) -> None:
        """Until all is done."""
        self._hand_out()
        while not self.live.done():
            self.now, _, what, whom = heapq.heappop(self._events)
            if isinstance(whom, Running):
                if self._running.get(whom.experiment.key) is whom:  # else its node has died since
                    (self._reach_trunk if what == "trunk" else self._end)(whom)
            elif what == "dies":
                self._node_dies(whom)
            else:
                self._down.discard(whom)
                self._free += [whom] * GPUS_PER_NODE
                self._push(self.now + self._random.exponential(self._mtbf), "dies", whom)
            self._hand_out()

    def _hand_out(self) -> None:
        while self._free:
            e = self.dispatcher.next()
            if e is None:
                return
            node = self._free.pop()
            done = self._progress.get(e.key, 0.0)
            running = self._running[e.key] = Running(e, node, self.now, done)
            self.ledger.begin_attempt(e.key)
            lasts = seconds_of(e)
            trunk = lasts * trunk_share(e)
            if e.trunk_step and trunk > done:
                self._push(self.now + START_SECONDS + trunk - done, "trunk", running)
            self._push(self.now + START_SECONDS + lasts - done, "ends", running)

    def _reach_trunk(self, running: Running) -> None:
        e = running.experiment
        trunk = self.ledger.paths.trunk(e.key)
        trunk.directory.mkdir(parents=True, exist_ok=True)
        trunk.state(e.trunk_step).touch()
        trunk.note(e.trunk_step).touch()

    def _end(self, running: Running) -> None:
        e = running.experiment
        del self._running[e.key]
        self.ledger.record_result(result_of(e))
        if running.node not in self._down:
            self._free.append(running.node)
        self.dispatcher.ended(e.key, died=False)

    def _node_dies(self, node: int) -> None:
        self.node_deaths += 1
        self._down.add(node)
        self._free = [n for n in self._free if n != node]
        self._push(self.now + REPAIR_SECONDS, "back", node)
        for key in [key for key, r in self._running.items() if r.node == node]:
            running = self._running.pop(key)
            trained = max(0.0, self.now - running.began - START_SECONDS)
            kept = trained // CHECKPOINT_SECONDS * CHECKPOINT_SECONDS
            self._progress[key] = running.done + kept
            self.wasted += trained - kept + START_SECONDS
            self.deaths += 1
            directory = self.ledger.paths.checkpoints(key).directory
            if self._progress[key]:  # so that the dispatcher sees that it got further
                directory.mkdir(parents=True, exist_ok=True)
                step = int(self._progress[key] / seconds_of(running.experiment) * running.experiment.steps)
                self.ledger.paths.checkpoints(key).state(step).touch()
                self.ledger.paths.checkpoints(key).note(step).touch()
            self.dispatcher.ended(key, died=True)


def seconds_of(e: Experiment) -> float:
    """What it takes alone, with what its trunk saves."""
    return e.flops_executed / FLOPS_PER_SECOND


RESULT = ExperimentResult(
    key="", budget=0, size=0, params=0, params_total=0, tokens=0, tokens_seen=0, flops=0, loss=3.0, loss_stderr=None,
    train_loss=3.0, lr=1e-3, steps=1, seed=0, seconds=1, attempts=1, device="simulated", host="simulated", versions={},
    finished_at=0,
)  # fmt: skip


def result_of(e: Experiment) -> ExperimentResult:
    """A result as a worker would record it."""
    return replace(
        RESULT, key=e.key, budget=e.budget, size=e.size, params=e.params, params_total=e.params_total,
        tokens=e.tokens, tokens_seen=e.tokens, flops=e.flops, steps=e.steps, seconds=seconds_of(e),
    )  # fmt: skip


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count what the ledger asks of the file system."""
    found: Counter[str] = Counter()
    originals = (files.read_file, files._whole_file)

    def read(path: StoragePath) -> bytes:
        found["reads"] += 1
        return originals[0](path)

    def write(path: Path, once: bool, durable: bool):  # type: ignore[no-untyped-def] # as it is
        found["writes"] += 1
        return originals[1](path, once, durable)

    files.read_file, files._whole_file = read, write
    try:
        yield found
    finally:
        files.read_file, files._whole_file = originals


def main() -> None:
    """One line for each number of experiments, GPUs and time between failures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=1024)
    parser.add_argument("--mtbf-days", type=float, nargs="*", default=[264.0, 30.0, 3.0], help="of a node of 8 GPUs")
    given = parser.parse_args()
    for days in given.mtbf_days:
        with tempfile.TemporaryDirectory() as where, counted() as calls:
            began, cpu = time.perf_counter(), time.process_time()
            planner = make_planner(given.experiments)
            cluster = Simulated(planner, Path(where), given.gpus, days)
            planned = time.process_time() - cpu
            cluster.run()
            cpu = time.process_time() - cpu
            experiments = cluster.dispatcher.plan.experiments
            bound = lower_bound(experiments, given.gpus, seconds_of)
            line = {
                "name": "scale",
                "experiments": len(experiments),
                "gpus": given.gpus,
                "mtbf_days_of_a_node": days,
                "makespan_days": round(cluster.now / 86400, 3),
                "busy": round(sum(map(seconds_of, experiments)) / (given.gpus * cluster.now), 4),
                "makespan_over_bound": round(cluster.now / bound, 4),
                "node_deaths": cluster.node_deaths,
                "experiments_that_died": cluster.deaths,
                "gpu_hours_lost": round(cluster.wasted / 3600, 1),
                "share_lost": round(cluster.wasted / (given.gpus * cluster.now), 6),
                "failures": sum(r.status != "completed" for r in cluster.ledger.outcomes(e.key for e in experiments)),
                "plan_cpu_seconds": round(planned, 1),
                "cpu_seconds": round(cpu, 1),
                "cpu_milliseconds_per_experiment": round(1000 * cpu / len(experiments), 1),
                "ledger_reads": calls["reads"],
                "ledger_writes": calls["writes"],
                "wall_seconds": round(time.perf_counter() - began, 1),
                "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
            }
            print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
