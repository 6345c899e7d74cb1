"""Values of a sweep for the API and the pages, made from a snapshot of its directory."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from flops_fit_ray.analysis import json_value
from flops_fit_ray.console.live_state import tokens_left_seconds
from flops_fit_ray.errors import EXIT_FAILED, EXIT_INPUT, FlopsFitError
from flops_fit_ray.formatting import listed, printable
from flops_fit_ray.ledger import ExperimentResult, Failure, Ledger, Progress
from flops_fit_ray.planning import Experiment
from flops_fit_ray.report.facts import ADVICE
from flops_fit_ray.service.http import names
from flops_fit_ray.service.http.redact import redacted, redacted_values
from flops_fit_ray.service.http.request_error import RequestError, busy, conflict, not_found
from flops_fit_ray.service.runs.asked import RunStatus
from flops_fit_ray.service.runs.queue import Runs
from flops_fit_ray.service.state.cache import Look, SweepCaches
from flops_fit_ray.service.state.snapshot import Snapshot, row_of
from flops_fit_ray.storage.atomic import read_sealed
from flops_fit_ray.storage.codec import Count, Record, value_of
from flops_fit_ray.storage.paths import CheckpointPaths, SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, local_path

State = Literal["queued", "running", "stopping", "stopped", "completed", "failed"]
STATES: tuple[State, ...] = get_args(State)
Sort = Literal[
    "budget", "params", "tokens", "loss", "seconds", "share", "status", "attempts", "finished_at", "lr"
]  # fmt: skip
SORTS: tuple[Sort, ...] = get_args(Sort)
CURVE_POINTS = 500  # at most, of one experiment
UNKNOWN: Mapping[str, Any] = {  # of a sweep that has no plan yet
    **{"version": "", "counts": {}, "total": 0, "final": False, "flops_planned": 0.0, "flops_done": 0.0, "share": 0.0},
    **{"seconds_left": None, "device_seconds": 0.0, "deaths": 0, "budgets": [], "results_sha256": None},
    **{"started_at": None, "last_at": None},
}
MAX_BUDGET = 1e60  # FLOPs that predictions are made for
MAX_LOSS = 1e12  # nats, likewise
MAX_EVENTS = 100  # that are shown with an experiment
MAX_REASONS = 3  # failed experiments that the reason of a failed run names
LOG_LINES = 40  # of what a run has said, that stand in a status


@dataclass(frozen=True, kw_only=True)
class _CheckpointNote(Record):
    bytes: Count
    sha256: str
    eval_loss: float | None = None


def state_of(run_status: RunStatus | None, snapshot: Snapshot | None, owner: str | None) -> State:
    """One word for a sweep, whoever runs it."""
    if run_status is not None and run_status.phase != "ended":
        return run_status.phase
    if owner is not None:
        return "running"
    if snapshot is not None and snapshot.sweep.complete:
        return "completed"
    if run_status is not None and run_status.stop_requested:
        return "stopped"
    wrong = run_status is not None and _went_wrong(run_status)
    return "failed" if wrong or snapshot is None else "stopped"


def sweep_view(runs: Runs, caches: SweepCaches, name: str) -> dict[str, Any]:
    """Return the status of one sweep.

    Raises:
        RequestError: there is none.
    """
    if not names.is_sweep(name):
        raise not_found("sweep")
    run_status, look = runs.last(name), _looked_at(caches, name)  # in this order: what has ended is looked at again
    snapshot, has_plan, owner, why = look.snapshot, look.has_plan, look.owner, str(look.error or "")
    if run_status is None and not has_plan:
        raise not_found("sweep")
    state = state_of(run_status, snapshot, owner)
    run = None if run_status is None else run_status.run
    open_here = run_status is not None and run_status.phase != "ended"
    free = not open_here and owner is None
    view: dict[str, Any] = {
        "name": name,
        "state": state,
        "words": redacted(why if has_plan and why else "" if run_status is None else run_status.message),
        "exit_code": None if run_status is None else run_status.exit_code,
        "started_here": run is not None,
        "kind": None if run is None else run.kind,
        "run": None if run is None else run.number,
        "asked_at": None if run is None else run.asked_at,
        "writer": owner,
        "can": {"stop": open_here, "resume": free and state != "completed", "extend": free and snapshot is not None},
    }
    if not view["words"] and free and run_status is not None and _went_wrong(run_status):
        view["words"] = _why(runs, run_status, snapshot)
    return {**view, **_facts_of(snapshot)}


def _went_wrong(run_status: RunStatus) -> bool:
    return run_status.exit_code in (EXIT_FAILED, EXIT_INPUT)


def _why(runs: Runs, run_status: RunStatus, snapshot: Snapshot | None) -> str:
    """Return why a run failed: its experiments' errors, else what it said of itself."""
    failures = () if snapshot is None else snapshot.sweep.failures
    if run_status.exit_code != EXIT_FAILED or not failures:
        return _last_words(runs.last_log(run_status.run))
    shown = [f"experiment {f.key} ({f.status}): {f.error_line}" for f in failures]
    return redacted(listed(shown, MAX_REASONS, "\n"))[:2000]


def _facts_of(snapshot: Snapshot | None) -> Mapping[str, Any]:
    return UNKNOWN if snapshot is None else snapshot.facts


def _last_words(log: bytes) -> str:
    """Return the last lines of a run."""
    lines = _shown_lines(log)
    at = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("error:")), None)
    return "\n".join(lines[at:] if at is not None else lines[-3:])[:2000]


def log_text(raw: bytes, lines: int) -> str:
    """The last lines of what was said."""
    return "\n".join(_shown_lines(raw)[-lines:])


def _shown_lines(raw: bytes) -> list[str]:
    return printable(redacted(raw.decode(errors="replace"))).splitlines()


def page_of(rows: Sequence[Any], offset: int, limit: int) -> dict[str, Any]:
    """One page of a list."""
    shown = list(rows[offset : offset + limit])
    after = offset + len(shown)
    return {"items": shown, "total": len(rows), "offset": offset, "next": after if after < len(rows) else None}


def experiment_view(snapshot: Snapshot, key: str) -> dict[str, Any]:
    """All that is known of one experiment.

    Raises:
        RequestError: the sweep has none of this key.
    """
    e = experiment_of(snapshot, key)
    ledger = Ledger(snapshot.sweep.paths)
    outcome, progress = ledger.outcome(key), ledger.progress(key)
    failure = outcome if isinstance(outcome, Failure) else None
    known = str(snapshot.by_key[key]["status"])
    idle = str(outcome.status) if outcome is not None else known if known in ("waiting", "damaged") else "planned"
    return dict(
        json_value(
            redacted_values(
                {
                    **row_of(e, outcome, progress, idle),  # of this reading: the snapshot may be older than the outcome
                    "planned": e.to_json(),
                    "outcome": None if outcome is None else asdict(outcome),
                    "advice": None if failure is None else ADVICE[failure.status],
                    "progress": None if progress is None or outcome is not None else asdict(progress),
                    "events": _events(ledger, key)[-MAX_EVENTS:],
                    "checkpoints": checkpoints_of(snapshot, key),
                }
            )
        )
    )


def _events(ledger: Ledger, key: str) -> list[dict[str, Any]]:
    return [event.to_json() for event in ledger.events(key)]


def events_of(snapshot: Snapshot, key: str) -> list[dict[str, Any]]:
    """Return the events of one experiment, the newest last.

    Raises:
        RequestError: the sweep has none of this key.
    """
    experiment_of(snapshot, key)
    return list(json_value(redacted_values(_events(Ledger(snapshot.sweep.paths), key))))


def experiment_of(snapshot: Snapshot, key: str) -> Experiment:
    """One experiment of the plan.

    Raises:
        RequestError: the sweep has none of this key.
    """
    if re.fullmatch(names.KEY, key) and key in snapshot.by_key:
        return snapshot.experiments[key]
    raise not_found("experiment")


def metrics_of(snapshot: Snapshot, key: str) -> dict[str, Any]:
    """Return the measurements of a running experiment, or its last ones."""
    experiment = experiment_of(snapshot, key)
    ledger = Ledger(snapshot.sweep.paths)
    outcome = ledger.outcome(key)
    if isinstance(outcome, ExperimentResult):
        wanted = (
            "loss", "loss_stderr", "train_loss", "tokens_seen", "tokens", "seconds", "tokens_per_second", "mfu",
            "peak_source", "data_wait_share", "all_reduce_share",
        )  # fmt: skip
        now: dict[str, Any] = {name: getattr(outcome, name) for name in wanted} | {"metrics": dict(outcome.metrics)}
    else:
        progress = ledger.progress(key)
        now = {} if progress is None else _progress_metrics(progress)
    if now:
        now["steps_per_second"], now["samples_per_second"] = experiment.rates(now["tokens_per_second"])
    return {"key": key, "status": snapshot.by_key[key]["status"], **json_value(now)}


def _progress_metrics(progress: Progress) -> dict[str, Any]:
    wanted = (
        "train_loss",
        "lr",
        "grad_norm",
        "tokens_seen",
        "tokens",
        "seconds",
        "tokens_per_second",
        "mfu",
        "updated_at",
    )
    return {name: getattr(progress, name) for name in wanted} | {"seconds_left": tokens_left_seconds(progress)}


def history_of(snapshot: Snapshot, key: str) -> list[dict[str, Any]]:
    """Every point of its curve; of what runs, as of some seconds ago."""
    experiment_of(snapshot, key)
    return [dict(json_value(row)) for row in Ledger(snapshot.sweep.paths).curve_rows(key)]


def thinned(rows: Sequence[Mapping[str, Any]], points: int, columns: Sequence[str]) -> dict[str, list[Any]]:
    """So many points of a curve at most, the last one among them, as columns."""
    step = max(1, -(-len(rows) // points))
    shown = rows[len(rows) - 1 :: -step][::-1] if rows else []
    return {column: [row.get(column) for row in shown] for column in columns}


def changed(path: StoragePath) -> int | None:
    """Return the time at which a file was written, in ns since the epoch; None without one."""
    try:
        return local_path(path).stat().st_mtime_ns
    except OSError:
        return None


def with_speed(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each point of a curve with the tokens per second since the one before."""
    found: list[dict[str, Any]] = []
    for before, row in zip([None, *rows], rows, strict=False):
        tokens = row["tokens"] - (before["tokens"] if before else 0)
        seconds = (row.get("seconds") or 0) - ((before.get("seconds") or 0) if before else 0)
        found.append({**row, "tokens_per_second": tokens / seconds if seconds > 0 and tokens > 0 else None})
    return found


def checkpoints_of(snapshot: Snapshot, key: str) -> list[dict[str, Any]]:
    """The checkpoints that an open experiment can go on from, the trunk it left, its weights; the newest last."""
    paths = snapshot.sweep.paths
    both = (("checkpoint", paths.checkpoints(key)), ("trunk", paths.trunk(key)))
    return [*(one for kind, place in both for one in _checkpoints_in(kind, key, place)), *_weights(key, paths)]


def _weights(key: str, paths: SweepPaths) -> Iterable[dict[str, Any]]:
    try:
        with names.opened(paths.weights(key), paths.root, "weights") as file:
            stat = os.fstat(file.fileno())
    except RequestError:
        return
    sha256 = _sha256(paths, key, stat.st_size, stat.st_mtime_ns)
    yield {"id": f"{key}-w", "key": key, "step": None, "kind": "weights", "bytes": stat.st_size, "sha256": sha256,
           "eval_loss": None}  # fmt: skip


@functools.lru_cache(maxsize=1000)
def _sha256(paths: SweepPaths, key: str, size: int, changed: int) -> str:
    with names.opened(paths.weights(key), paths.root, "weights") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


def _checkpoints_in(kind: str, key: str, place: CheckpointPaths) -> Iterable[dict[str, Any]]:
    for step in place.started():
        with contextlib.suppress(ValueError):
            note = value_of(_CheckpointNote, read_sealed(place.note(step)) or b"")
            yield {"id": f"{key}-{kind[0]}{step}", "key": key, "step": step, "kind": kind, **asdict(note)}


def all_checkpoints(snapshot: Snapshot) -> list[dict[str, Any]]:
    """List the checkpoints of all experiments, in the order of the plan."""
    paths = snapshot.sweep.paths
    some = paths.begun_keys() | paths.trunk_keys()
    return [one for e in snapshot.sweep.plan.experiments if e.key in some for one in checkpoints_of(snapshot, e.key)]


def checkpoint_of(snapshot: Snapshot, checkpoint_id: str) -> dict[str, Any]:
    """One by its id.

    Raises:
        RequestError: there is none.
    """
    if re.fullmatch(names.CHECKPOINT, checkpoint_id):
        key = checkpoint_id.partition("-")[0]
        if key in snapshot.by_key:
            for one in checkpoints_of(snapshot, key):
                if one["id"] == checkpoint_id:
                    return one
    raise not_found("checkpoint")


def file_of(snapshot: Snapshot, one: Mapping[str, Any]) -> StoragePath:
    """The file of a checkpoint."""
    paths, key = snapshot.sweep.paths, str(one["key"])
    if one["kind"] == "weights":
        return paths.weights(key)
    place = paths.trunk(key) if one["kind"] == "trunk" else paths.checkpoints(key)
    return place.state(int(one["step"]))


def snapshot_of(caches: SweepCaches, runs: Runs, name: str) -> Snapshot:
    """A sweep that has a plan.

    Raises:
        RequestError: there is no such sweep, it has no plan yet, or its directory cannot be read now.
    """
    look = _looked_at(caches, name)
    if look.snapshot is not None:
        return look.snapshot
    if look.has_plan:
        raise busy(str(look.error))
    if runs.last(name) is None:
        raise not_found("sweep")
    raise conflict(f"{name} has no plan yet")


def _looked_at(caches: SweepCaches, name: str) -> Look:
    """Return what is seen of a directory; of one that has not answered yet, that it does not."""
    try:
        return caches.of(name).look()
    except FlopsFitError as e:
        return Look(has_plan=True, owner=None, snapshot=None, error=e)
