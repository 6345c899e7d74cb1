"""A plan to a report: what both doors run a sweep with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit_ray import text
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.errors import DirectoryError, StorageError
from flops_fit_ray.layout import SweepPaths, write_bytes, write_json
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning import Plan, make_plan
from flops_fit_ray.spec import SweepSpec, dump_spec, read_spec
from flops_fit_ray.sweep import Sweep, open_sweep

if TYPE_CHECKING:
    from flops_fit_ray.training.guest import Guest


def run_sweep(
    spec: SweepSpec,
    plan: Plan,
    *,
    root: Path,
    load_guest: Callable[[], Guest],
    address: str | None,
    console: PlainConsole,
    command: str,
) -> Sweep:
    """Run what the ledger lacks, then write tables, analysis and report. Returns the directory read back.

    Raises:
        DirectoryError: the directory cannot be written, or another process writes it.
        ResourceError, InterruptedSweepError, StorageError: as the engine says.
    """
    from flops_fit_ray.engine.cluster import ray_session
    from flops_fit_ray.engine.tuner import run_plan
    from flops_fit_ray.engine.watch import Watcher
    from flops_fit_ray.report import write_report

    paths = SweepPaths(root)
    ledger = Ledger(paths)
    with ledger.writer(), contextlib.ExitStack() as session:
        if spec.train.precision == "auto":
            precision = _recorded_precision(paths)
            if precision is None:
                session.enter_context(ray_session(address))  # one for the measurement and the sweep
                precision = _measured_precision(spec, plan, load_guest, address, console)
            train = spec.train.model_copy(update={"precision": precision})
            spec = spec.model_copy(update={"train": train})
            plan = make_plan(spec, plan.survey)
        try:
            write_bytes(paths.spec, dump_spec(spec).encode())
            write_json(paths.plan, {**plan.to_json(), "command": command})
        except StorageError as e:  # nothing has been run, so there is nothing to go on with
            raise DirectoryError(f"{e}, or choose another --output") from e
        keys = {e.key for e in plan.experiments}
        console.plan(plan, len(ledger.results(keys)))
        others = paths.recorded_keys() - keys
        if others:
            console.say(
                f"{len(others)} recorded results belong to another plan of this directory: kept, and left out here"
            )
        run_plan(
            plan,
            spec=spec,
            root=root,
            load_guest=load_guest,
            address=address,
            watcher=Watcher(console),
        )
        sweep = open_sweep(root)
        write_report(sweep)
    return sweep


def _recorded_precision(paths: SweepPaths) -> str | None:
    """What this directory's sweep was found to run best in: one precision for all of it, whenever it is taken up."""
    if not paths.spec.exists():
        return None
    recorded = read_spec(paths.spec).train.precision
    return None if recorded == "auto" else recorded


def _measured_precision(
    spec: SweepSpec, plan: Plan, load_guest: Callable[[], Guest], address: str | None, console: PlainConsole
) -> str:
    from flops_fit_ray.engine.check import choose_precision_on_worker

    chosen, seconds = choose_precision_on_worker(plan, spec, load_guest=load_guest, address=address)
    shown = ", ".join(f"{name} {text.duration(s)}" for name, s in seconds.items())
    console.say(f"precision: {chosen}, measured on a worker (training of the whole sweep, one at a time: {shown})")
    return chosen
