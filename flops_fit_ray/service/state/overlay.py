"""Training curves of many experiments of one sweep beside each other: those that run, or those that are completed."""

from __future__ import annotations

import functools
import hashlib
from typing import Any, Literal, get_args

from flops_fit_ray.analysis import json_value
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning import Experiment
from flops_fit_ray.service.state.snapshot import Snapshot
from flops_fit_ray.service.state.views import changed, thinned, with_speed
from flops_fit_ray.storage.paths import SweepPaths

Which = Literal["running", "completed"]
WHICH: tuple[Which, ...] = get_args(Which)
MAX_CURVES = 24  # of more, every so many: no eye tells them apart
POINTS = 240  # of each
COLUMNS = ("tokens", "train_loss", "eval_loss", "lr", "grad_norm", "tokens_per_second")


def which_of(snapshot: Snapshot) -> Which:
    """Return which curves a page shows first: those that run, if any do."""
    return "running" if snapshot.sweep.running else "completed"


def shown_in(snapshot: Snapshot, which: Which) -> tuple[list[Experiment], int]:
    """Return the experiments whose curves are shown, in the plan's order, and of how many."""
    if which == "running":
        found = [e for e, _ in snapshot.sweep.running]
    else:
        found = [snapshot.experiments[result.key] for result in snapshot.sweep.results]
    return _some(found), len(found)


def _some(found: list[Experiment]) -> list[Experiment]:
    step = -(-len(found) // MAX_CURVES) or 1
    return found[::step]


def stamp_of(snapshot: Snapshot, which: Which) -> str:
    """Return a word that changes whenever one of the curves does."""
    shown, _ = shown_in(snapshot, which)
    marks = [(e.key, changed(snapshot.sweep.paths.curve(e.key))) for e in shown]
    return hashlib.sha256(repr(marks).encode()).hexdigest()[:16]


def overlay(snapshot: Snapshot, which: Which) -> dict[str, Any]:
    """Return the curves that are shown of a sweep."""
    shown, total = shown_in(snapshot, which)
    return {"which": which, "total": total, **overlaid_curves(snapshot, shown)}


def overlaid_curves(snapshot: Snapshot, shown: list[Experiment]) -> dict[str, Any]:
    """Return the curves of some experiments, each thinned to at most `POINTS` points, as columns."""
    paths = snapshot.sweep.paths
    return {
        "experiments": [
            {
                "key": e.key,
                "budget": e.budget,
                "size": e.size,
                "params": e.params,
                "flops_per_token": e.flops_per_token,
                "status": snapshot.by_key[e.key]["status"],
                "share": snapshot.by_key[e.key]["share"],
                **_columns(paths, e.key, changed(paths.curve(e.key))),
            }
            for e in shown
        ],
    }


@functools.lru_cache(maxsize=512)
def _columns(paths: SweepPaths, key: str, _changed: int | None) -> dict[str, list[Any]]:
    """Return a curve as columns; `_changed` makes a new question when its file has changed."""
    rows = Ledger(paths).curve_rows(key)
    return dict(json_value(thinned(with_speed(rows), POINTS, COLUMNS)))
