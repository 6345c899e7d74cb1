"""The driver: Tune executes what the dispatcher hands out, the ledger says what is left, and Tune runs again.

It decides nothing. What Tune says about its trials is never believed: after an interruption its grid calls unfinished
trials terminated and free of errors. Tune runs in a thread of its own, so that the main one hears signals, and notices
when the head of the cluster is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit_ray.engine._dispatch import Dispatcher, vanished
from flops_fit_ray.engine._live_plan import LivePlan
from flops_fit_ray.engine._node_watch import NodeWatch
from flops_fit_ray.engine._nodes import Mark, NodeProbe, check_nodes
from flops_fit_ray.engine.cluster import Head, ray_session
from flops_fit_ray.engine.interrupt import GRACE_SECONDS, StopRequest
from flops_fit_ray.engine.loaders import Loader, comparing_loader, share_data
from flops_fit_ray.engine.planned_code import PlannedCode
from flops_fit_ray.engine.preflight import shared_slots, slots_for, slots_without
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.errors import DataDiffersError, InterruptedSweepError, StorageError
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.ledger.watch import Watchers
from flops_fit_ray.planning import Plan, Planner
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath

if TYPE_CHECKING:
    from ray import tune

    from flops_fit_ray.engine._trainable import TrialContext

MAX_ROUNDS = 3  # of starting Tune, where it says that it is done and the ledger does not
LOOK_SECONDS = 0.1


def run_plan(
    planner: Planner,
    *,
    spec: SweepSpec,
    root: StoragePath,
    base: Path | None,
    load_user_parts: Loader,
    code: PlannedCode | None = None,
    address: str | None,
    max_slots: int | None,
    watcher: Watchers,
    on_plan: Callable[[Plan], None],
    stop: StopRequest,
) -> Plan:
    """Run every experiment of the plan to an outcome in the ledger; recorded results are not touched.

    Args:
        base: the directory of the user's code that every node must have; None where it travels.
        code: the user's code, which must be the same on every node; None where it is not known.
        max_slots: experiments at a time; on a cluster as many, even if it has to grow for that.
        on_plan: told of the plan at first and whenever it has grown, before anything new is begun.

    Returns:
        The plan in the end.

    Raises:
        ResourceError: the cluster cannot run such trials, or none of its nodes can run this sweep.
        InterruptedSweepError: a signal stopped the sweep, or the head of the cluster is gone.
        StorageError: the directory cannot be written any more.
        DataDiffersError: a process that trains has other data than those of the plan.
    """
    paths = SweepPaths(root)
    ledger = Ledger(paths)
    watcher.take(ledger)

    def told(plan: Plan) -> None:
        on_plan(plan)
        watcher.on_plan(plan)

    paths.stop.unlink(missing_ok=True)
    live = LivePlan(planner, ledger, told)
    if live.done():
        return live.plan
    with ray_session(address) as head, contextlib.ExitStack() as stack:
        slots = slots_for(spec, head.grows_to(max_slots), spec.workers_per_trial)
        probe = stack.enter_context(contextlib.closing(NodeProbe(root, base, code, gpus=slots.uses_gpu)))
        found = check_nodes(probe, slots)  # which tries the GPUs
        if found.left_out and max_slots is None:
            slots = slots_without(slots, found.left_out)
        if spec.resources_per_trial == "auto":
            slots = shared_slots(live.plan, spec, load_user_parts, slots, found)
        if max_slots is not None:
            slots = dataclasses.replace(slots, count=head.grows_to(max_slots) or min(max_slots, slots.count))
        slots = slots.with_notes(found.odd)
        shown = slots.with_notes([f"left out: {fault}" for fault in found.left_out.values()])
        ledger.record_cluster(Cluster(slots=shown.count, note=shown.note, machines=tuple(found.machines.values())))
        watcher.on_cluster()
        try:
            with watcher.following():
                context = _context(live, spec, load_user_parts, slots, code, None if head.local else probe.mark)
                nodes = NodeWatch(probe, found, head, max_slots, ledger.record_cluster)
                _run_rounds(live, context, nodes, stop, head)
        except BaseException:  # whoever still speaks does so about a sweep that was left
            stop.set(InterruptedSweepError("the sweep was left"))
            raise
        finally:
            with contextlib.suppress(OSError):
                paths.stop.unlink(missing_ok=True)
    return live.plan


def _context(
    live: LivePlan,
    spec: SweepSpec,
    load_user_parts: Loader,
    slots: Slots,
    code: PlannedCode | None,
    mark: Mark | None,
) -> TrialContext:
    from flops_fit_ray.engine._trainable import TrialContext

    found = live.plan.measurements
    return TrialContext(
        root=live.ledger.paths.root,
        load_user_parts=comparing_loader(share_data(load_user_parts, found.data.tensor_bytes), spec, found),
        spec=spec,
        eval_samples=found.data.eval_samples,
        slots=slots,
        code=code,
        mark=mark,
    )


def _run_rounds(live: LivePlan, context: TrialContext, nodes: NodeWatch, stop: StopRequest, head: Head) -> None:
    """Start Tune until the ledger has every outcome."""
    from flops_fit_ray.engine._lean_tune import lean_tune
    from flops_fit_ray.engine._rounds import MAX_STATE_EXPERIMENTS, make_tuner

    ledger, dispatcher = live.ledger, Dispatcher(live, context.slots, stop)
    for node, fault in nodes.left_out_at_first.items():
        dispatcher.leave_out(node, fault)

    def look() -> None:
        head.check()
        nodes.look(dispatcher, stop)

    for round_number in range(MAX_ROUNDS):
        keeps_state = len(live.plan.experiments) <= MAX_STATE_EXPERIMENTS
        restore = keeps_state and round_number == 0
        tuner, restored = make_tuner(dispatcher, context, ledger.paths, context.slots, restore=restore)
        with contextlib.nullcontext() if keeps_state else lean_tune(ledger.paths):
            errors = _fit(tuner, ledger.paths, stop, head, look, forgiving=restored)
        dispatcher.forget_adopted()
        for key, words in errors.items():  # with Ray's own words, where the process died
            failure = ledger.failure(key)
            if failure is not None and failure.status == "infrastructure":
                ledger.record_failure(vanished(key, ledger, words))
        dispatcher.look()
        if live.done():
            return
        if stop.error is not None:
            raise stop.error
    raise InterruptedSweepError(f"Ray Tune ended {MAX_ROUNDS} times before the sweep was complete")


def _fit(
    tuner: tune.Tuner,
    paths: SweepPaths,
    stop: StopRequest,
    head: Head,
    look: Callable[[], None],
    *,
    forgiving: bool,
) -> dict[str, str]:
    """Run Tune to its end, or until a stop is requested. Returns Ray's messages on workers that died, by key.

    A stop is a file that experiments see within a second: they save, and end. Those that do not, because one of their
    steps takes longer, are not waited for.

    Args:
        look: called now and then, to see what has become of the cluster.
        forgiving: an error of Tune itself is no reason to stop, because its state of an earlier run may be at fault.

    Raises:
        InterruptedSweepError: a second signal came, the experiments did not end in time, or head or nodes are gone.
        DataDiffersError: experiments that still ran on the right data did not end in time.
        StorageError: the directory cannot be written.
    """
    found: dict[str, Any] = {}

    def run() -> None:
        try:
            found["grid"] = tuner.fit()
        except BaseException as e:  # noqa: BLE001 - handed on to the main thread
            found["error"] = e

    thread = threading.Thread(target=run, name="tune", daemon=True)
    with stop.deferred():
        thread.start()
        until: float | None = None
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            if not isinstance(stop.error, InterruptedSweepError | DataDiffersError):
                look()
                continue
            if until is None:
                with contextlib.suppress(OSError):  # else experiments hear of it when their process ends
                    paths.stop.touch()
                until = time.monotonic() + GRACE_SECONDS
            # Whoever signalled us may have ended Ray too: then nobody is left to be waited for
            if time.monotonic() > until or (head.local and not head.answers()):
                raise stop.error
    if isinstance(stop.error, StorageError):
        raise stop.error
    if "error" in found:
        if forgiving and isinstance(found["error"], Exception):
            return {}
        raise found["error"]
    grid = found["grid"]
    trials = [grid[i] for i in range(len(grid))]
    return {t.config["key"]: str(t.error) for t in trials if t.error is not None and t.config is not None}
