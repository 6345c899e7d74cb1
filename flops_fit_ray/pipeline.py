"""A request to a report: the one sequence that the command line and `find_optimal` run a sweep with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_ray import formatting as fmt
from flops_fit_ray.console.plain import PlainConsole, answer_text
from flops_fit_ray.errors import DirectoryError, SpecError, StorageError, faults_of
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning import (
    COUNTING,
    Measurements,
    Observation,
    Plan,
    Planner,
    SweepConstants,
    priced,
)
from flops_fit_ray.spec import SYNTHETIC_LOSS, SweepSpec
from flops_fit_ray.storage.atomic import write_json
from flops_fit_ray.storage.lock import refuse_second_writer
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, check_store_answers, is_remote, local_path
from flops_fit_ray.sweep.changes import changes_since, mend, recorded_in
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.sweep.extend import continued, unbracketed_budgets
from flops_fit_ray.sweep.finished import record_finished
from flops_fit_ray.sweep.from_checkpoint import CheckpointName, go_back
from flops_fit_ray.sweep.recorded import (
    Addition,
    Origin,
    left_open,
    record_origin,
    record_rates,
    record_spec,
    recorded_constants,
    recorded_rates,
    recorded_spec,
)
from flops_fit_ray.sweep.run_limits import RunLimits
from flops_fit_ray.sweep.stopping import StoppingRule, decide_next, stopping_rule_for, with_runs

if TYPE_CHECKING:
    from flops_fit_ray.engine.interrupt import StopRequest
    from flops_fit_ray.engine.loaders import Loader
    from flops_fit_ray.engine.planned_code import PlannedCode
    from flops_fit_ray.engine.resources import Slots
    from flops_fit_ray.training.preflight.check import CheckReport

AUTO = "auto"
MAX_NAMED = 4  # files in a line


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A sweep to run or to check, with everything that this needs."""

    spec: SweepSpec
    source: str  # how faults of the spec are introduced
    root: StoragePath
    measure: Callable[[SweepSpec, int], Measurements]  # with N and FLOPs by a rule of counting
    load_user_parts: Loader
    command: str  # that resumes it
    on_recorded: Callable[[], object] = bool  # called once the directory has the spec, and `command` resumes it
    address: str | None = None  # of a Ray cluster
    base: Path | None = None  # where the spec's targets are looked for; None: they are objects of a program
    limits: RunLimits = field(default_factory=RunLimits)
    added: tuple[Addition, ...] = ()  # by `extend`, to the spec that its user wrote
    new: bool = False  # train completed experiments again where the spec has changed
    from_checkpoint: CheckpointName | None = None  # that its experiment goes on from, instead of the newest
    code: PlannedCode | None = None  # of model, data, loss and hooks; known once they were measured

    @property
    def shared_base(self) -> Path | None:
        """The directory of the user's code that every node must have; None where it travels."""
        from flops_fit_ray.engine.jobs import upload_of

        return None if self.base is None or upload_of(self.base) is not None else self.base

    @property
    def trains(self) -> bool:
        """False where the losses are synthetic."""
        return self.spec.loss != SYNTHETIC_LOSS


def check_output(root: StoragePath) -> None:
    """Refuse a sweep directory that cannot be written, before anything is measured.

    Raises:
        DirectoryError: another process is writing there, it cannot be written, or it is this package itself.
    """
    from flops_fit_ray.engine.jobs import upload_of

    package = Path(__file__).parent.resolve()
    check_store_answers(root)
    if not is_remote(root):
        directory = local_path(root)
        if directory.resolve().is_relative_to(package):
            raise DirectoryError(f"{root}: lies inside the package; choose another --output")
        if upload_of(directory.resolve()) is not None:
            raise DirectoryError(
                f"{root}: lies in the job's temporary directory, and would be lost with it; give --output an absolute "
                "path that every node of the cluster sees, or s3://..."
            )
        there = next(place for place in (directory, *directory.parents) if place.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise DirectoryError(
                f"{root}: cannot be written: {there} is no directory that may be; choose another --output"
            )
    paths = SweepPaths(root)
    if paths.results_json.exists() and not (paths.plan.exists() or paths.recorded_keys()):
        raise DirectoryError(
            f"{paths.results_json}: is of another program and would be overwritten; choose another --output "
            "(`flops-fit-ray fit` reads it)"
        )
    refuse_second_writer(paths)


def plan_request(request: RunRequest, constants: SweepConstants | None = None) -> tuple[Planner, Plan]:
    """Measure the models and the data, and return the planner of the sweep with its first plan.

    Args:
        constants: of the directory that is resumed; those of another sweep are left out.

    Raises:
        SpecError: the spec names what is not there, or no plan can be made of it.
    """
    from flops_fit_ray.trackers import check_installed

    with faults_of(request.source):
        check_installed(request.spec)
        counting = COUNTING if constants is None else constants.counting
        planner = Planner(request.spec, request.measure(request.spec, counting), constants)
        if planner.cells.constants != constants and counting != COUNTING:  # another sweep than the one recorded there
            planner = Planner(request.spec, request.measure(request.spec, COUNTING))
        return planner, planner.plan()


def check(request: RunRequest, *, keep: bool) -> tuple[CheckReport, Slots]:
    """Try the smallest and the biggest model on a real worker.

    Args:
        keep: write the measured speed into the sweep directory, for the price of its plan.

    Raises:
        SpecError, ResourceError: as `plan_request` and the engine say.
        InterruptedSweepError: a signal stopped it.
    """
    from flops_fit_ray.engine.interrupt import interruptible

    with interruptible():
        from flops_fit_ray.engine.loaders import refuse_unpicklable, with_planned_code
        from flops_fit_ray.engine.preflight import check_on_worker

        _, plan = plan_request(request, recorded_constants(SweepPaths(request.root)))
        loader, code = with_planned_code(request.load_user_parts, request.base)
        request = replace(request, load_user_parts=loader, code=code)
        refuse_unpicklable(request.load_user_parts)
        report, slots = check_on_worker(
            plan,
            request.spec,
            load_user_parts=request.load_user_parts,
            address=request.address,
            max_slots=request.limits.slots,
            root=request.root if keep else None,
            base=request.shared_base,
            code=code,
        )
    if keep and report.rates is not None:
        record_rates(SweepPaths(request.root), plan.constants, report.rates)
    return report, slots


def run(request: RunRequest, console: PlainConsole) -> Sweep:
    """Run a sweep from its request to its report: what the ledger lacks is trained. Returns the directory read back.

    Raises:
        DirectoryError: the directory cannot be written, or another process writes it.
        SpecError: no plan can be made, or the directory holds completed experiments of another spec.
        ResourceError, InterruptedSweepError, StorageError: as the engine says.
    """
    from flops_fit_ray.engine.interrupt import interruptible

    with interruptible() as stop:  # the imports of torch and Ray included, which take seconds
        check_output(request.root)  # before them: a second driver is refused at once
        from flops_fit_ray.engine.loaders import refuse_unpicklable, settings_words, with_planned_code
        from flops_fit_ray.engine.preflight import refuse_early

        until = request.limits.until is not None
        paths = SweepPaths(request.root)
        kept = continued(request.spec, paths, console.say, until=until, new=request.new)
        request = replace(request, spec=kept.spec, added=(*kept.added, *request.added))
        rule = stopping_rule_for(request.spec, request.limits.until, request.limits.at_most)
        planner, plan = plan_request(request, recorded_constants(paths))
        if request.trains:
            loader, code = with_planned_code(request.load_user_parts, request.base)
            request = replace(request, load_user_parts=loader, code=code)
            if code is not None and code.facts.written:
                written = fmt.listed(code.facts.written, MAX_NAMED)
                console.say(f"code: {written}: written while it is loaded, so not compared with other processes")
            refuse_unpicklable(request.load_user_parts)
            settings = settings_words(request.load_user_parts)
            if settings:
                console.say(f"torch: {settings}: as this program set it, in workers, too")
            refuse_early(request.spec, request.address)
        with Ledger(paths).writer() as dead_owner:
            paths.remove_strays()
            if dead_owner:
                console.say(f"{dead_owner} exited without releasing the lock; taking over")
            return _run_locked(request, planner, plan, rule, console, stop)


def _run_locked(
    request: RunRequest,
    planner: Planner,
    plan: Plan,
    rule: StoppingRule | None,
    console: PlainConsole,
    stop: StopRequest,
) -> Sweep:
    """Run the sweep, and single runs after it where a rule asks for more, as the one writer of its directory."""
    from flops_fit_ray.engine.cluster import ray_session

    ledger = Ledger(SweepPaths(request.root))
    with contextlib.ExitStack() as session:
        if request.trains and AUTO in (request.spec.train.precision, request.spec.train.compile):
            chosen = _recorded_choice(request.spec, ledger.paths)
            if chosen is None:
                session.enter_context(ray_session(request.address))  # one for the measurement and the sweep
                with faults_of(request.source):
                    chosen = _measured_choice(plan, request, console)
            train = request.spec.train.model_copy(update=chosen)
            request = replace(request, spec=request.spec.model_copy(update={"train": train}))
            planner = Planner(request.spec, planner.measurements, planner.cells.constants)
        console.header(request.spec, plan)
        _compare(request, planner, ledger, console)
        if request.from_checkpoint is not None:
            go_back(ledger, grown_plan(planner, ledger), request.from_checkpoint, console.say)
        while True:
            with faults_of(request.source):
                sweep = _run_once(request, planner, ledger, console, stop)
            if rule is None:
                break
            if not sweep.complete:
                console.say("--until: no runs are chosen while some experiments have no result: stopped; see `status`")
                break
            decision = decide_next(sweep, rule)
            console.say(decision.message)
            if not decision.runs:
                break
            request = replace(request, spec=with_runs(request.spec, decision.runs))
            constants = sweep.plan.constants
            planner = Planner(request.spec, request.measure(request.spec, constants.counting), constants)
            if request.trains:
                session.enter_context(ray_session(request.address))  # one for all that follow
        _report(sweep, request)
    return sweep


def _report(sweep: Sweep, request: RunRequest) -> None:
    """Write the report of a sweep, and if it is complete what a run with nothing to do will say."""
    from flops_fit_ray.report import write_report

    if sweep.num_deaths:
        sweep.paths.remove_strays()  # a worker may have died in the middle of a write
    write_report(sweep)
    if sweep.complete and request.code is not None:
        record_finished(sweep, request.code.facts.digest, answer_text(sweep))


def _compare(request: RunRequest, planner: Planner, ledger: Ledger, console: PlainConsole) -> None:
    """Show what has changed since the directory's last run.

    Raises:
        DirectoryError: a newer version made the directory.
        SpecError: completed experiments would be trained again in another way, and `new` is not set.
    """
    paths = ledger.paths
    if not (paths.plan.exists() or paths.recorded_keys()):
        return
    recorded = recorded_in(paths)
    if recorded.spec is not None and (recorded.spec.loss == SYNTHETIC_LOSS) == request.trains:
        other = "synthetic losses" if request.trains else "a real sweep"
        raise DirectoryError(f"{paths.root}: holds {other}; choose another output directory")
    code = None if request.code is None else request.code.facts
    plan = grown_plan(planner, ledger)
    mend(recorded, plan, console.say)
    found = changes_since(recorded, request.spec, plan, code)
    if found.lines:
        console.say(f"changed since the last run in {paths.root}:\n{found.text()}")
    if found.redefined or (found.changed and not request.new):
        raise found.refusal(str(paths.root))
    known = None if recorded.spec is None or recorded.plan is None else {b.flops for b in recorded.spec.budgets}
    if known is not None and not found.changed and any(b.flops not in known for b in request.spec.budgets):
        faults = unbracketed_budgets(open_sweep(paths.root), request.spec, planner.measurements)
        if faults:
            raise SpecError(request.source, faults)
    if found.changed or found.dropped:
        console.say(
            f"{found.changed + found.dropped} completed experiments are not of this plan any more: they stay on "
            "record, and are left out"
        )


def grown_plan(planner: Planner, ledger: Ledger) -> Plan:
    """Return the plan as far as the recorded results decide it."""
    plan, known = planner.plan(), -1
    observed: dict[str, Observation] = {}
    while len(plan.experiments) > known and not plan.final:
        known = len(plan.experiments)
        observed |= ledger.observed(e.key for e in plan.experiments if e.key not in observed)
        plan = planner.plan(observed)
    return plan


def _run_once(request: RunRequest, planner: Planner, ledger: Ledger, console: PlainConsole, stop: StopRequest) -> Sweep:
    """Run one plan to its end."""
    from flops_fit_ray.engine.rehearsal import rehearse_plan
    from flops_fit_ray.engine.tuner import run_plan
    from flops_fit_ray.ledger.watch import Watcher, Watchers
    from flops_fit_ray.trackers import watchers_for

    paths = ledger.paths
    rates = recorded_rates(paths, planner.cells.constants)

    base = None if request.base is None else str(request.base)

    def record(grown: Plan) -> None:
        code = None if request.code is None else request.code.facts.digest
        content = priced(grown, request.spec.grid.start, rates=rates).to_json()
        write_json(paths.plan, {**content, "command": request.command, "base": base, "code": code}, sealed=True)

    try:
        plan = planner.plan()
        # First, so that whatever of the spec was added is known to be
        record_origin(paths, Origin(command=request.command, base=base, frame=plan.constants, added=request.added))
        record_spec(paths, request.spec)
        if request.code is not None:
            ledger.record_code(request.code.facts)
        record(plan)
        request.on_recorded()
    except StorageError as e:  # nothing has been run, so there is nothing to resume
        raise DirectoryError(f"{e}, or choose another --output") from e
    if not request.trains:
        rehearse_plan(planner, ledger, record)
        return open_sweep(request.root)
    run_plan(
        planner,
        spec=request.spec,
        root=request.root,
        base=request.shared_base,
        load_user_parts=request.load_user_parts,
        code=request.code,
        address=request.address,
        max_slots=request.limits.slots,
        watcher=Watchers([Watcher(console, say=console.say), *watchers_for(request.spec, paths, console.say)]),
        on_plan=record,
        stop=stop,
    )
    return open_sweep(request.root)


def _recorded_choice(spec: SweepSpec, paths: SweepPaths) -> dict[str, Any] | None:
    """Read the precision and compilation that were measured for this directory: one choice for all its experiments."""
    try:
        recorded = recorded_spec(paths).train
    except SpecError:  # there is none, or none that can be read
        return None
    chosen = {name: getattr(recorded, name) for name in left_open(spec)}
    return None if AUTO in chosen.values() else chosen


def _measured_choice(plan: Plan, request: RunRequest, console: PlainConsole) -> dict[str, Any]:
    from flops_fit_ray.engine.preflight import choose_on_worker

    choice = choose_on_worker(
        plan,
        request.spec,
        load_user_parts=request.load_user_parts,
        address=request.address,
        max_slots=request.limits.slots,
    )
    chosen = {name: getattr(choice, name) for name in left_open(request.spec)}
    said = ", ".join(f"{name}: {str(value).lower()}" for name, value in chosen.items())
    shown = ", ".join(f"{name} {fmt.duration(s)}" for name, s in choice.seconds.items())
    console.say(f"{said}, measured on a worker (training of the whole sweep, one at a time: {shown})")
    return chosen
