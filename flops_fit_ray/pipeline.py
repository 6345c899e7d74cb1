"""A plan to a report: what both doors run a sweep with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_ray import text
from flops_fit_ray.console.plain import PlainConsole
from flops_fit_ray.errors import DirectoryError, StorageError
from flops_fit_ray.layout import SweepPaths, read_json, write_bytes, write_json
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning import Frame, Plan, Planner
from flops_fit_ray.spec import SweepSpec, dump_spec, read_spec
from flops_fit_ray.sweep import Sweep, open_sweep

if TYPE_CHECKING:
    from flops_fit_ray.training.guest import Guest

AUTO = "auto"


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
        if AUTO in (spec.train.precision, spec.train.compile):
            chosen = _recorded_choice(spec, paths)
            if chosen is None:
                session.enter_context(ray_session(address))  # one for the measurement and the sweep
                chosen = _measured_choice(spec, plan, load_guest, address, console)
            spec = spec.model_copy(update={"train": spec.train.model_copy(update=chosen)})
        planner = Planner(spec, plan.survey, recorded_frame(paths))

        def record(grown: Plan) -> None:
            write_json(paths.plan, {**grown.to_json(), "command": command})

        try:
            write_bytes(paths.spec, dump_spec(spec).encode())
            record(planner.plan())
        except StorageError as e:  # nothing has been run, so there is nothing to go on with
            raise DirectoryError(f"{e}, or choose another --output") from e
        final = run_plan(
            planner,
            spec=spec,
            root=root,
            load_guest=load_guest,
            address=address,
            watcher=Watcher(console),
            on_plan=record,
        )
        others = paths.recorded_keys() - {e.key for e in final.experiments}
        if others:
            console.say(
                f"{len(others)} recorded results belong to another plan of this directory: kept, and left out here"
            )
        sweep = open_sweep(root)
        write_report(sweep)
    return sweep


def recorded_frame(paths: SweepPaths) -> Frame | None:
    """What this directory's sweep decided once; the planner takes it if the sweep is still the same."""
    content = read_json(paths.plan) or {}
    with contextlib.suppress(KeyError, TypeError):
        return Frame(**content["frame"])
    return None


def _recorded_choice(spec: SweepSpec, paths: SweepPaths) -> dict[str, Any] | None:
    """What this directory's sweep was found to run best in: one choice for all of it, whenever it is taken up."""
    if not paths.spec.exists():
        return None
    recorded = read_spec(paths.spec).train
    chosen = {name: getattr(recorded, name) for name in _left_open(spec)}
    return None if AUTO in chosen.values() else chosen


def _left_open(spec: SweepSpec) -> list[str]:
    return [name for name in ("precision", "compile") if getattr(spec.train, name) == AUTO]


def _measured_choice(
    spec: SweepSpec, plan: Plan, load_guest: Callable[[], Guest], address: str | None, console: PlainConsole
) -> dict[str, Any]:
    from flops_fit_ray.engine.check import choose_on_worker

    choice = choose_on_worker(plan, spec, load_guest=load_guest, address=address)
    chosen = {name: getattr(choice, name) for name in _left_open(spec)}
    said = ", ".join(f"{name}: {str(value).lower()}" for name, value in chosen.items())
    shown = ", ".join(f"{name} {text.duration(s)}" for name, s in choice.seconds.items())
    console.say(f"{said}, measured on a worker (training of the whole sweep, one at a time: {shown})")
    return chosen
