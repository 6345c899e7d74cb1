"""A plan to a report: what both doors run a sweep with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.errors import DirectoryError, StorageError
from flops_fit_ray.layout import SweepPaths, write_bytes, write_json
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning import Plan
from flops_fit_ray.spec import SweepSpec, dump_spec
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
    from flops_fit_ray.engine.tuner import run_plan
    from flops_fit_ray.engine.watch import Watcher
    from flops_fit_ray.report import write_report

    paths = SweepPaths(root)
    ledger = Ledger(paths)
    with ledger.writer():
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
