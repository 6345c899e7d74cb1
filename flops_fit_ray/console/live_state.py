"""State of a sweep at one moment, as the live view and the service show it: computed from records and readings."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace

from flops_fit_ray.analysis import ValleyFit
from flops_fit_ray.ledger import ExperimentResult, Failure, Progress
from flops_fit_ray.ledger.hardware import Gpu, Machine
from flops_fit_ray.planning import Experiment, Plan, Rates


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Progress of the sweep in FLOPs and seconds."""

    flops_done: float
    flops_planned: float
    elapsed: float  # seconds since the sweep was started or resumed
    flops_per_second: float | None = None  # sum over running experiments; None: not known
    seconds_left: float | None = None  # None: no speed measured yet

    @property
    def share(self) -> float:
        """Return the share of the planned FLOPs done, 0 to 1."""
        return min(1.0, self.flops_done / self.flops_planned) if self.flops_planned else 0.0


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """A GPU and the experiments that train on it."""

    gpu: Gpu
    experiments: tuple[Experiment, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NodeUse:
    """A machine, its GPUs, and the experiments that train on them."""

    machine: Machine
    gpus: tuple[GpuUse, ...] = ()
    running: int = 0  # experiments


@dataclass(frozen=True, kw_only=True)
class LiveState:
    """Everything that the live view draws."""

    name: str
    completed: int
    failed: int
    total: int
    final: bool  # no experiments will be added
    pace: Pace
    running: tuple[tuple[Experiment, Progress], ...]
    nodes: tuple[NodeUse, ...] = ()
    fit: ValleyFit | None = None
    perplexity: Callable[[float], float | None] = lambda loss: None  # of a loss that is a cross-entropy


def flops_under_way(running: Iterable[tuple[Experiment, Progress]]) -> float:
    """Return the FLOPs spent on running experiments."""
    done = 0.0
    for e, progress in running:
        begun = e.tokens * e.start_step / e.steps  # tokens of the parent's trunk, not trained again
        done += max(0.0, progress.tokens_seen - begun) * e.flops_per_token
    return done


def measured_rates(
    outcomes: Iterable[ExperimentResult | Failure], running: Iterable[tuple[Experiment, Progress]]
) -> Rates | None:
    """Return the measured seconds per step of each size that has trained; None if none has."""
    steps: dict[str, tuple[float, float]] = {}
    for outcome in outcomes:
        if isinstance(outcome, ExperimentResult) and outcome.tokens_per_second:
            per_step = outcome.tokens_seen / outcome.steps
            steps[str(outcome.size)] = (outcome.flops / outcome.steps, per_step / outcome.tokens_per_second)
    for e, p in running:
        if p.tokens_per_second and str(e.size) not in steps:
            steps[str(e.size)] = (e.flops / e.steps, e.tokens / e.steps / p.tokens_per_second)
    return Rates(step_seconds=steps) if steps else None


def seconds_left(
    plan: Plan,
    finished: Container[str],
    running: Sequence[tuple[Experiment, Progress]],
    rates: Rates | None,
    slots: int,
) -> float | None:
    """Return the seconds until the last expected experiment ends; None if no speed is known.

    The larger of the remaining time (evaluations included) divided by the slots, and the remainder of the longest
    running experiment.
    """
    if rates is None:
        return None
    begun = {e.key: p for e, p in running}
    left, longest = 0.0, 0.0
    evaluation = plan.evaluation_cost
    step_seconds: dict[float, float] = {}  # by FLOPs per step, of which thousands of experiments share a few
    for e in plan.expected:
        if e.key in finished:
            continue
        per_step = e.flops / e.steps
        if per_step not in step_seconds:
            step_seconds[per_step] = rates.seconds_per_step(e)
        seen = e.start_step / e.steps
        if e.key in begun:
            seen = begun[e.key].tokens_seen / e.tokens
            e = replace(e, start_step=min(e.steps - 1, int(seen * e.steps)))
        rest = step_seconds[per_step] / per_step * (e.flops * max(0.0, 1 - seen) + evaluation(e))
        left += rest
        longest = max(longest, rest if e.key in begun else 0.0)
    return max(left / max(1, slots), longest)


def node_uses(machines: Sequence[Machine], running: Iterable[tuple[Experiment, Progress]]) -> tuple[NodeUse, ...]:
    """Return the machines, each with the newest reading sent by an experiment on it.

    Readings taken when the machines were found are out of date, so of an idle GPU only name and memory are kept.
    """
    known = {machine.host: replace(machine, cpu_share=None, memory_used=None) for machine in machines}
    gpus = {machine.host: {gpu.uuid: _at_rest(gpu) for gpu in machine.gpus} for machine in machines}
    newest: dict[str, float] = {}
    held: dict[str, list[Experiment]] = {}
    count: dict[str, int] = {}
    for e, progress in running:
        readings = () if progress.machine is None else (progress.machine, *(progress.others or ()))
        for host in {progress.host, *(reading.host for reading in readings)}:
            count[host] = count.get(host, 0) + 1
        for reading in readings:
            for gpu in reading.gpus:
                held.setdefault(gpu.uuid, []).append(e)
                gpus.setdefault(reading.host, {})[gpu.uuid] = gpu
            if progress.updated_at > newest.get(reading.host, -math.inf):
                newest[reading.host] = progress.updated_at
                before = known.get(reading.host, reading)
                known[reading.host] = replace(
                    reading,
                    driver=reading.driver or before.driver,
                    cuda=reading.cuda or before.cuda,
                    nccl=reading.nccl or before.nccl,
                )
    return tuple(
        NodeUse(
            machine=machine,
            gpus=tuple(
                GpuUse(gpu=gpu, experiments=tuple(held.get(gpu.uuid, ())))
                for gpu in sorted(gpus.get(host, {}).values(), key=lambda gpu: gpu.index)
            ),
            running=count.get(host, 0),
        )
        for host, machine in sorted(known.items())
    )


def _at_rest(gpu: Gpu) -> Gpu:
    return Gpu(uuid=gpu.uuid, index=gpu.index, name=gpu.name, memory_total=gpu.memory_total)


def tokens_left_seconds(progress: Progress) -> float | None:
    """Return the seconds until the training of an experiment ends, at its present speed; None if not known."""
    if not progress.tokens_per_second:
        return None
    return max(0, progress.tokens - progress.tokens_seen) / progress.tokens_per_second
