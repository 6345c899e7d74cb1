"""Live view of a terminal: events scroll by, and below them the state of the sweep is redrawn every second.

It only reads. If it fails, plain lines take over; the sweep is not affected.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from flops_fit_ray.analysis import ValleyFit, fit_minima
from flops_fit_ray.console._drawing import draw
from flops_fit_ray.console.live_state import LiveState, Pace, flops_under_way, measured_rates, node_uses, seconds_left
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.errors import FitError
from flops_fit_ray.ledger import Event, ExperimentResult, Failure, Ledger, Progress
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.planning import Plan
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.lock import read_owner
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.sweep.directory import Sweep

FIT_SHARE = 0.005  # of a core's time, for fits of the valleys
EVENT_LINES = 2  # of the terminal, kept free for events

_Method = TypeVar("_Method", bound=Callable[..., None])


def _falls_back(method: _Method) -> _Method:
    """Make a method that raises nothing: on an error, the view falls back to plain lines."""

    @functools.wraps(method)
    def guarded(self: LiveConsole, *args: Any) -> None:
        try:
            method(self, *args)
        except Exception as e:  # noqa: BLE001 - no fault of the view may stop training
            self.fall_back(e)

    return cast(_Method, guarded)


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
        self._broken = False
        self._began = time.time()  # of the process that runs the sweep, if it is known
        self._fitting = _Fitting()

    def say(self, line: str) -> None:
        """Write one line above the view."""
        try:
            self._console.print(Text(line), soft_wrap=True)
        except (OSError, ValueError):
            return

    @_falls_back
    def plan(self, plan: Plan, done: int) -> None:
        """Take over the plan, and read the outcomes recorded so far."""
        fresh = [e.key for e in plan.experiments if e.key not in self._experiments]
        super().plan(plan, done)
        for outcome in Ledger(self._paths).outcomes(fresh):
            self._outcomes[outcome.key] = outcome
        self._plan = plan
        self._fitting.note(self._sweep())

    @_falls_back
    def cluster(self, cluster: Cluster) -> None:
        """Write the machines, and show them in the view."""
        super().cluster(cluster)
        self._cluster = cluster

    @_falls_back
    def outcome(self, record: ExperimentResult | Failure, done: int, total: int) -> None:
        """Write a line for an experiment that ended, and redraw."""
        super().outcome(record, done, total)
        self._outcomes[record.key] = record
        self._running = [p for p in self._running if p.key != record.key]
        self._fitting.note(self._sweep())
        self._draw()

    @_falls_back
    def event(self, event: Event) -> None:
        """Write an event; dimmed if it is no warning."""
        style = "" if event.level == "warning" else "dim"
        self._console.print(Text(f"{self._name(event.key)}: {event.message}", style=style), soft_wrap=True)

    @_falls_back
    def progress(self, running: list[Progress], done: int, total: int) -> None:
        """Redraw with the running experiments."""
        if self._live is None:
            super().progress(running, done, total)
            return
        self._running = running
        self._draw()

    @_falls_back
    def begin(self) -> None:
        """Start drawing in the lower part of the terminal."""
        if self._broken:
            return
        owner = read_owner(self._paths)
        self._began = time.time() if owner is None else owner.started_at
        self._fitting.begin()
        self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._live.start()
        self._draw()

    @_falls_back
    def end(self) -> None:
        """Stop drawing and clear the view."""
        self._fitting.end()
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def fall_back(self, error: Exception) -> None:
        """Write plain lines from here on."""
        live, self._live = self._live, None
        if self._broken:
            return
        self._broken, self.every = True, PlainConsole.every
        try:
            if live is not None:
                live.stop()
        except Exception as e:  # noqa: BLE001 - the terminal may be gone
            error = e
        self.say(f"the live view failed ({type(error).__name__}: {error}); training goes on, shown as plain lines")

    def _draw(self) -> None:
        if self._live is None or self._plan is None:
            return
        size = self._console.size
        lines = draw(self.state(), size.width, max(4, size.height - EVENT_LINES))
        self._live.update(Group(*lines), refresh=True)

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
            perplexity=self._spec.loss == "cross_entropy",
        )

    def _sweep(self) -> Sweep:
        assert self._plan is not None
        results = tuple(o for o in self._outcomes.values() if isinstance(o, ExperimentResult))
        return Sweep(paths=self._paths, spec=self._spec, plan=self._plan, results=results, failures=(), command="")


class _Fitting:
    """Fits the valleys in a thread, and rests between fits so that they take `FIT_SHARE` of a core."""

    def __init__(self) -> None:
        self.found: ValleyFit | None = None
        self._newest: Sweep | None = None
        self._news, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, sweep: Sweep) -> None:
        """Ask for a fit of the newest results."""
        self._newest = sweep
        self._news.set()

    def begin(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="valleys", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._news.set()

    def _run(self) -> None:
        rest = 0.0
        while not self._stop.wait(rest):
            self._news.wait()
            self._news.clear()
            sweep, began = self._newest, time.thread_time()
            if sweep is not None and sweep.results and not self._stop.is_set():
                try:
                    self.found = fit_minima(sweep.points, sweep.fit_options)
                except FitError:
                    self.found = None
            rest = max(1.0, (time.thread_time() - began) / FIT_SHARE)
