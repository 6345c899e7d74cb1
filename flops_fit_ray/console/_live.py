"""Live view of a terminal: events scroll by, and below them the state of the sweep is redrawn every second.

It only reads. A picture that cannot be drawn is replaced by one line with the reason, and the next one is tried again;
the watcher, which asks for it, says so once.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Sequence, Set

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import ValleyFit, fit_minima
from flops_fit_ray.console._drawing import draw
from flops_fit_ray.console.live_state import LiveState, Pace, flops_under_way, measured_rates, node_uses, seconds_left
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.errors import FitError, SpecError
from flops_fit_ray.ledger import Event, ExperimentResult, Failure, Ledger, Progress
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.planning import Plan, perplexity
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.lock import read_owner
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.recorded import recorded_spec

FIT_SHARE = 0.005  # of a core's time, for fits of the valleys
EVENT_LINES = 2  # of the terminal, kept free for events


class LiveConsole(PlainConsole):
    """Draws the live view on a terminal. A `View` of the ledger's watcher."""

    every = 1.0

    def __init__(self, paths: SweepPaths, spec: SweepSpec, console: Console | None = None) -> None:
        super().__init__()
        self._console = Console(highlight=False) if console is None else console
        self._paths, self._spec = paths, spec
        self._plan: Plan | None = None
        self._outcomes: dict[str, ExperimentResult | Failure] = {}
        self._running: Sequence[Progress] = ()
        self._cluster: Cluster | None = None
        self._live: Live | None = None
        self._began = time.time()  # of the process that runs the sweep, if it is known
        self._fitting = _Fitting()

    def say(self, line: str) -> None:
        """Write one line above the view."""
        try:
            self._console.print(Text(fmt.printable(line)), soft_wrap=True)
        except (OSError, ValueError):
            return

    def plan(self, plan: Plan, done: int) -> None:
        """Take over the plan and the spec behind it, and read the outcomes recorded so far."""
        super().plan(plan, done)
        with contextlib.suppress(SpecError):
            self._spec = recorded_spec(self._paths)
        self._plan, known = plan, self._outcomes
        found = Ledger(self._paths).outcomes(e.key for e in plan.experiments if e.key not in known)
        by_key = known | {outcome.key: outcome for outcome in found}
        self._outcomes = {e.key: by_key[e.key] for e in plan.experiments if e.key in by_key}
        self._fitting.note(self._sweep())

    def cluster(self, cluster: Cluster) -> None:
        """Write the machines, and show them in the view."""
        super().cluster(cluster)
        self._cluster = cluster

    def outcome(self, record: ExperimentResult | Failure, done: int, total: int) -> None:
        """Write a line for an experiment that ended, and redraw."""
        super().outcome(record, done, total)
        self._outcomes[record.key] = record
        self._running = [p for p in self._running if p.key != record.key]
        self._fitting.note(self._sweep())
        self._draw()

    def reopened(self, keys: Set[str]) -> None:
        """Count these as open again."""
        self._outcomes = {key: outcome for key, outcome in self._outcomes.items() if key not in keys}
        self._fitting.note(self._sweep())

    def event(self, event: Event) -> None:
        """Write an event; dimmed if it is no warning."""
        style = "" if event.level == "warning" else "dim"
        self._console.print(
            Text(fmt.printable(f"{self._name(event.key)}: {event.message}"), style=style), soft_wrap=True
        )

    def progress(self, running: list[Progress], done: int, total: int) -> None:
        """Redraw with the running experiments."""
        if self._live is None:
            super().progress(running, done, total)
            return
        self._running = running
        self._draw()

    def begin(self) -> None:
        """Start drawing in the lower part of the terminal."""
        owner = read_owner(self._paths)
        self._began = time.time() if owner is None else owner.started_at
        self._fitting.begin()
        live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self.every = PlainConsole.every  # of the lines that there are without it
        live.start()
        self._live, self.every = live, LiveConsole.every
        self._draw()

    def end(self) -> None:
        """Stop drawing and clear the view."""
        self._fitting.end()
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _draw(self) -> None:
        """Draw a picture.

        Raises:
            Exception: whatever went wrong with it; a line stands in its place.
        """
        if self._live is None or self._plan is None:
            return
        size = self._console.size
        try:
            lines = draw(self.state(), size.width, max(4, size.height - EVENT_LINES))
        except Exception as e:
            ended = f"{len(self._outcomes)} of {fmt.counted(len(self._plan.experiments), 'experiment')} have ended"
            self._live.update(_cut(f"{ended}; no picture: {type(e).__name__}: {e}", size.width), refresh=True)
            raise
        self._live.update(Group(*lines), refresh=True)
        self._fitting.raise_fault()

    def state(self) -> LiveState:
        """Return the present state of the sweep."""
        plan = self._plan
        assert plan is not None
        running = tuple((e, p) for p in self._running if (e := self._experiments.get(p.key)) is not None)
        sweep = self._sweep()
        speeds = [e.flops_per_token * p.tokens_per_second for e, p in running if p.tokens_per_second]
        cluster = self._cluster
        slots = 1 if cluster is None else cluster.slots
        rates = measured_rates(self._outcomes.values(), running)
        return LiveState(
            name=plan.name,
            completed=len(sweep.results),
            failed=len(self._outcomes) - len(sweep.results),
            total=len(plan.experiments),
            final=plan.final,
            pace=Pace(
                flops_done=sweep.flops_spent + flops_under_way(running),
                flops_planned=plan.flops,
                elapsed=max(0.0, time.time() - self._began),
                flops_per_second=sum(speeds) or None,
                seconds_left=seconds_left(plan, self._outcomes, running, rates, slots),
            ),
            running=running,
            nodes=node_uses(() if cluster is None else cluster.machines, running),
            fit=self._fitting.found,
            perplexity=functools.partial(perplexity, self._spec),
        )

    def _sweep(self) -> Sweep:
        assert self._plan is not None
        results = tuple(o for o in self._outcomes.values() if isinstance(o, ExperimentResult))
        return Sweep(paths=self._paths, spec=self._spec, plan=self._plan, results=results, failures=(), command="")


def _cut(line: str, width: int) -> Text:
    text = Text(" ".join(line.split()), no_wrap=True)
    text.truncate(width, overflow="ellipsis")
    return text


class _Fitting:
    """Fits the valleys in a thread, and rests between fits so that they take `FIT_SHARE` of a core."""

    def __init__(self) -> None:
        self.found: ValleyFit | None = None
        self._fault: Exception | None = None
        self._newest: Sweep | None = None
        self._news, self._stop = threading.Event(), threading.Event()

    def note(self, sweep: Sweep) -> None:
        """Ask for a fit of the newest results."""
        self._newest = sweep
        self._news.set()

    def begin(self) -> None:
        self._stop = threading.Event()  # that of an earlier thread stays set
        threading.Thread(target=self._run, args=(self._stop,), name="valleys", daemon=True).start()

    def end(self) -> None:
        self._stop.set()
        self._news.set()

    def raise_fault(self) -> None:
        """Raise what went wrong in the thread, once."""
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _run(self, stop: threading.Event) -> None:
        rest = 0.0
        while not stop.wait(rest):
            self._news.wait()
            self._news.clear()
            sweep, began = self._newest, time.thread_time()
            if sweep is not None and not stop.is_set():
                self.found = self._fit(sweep)
            rest = max(1.0, (time.thread_time() - began) / FIT_SHARE)

    def _fit(self, sweep: Sweep) -> ValleyFit | None:
        try:
            return fit_minima(sweep.points, sweep.fit_options) if sweep.standing else None
        except FitError:
            return None
        except Exception as e:  # noqa: BLE001 - handed on to the one who draws
            self._fault = e
            return None
