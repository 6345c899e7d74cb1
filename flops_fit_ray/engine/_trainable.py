"""One trial: look in the ledger, else train, record, and only then tell Tune."""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
import torch
from ray import tune

from flops_fit_ray.engine._crash import crashes_noted
from flops_fit_ray.engine._gpus import gpu_fault
from flops_fit_ray.engine._ledger_observer import LedgerObserver
from flops_fit_ray.engine._nodes import Mark
from flops_fit_ray.engine._team import Team
from flops_fit_ray.engine._termination import WorkerTerminated, end_on_sigterm
from flops_fit_ray.engine._versions import versions
from flops_fit_ray.engine.planned_code import PlannedCode
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.errors import (
    DataDiffersError,
    ExperimentError,
    InterruptedSweepError,
    NodeUnfitError,
    StorageError,
    WorkerLostError,
)
from flops_fit_ray.ledger import AttemptFacts, ExperimentResult, FailureKind, Ledger
from flops_fit_ray.planning import Experiment, ExperimentFacts, TrainingMetrics, derived_metrics, leaves_trunk
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.codec import fields_of
from flops_fit_ray.storage.lock import hostname
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.training.distributed.group import SINGLE_WORKER, Group
from flops_fit_ray.training.loop.checkpoint import CheckpointStore
from flops_fit_ray.training.loop.loop import train_experiment
from flops_fit_ray.training.loop.meter import CurvePoint
from flops_fit_ray.training.loop.outcome import Outcome
from flops_fit_ray.training.loop.save_policy import SavePolicy
from flops_fit_ray.training.user.parts import UserParts
from flops_fit_ray.training.user.user_code import hard_exit_raises

# Metrics by which a trial tells the driver that none of this sweep can end well
STORAGE_ERROR, OTHER_DATA = "storage_error", "other_data"
UNFIT_NODE, UNFIT_FAULT = "unfit_node", "unfit_fault"  # a node that cannot run it, by Ray's id, and why
ENDS_SWEEP: dict[str, Callable[[str], StorageError | DataDiffersError]] = {
    STORAGE_ERROR: StorageError,
    OTHER_DATA: lambda fault: DataDiffersError("data", [fault]),
}


@dataclass(frozen=True, kw_only=True)
class TrialContext:
    """Context that all trials of a sweep share; sent to each worker once."""

    root: StoragePath
    load_user_parts: Callable[[], UserParts]
    spec: SweepSpec
    eval_samples: int
    slots: Slots
    code: PlannedCode | None = None  # the user's
    mark: Mark | None = None  # that every node must see; None where there is one


class ExperimentTrainable(tune.Trainable):
    """Tune's view of an experiment. The process is kept and serves one experiment after the other."""

    def setup(self, config: dict[str, Any], context: TrialContext | None = None) -> None:
        """Keep the context. Loads nothing of the user's: its errors belong to an experiment."""
        assert context is not None  # tune.with_parameters passes it
        self._context = context
        self._ledger = Ledger(SweepPaths(context.root))
        self._user: UserParts | None = None
        self._settled = False  # whether this process has all that it keeps for good
        self._team = Team(
            functools.partial(load_on_fit_node, context),
            context.slots,
            self._ledger.paths,
            eval_samples=context.eval_samples,
            sharded=context.spec.shard_model,
            time_limit=context.spec.data.timeout_seconds,
        )
        self._key = str(config["key"])
        self._fit = False  # whether this node may run experiments: one that joined late was not asked yet
        end_on_sigterm()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next experiment in the same process: a new one costs seconds."""
        self._key = str(new_config["key"])
        return True

    def step(self) -> dict[str, Any]:
        """The whole experiment."""
        found: dict[str, float | str] = {}
        unfit = {UNFIT_NODE: "", UNFIT_FAULT: ""}
        try:
            if not self._fit:
                refuse_unfit_node(self._context)
                self._fit = True
            experiment = self._ledger.planned(self._key)
            with crashes_noted(self._ledger.paths, self._key, self._context.spec.data.timeout_seconds):
                status, why = run_experiment(self._context, self._ledger, self._load, experiment, self._team), {}
            found = tune_metrics(experiment, self._ledger.result(self._key))
        except StorageError as e:  # Tune would only try again, on the same full disk
            status, why = "storage", {STORAGE_ERROR: str(e)}
        except DataDiffersError as e:  # and every other experiment would train on other data as well
            status, why = "other data", {OTHER_DATA: "; ".join(e.faults)}
        except NodeUnfitError as e:
            status, why, unfit = "unfit node", {}, {UNFIT_NODE: e.node, UNFIT_FAULT: e.fault}
        self._clear_up()
        return {**found, "done": True, "status": status, **dict.fromkeys(ENDS_SWEEP, ""), **why, **unfit}

    def _load(self) -> UserParts:
        """The user's parts, once for all experiments of this process."""
        if self._user is None:
            self._user = self._context.load_user_parts()
            _keep_what_is_there()
        return self._user

    def _clear_up(self) -> None:
        """Give back what the experiment leaves in cycles: models and data may be in them.

        Of a GPU also what torch would keep for the next one, where other experiments need room on it.
        """
        if self._settled:
            gc.collect()
            if self._context.slots.shares_gpu:
                torch.cuda.empty_cache()
        elif self._user is not None:  # torch imports a good deal more while it trains for the first time
            _keep_what_is_there()
            self._settled = True


def refuse_unfit_node(context: TrialContext) -> None:
    """Make sure that this node sees the sweep, has its code, and can compute on its GPU, before it gets an experiment.

    Raises:
        NodeUnfitError: it cannot run experiments of this sweep.
    """
    fault = ""
    if context.mark is not None and not context.mark.is_seen():
        fault = f"node {hostname()} does not see {context.root}"
    elif context.code is not None:
        context.code.refuse_other()
    if not fault and context.slots.uses_gpu:
        fault = gpu_fault(1)
    if fault:
        raise NodeUnfitError(str(ray.get_runtime_context().get_node_id()), fault)


def load_on_fit_node(context: TrialContext) -> UserParts:
    """Load the user's parts in another worker of an experiment.

    Raises:
        NodeUnfitError: its node cannot run experiments of this sweep.
    """
    refuse_unfit_node(context)
    return context.load_user_parts()


def tune_metrics(experiment: Experiment, result: ExperimentResult | None) -> dict[str, float | str]:
    """Return what Tune's own table shows of an experiment; without a result, what was planned.

    All numbers are floats: an integer of FLOPs beyond 64 bits would end the sweep in a logger of Tune's.
    """
    planned: dict[str, float | str] = {
        "budget": experiment.budget,
        "params": float(experiment.params),
        "lr": experiment.recipe.lr,
        "size": str(experiment.size),
        "role": experiment.role,
    }
    return planned if result is None else {**result.measured, "tokens": float(result.tokens_seen), **planned}


def _keep_what_is_there() -> None:
    """Collect, and never look through the rest again: all of torch takes 0.2 s, which each experiment would pay."""
    gc.collect()
    gc.freeze()


def run_experiment(
    context: TrialContext,
    ledger: Ledger,
    load: Callable[[], UserParts],
    experiment: Experiment,
    team: Team | None = None,
) -> str:
    """Train one experiment unless the ledger has its result, and record what came of it. Returns its status.

    What the user's code raises is recorded and ends this experiment alone; it is never retried by itself.

    Raises:
        StorageError: the ledger cannot be written.
        WorkerLostError: another worker of this experiment died.
        DataDiffersError: one of its processes has other data than the plan.
        NodeUnfitError: the node of one of them has other code.
        WorkerTerminated: this process is to end.
    """
    key = experiment.key
    recorded = ledger.outcome(key)
    if recorded is not None:  # a failure too: what may be tried again, the driver has put aside
        return recorded.status
    attempt = ledger.begin_attempt(key)
    deaths = ledger.num_deaths(key)
    observer = LedgerObserver(ledger, experiment, attempt, deaths, context.slots.count)
    started = time.perf_counter()
    store = _store(context, ledger, key)
    if team is not None:
        observer.others = team.readings

    def failed(e: BaseException) -> FailureKind:
        status: FailureKind = e.status if isinstance(e, ExperimentError) else "failed"
        _record_curve(ledger, key, observer.curve)
        ledger.record_failure(observer.failure(e, status, time.perf_counter() - started))
        return status

    try:
        with observer.watched(context.spec.data.timeout_seconds), hard_exit_raises():
            observer.progress(0, None)
            user = load()
            with contextlib.nullcontext(SINGLE_WORKER) if team is None else team.training(experiment, failed) as group:
                outcome = _train(context, experiment, user, observer, store, group)
    except (StorageError, WorkerLostError, WorkerTerminated):
        raise
    except (DataDiffersError, NodeUnfitError):
        ledger.paths.progress(key).unlink(missing_ok=True)
        raise
    except InterruptedSweepError:
        ledger.paths.progress(key).unlink(missing_ok=True)
        return "stopped"
    except BaseException as e:  # noqa: BLE001 - the user's code may raise anything; it is recorded
        return failed(e)
    _record_curve(ledger, key, outcome.curve)
    ended = AttemptFacts(attempts=attempt, deaths=deaths, host=hostname(), finished_at=time.time())
    ledger.record_result(_result(context, experiment, outcome, ended))
    store.clear()
    return "completed"


def _store(context: TrialContext, ledger: Ledger, key: str) -> CheckpointStore:
    asked = context.spec.checkpoint
    return CheckpointStore(ledger.paths.checkpoints(key).directory, key=key, keep=asked.keep, best=asked.best)


def trunk_store(paths: SweepPaths, key: str) -> CheckpointStore:
    """The trunk that experiment `key` leaves."""
    return CheckpointStore(paths.trunk(key).directory, key=key, keep=1)


def _train(
    context: TrialContext,
    experiment: Experiment,
    user: UserParts,
    observer: LedgerObserver,
    store: CheckpointStore,
    group: Group,
) -> Outcome:
    asked, paths = context.spec.checkpoint, SweepPaths(context.root)
    policy = SavePolicy(
        store=store,
        checkpoint_seconds=None if asked.minutes is None else 60 * asked.minutes,
        checkpoint_steps=asked.steps,
        keep_best=asked.best,
        stop_diverged=context.spec.stop_diverged,
        eval_every_tokens=context.spec.data.eval_every_tokens,
        weights=paths.weights(experiment.key) if asked.weights else None,
        trunk=trunk_store(paths, experiment.key) if context.spec.grid.trunk and leaves_trunk(experiment) else None,
        parent=None if experiment.parent is None else trunk_store(paths, experiment.parent),
    )
    return train_experiment(
        experiment,
        user,
        eval_samples=context.eval_samples,
        device=context.slots.device,
        threads=1,
        policy=policy,
        observer=observer,
        group=group,
    )


def _record_curve(ledger: Ledger, key: str, curve: Sequence[CurvePoint]) -> None:
    if curve:
        ledger.record_curve(key, [asdict(point) for point in curve])


def _result(context: TrialContext, experiment: Experiment, outcome: Outcome, attempt: AttemptFacts) -> ExperimentResult:
    planned, measured = fields_of(ExperimentFacts, experiment), fields_of(TrainingMetrics, outcome)
    executed = outcome.tokens_seen if outcome.tokens_executed is None else outcome.tokens_executed
    return ExperimentResult(
        **planned | {"parent": experiment.parent if outcome.parent_step else None},
        **measured | {"metrics": {**outcome.metrics, **derived_metrics(context.spec, outcome.loss)}},
        **fields_of(AttemptFacts, attempt),
        flops=outcome.tokens_seen * experiment.flops_per_token,
        flops_executed=executed * experiment.flops_per_token,
        lr=experiment.recipe.lr,
        seed=experiment.recipe.seed,
        versions=versions(),
        code=None if context.code is None else context.code.facts.digest,
    )
