"""Plain-text consoles for logs: one line per event, and at most one line of progress a minute."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence, Set
from typing import TextIO

from flops_fit_ray import formatting as fmt
from flops_fit_ray.console.axis_text import axes_text
from flops_fit_ray.console.fit_text import fit_text, minima_text
from flops_fit_ray.console.header import header_lines
from flops_fit_ray.console.status_text import closing_lines
from flops_fit_ray.ledger import Event, ExperimentResult, Failure, Progress
from flops_fit_ray.ledger.hardware import Cluster, Machine
from flops_fit_ray.planning import Experiment, Plan
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.sweep.axis_runs import axes_of
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.minima import metrics_at_minima

MAX_NODES, MAX_NAMED = 8, 8  # nodes listed; experiments named in a line of progress


class PlainConsole:
    """Writes lines to `out`. A `View` of the ledger's watcher. Output to a closed pipe is dropped; training goes on."""

    every = 60.0

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        self._experiments: dict[str, Experiment] = {}
        self._noted: set[str] = set()

    def say(self, line: str) -> None:
        """Write one line and flush."""
        try:
            encoding = getattr(self._out, "encoding", None) or "utf-8"
            self._out.write(fmt.printable(line).encode(encoding, "replace").decode(encoding) + "\n")
            self._out.flush()
        except (OSError, ValueError):
            return

    def header(self, spec: SweepSpec, plan: Plan) -> None:
        """Write model, data and training, once before anything runs."""
        for line in header_lines(spec, plan):
            self.say(line)

    def plan(self, plan: Plan, done: int) -> None:
        """Write the plan before it runs; later, the experiments added to it."""
        fresh = [e for e in plan.experiments if e.key not in self._experiments]
        first = len(fresh) == len(plan.experiments)
        self._experiments |= {e.key: e for e in plan.experiments}
        for note in plan.notes:
            if note not in self._noted:
                self.say(note)
        self._noted |= set(plan.notes)
        if first:
            self._first(plan, done)
        else:
            for reason, group in itertools.groupby(fresh, key=lambda e: (e.budget, e.role, e.reason)):
                sizes = ", ".join(str(e.size) for e in group)
                self.say(f"plan: C {fmt.flops(reason[0])}, sizes {sizes}: {reason[2]}")

    def _first(self, plan: Plan, done: int) -> None:
        budgets, sizes = sorted({e.budget for e in plan.expected}), {e.size for e in plan.expected}
        follow = f" and about {len(plan.forecast)} more, chosen from results" if plan.forecast else ""
        self.say(
            f"plan: {fmt.counted(len(plan.experiments), 'experiment')}{follow}, {fmt.counted(len(budgets), 'budget')} "
            f"{fmt.flops(budgets[0])} to {fmt.flops(budgets[-1])} FLOPs, {fmt.counted(len(sizes), 'size')}, "
            f"{fmt.flops(plan.flops)} FLOPs in all; a token is {plan.measurements.data.token_unit}"
        )
        for warning in plan.warnings:
            self.say(f"warning: {warning}")
        if done:
            of = f"{done} of {fmt.counted(len(plan.experiments), 'experiment')}"
            self.say(f"{of} {'is' if done == 1 else 'are'} completed already and will not run again")

    def begin(self) -> None:
        """Do nothing: lines need no preparation."""

    def end(self) -> None:
        """Do nothing: lines need no cleanup."""

    def cluster(self, cluster: Cluster) -> None:
        """Write the number of slots and the machines."""
        note = f"; {cluster.note}" if cluster.note else ""
        self.say(f"cluster: {fmt.counted(cluster.slots, 'experiment')} at a time{note}")
        for line in machine_lines(cluster.machines):
            self.say(f"  {line}")

    def outcome(self, record: ExperimentResult | Failure, done: int, total: int) -> None:
        """Write a line for an experiment that ended."""
        where = f"[{str(done).rjust(len(str(total)))}/{total}]"
        name = self._name(record.key)
        if isinstance(record, ExperimentResult):
            error = f" ± {record.loss_stderr:.4f}" if record.loss_stderr is not None else ""
            self.say(
                f"{where} {name}: N {fmt.count(record.params)}, D {fmt.count(record.tokens_seen)}, "
                f"{record.loss_kind} loss {record.loss:.4f}{error}, {fmt.duration(record.seconds)}"
            )
        else:
            self.say(f"{where} {name}: {record.status}: {record.error_line}")

    def reopened(self, keys: Set[str]) -> None:
        """Do nothing: lines that were written stay."""

    def event(self, event: Event) -> None:
        """Write a warning; other events are only in the experiment's log."""
        if event.level == "warning":
            self.say(f"{self._name(event.key)}: {event.message}")

    def result(self, sweep: Sweep, elapsed: float) -> None:
        """Write fit, summary and report path; `elapsed` is in seconds."""
        for line in closing_lines(sweep, answer_text(sweep), elapsed):
            self.say(line)

    def _name(self, key: str) -> str:
        experiment = self._experiments.get(key)
        if experiment is None:
            return key
        recipe = experiment.recipe
        rate, batch, seed = f", lr {recipe.lr:.2g}", f", batch {recipe.batch_size}", f", seed {recipe.seed}"
        shown = {"probe": rate, "lr_check": rate, "batch_check": batch, "seed": seed}
        role = shown.get(experiment.role, "")
        return f"C {fmt.flops(experiment.budget)}, size {experiment.size}{role}"

    def progress(self, running: list[Progress], done: int, total: int) -> None:
        """Write the share trained of each running experiment."""
        shares = [f"{self._name(p.key)}: {100 * p.tokens_seen / p.tokens:.0f} %" for p in running]
        listed = fmt.listed(shares, MAX_NAMED, "; ")
        self.say(f"[{str(done).rjust(len(str(total)))}/{total}] running: {listed or 'nothing yet'}")


class QuietConsole(PlainConsole):
    """Writes failures, and what a command says at its end."""

    every = 3600.0

    def header(self, spec: SweepSpec, plan: Plan) -> None:
        """Write nothing."""

    def plan(self, plan: Plan, done: int) -> None:
        """Write nothing; keep the names of the experiments."""
        self._experiments |= {e.key: e for e in plan.experiments}

    def cluster(self, cluster: Cluster) -> None:
        """Write nothing."""

    def outcome(self, record: ExperimentResult | Failure, done: int, total: int) -> None:
        """Write a line for an experiment that failed."""
        if isinstance(record, Failure):
            super().outcome(record, done, total)

    def event(self, event: Event) -> None:
        """Write nothing; the event is in the experiment's log."""

    def progress(self, running: list[Progress], done: int, total: int) -> None:
        """Write nothing."""


def answer_text(sweep: Sweep) -> str:
    """Return the fit and what is at the minima; nothing for a single run, which has nothing to fit."""
    if sweep.spec.is_one_run:
        return ""
    table = minima_text(metrics_at_minima(sweep))
    axes = axes_text(axes_of(sweep))
    return "".join([fit_text(sweep.fit), f"\nat the minima:\n{table}" if table else "", f"\n\n{axes}" if axes else ""])


def machine_lines(machines: Sequence[Machine]) -> list[str]:
    """Return a line per node: GPUs by name with their memory, driver, CUDA and NCCL; cores and memory."""
    lines = []
    for m in machines[:MAX_NODES]:
        parts = []
        for name, group in itertools.groupby(sorted(m.gpus, key=lambda g: g.name), key=lambda g: g.name):
            gpus = list(group)
            memory = gpus[0].memory_total
            parts.append(f"{len(gpus)} x {name}{f' ({memory / 2**30:.0f} GiB)' if memory else ''}")
        if m.gpus:
            parts += m.libraries
        parts.append(f"{fmt.counted(m.cpus, 'core')}{f' of {m.cpu}' if m.cpu else ''}" if m.cpus else m.cpu)
        parts.append(f"{fmt.size(m.memory_total)} memory" if m.memory_total else "")
        lines.append(f"{m.host}: {', '.join(part for part in parts if part)}")
    if len(machines) > MAX_NODES:
        lines.append(f"and {len(machines) - MAX_NODES} more nodes")
    return lines
