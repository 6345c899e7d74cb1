"""Rows of a sweep's table: those that are asked for, in the order that is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable

from flops_fit_ray.console.status_text import STATUS_LABELS
from flops_fit_ray.formatting import count, flops
from flops_fit_ray.service.state.snapshot import Row, Snapshot

MAX_CHOICES = 50  # of rows that are kept for the next page of a list
SEARCHED = ("key", "budget", "size", "params", "tokens", "role", "seed", "status", "host", "error")


def chosen(
    snapshot: Snapshot,
    *,
    status: str | None,
    budget: float | None,
    role: str | None,
    sort: str | None,
    down: bool,
    find: str | None = None,
) -> list[Row]:
    """The rows that are asked for, in the order that is asked for; what is not known comes last.

    Args:
        find: words that all stand somewhere in a row, as it is shown.
    """
    asked = (status, budget, role, sort, down, find)
    known = snapshot.kept.get(asked)
    if known is None:
        if len(snapshot.kept) >= MAX_CHOICES:
            snapshot.kept.clear()
        known = _chosen(snapshot, status, budget, role, sort, down)
        if find is not None:
            words = find.lower().split()
            known = [row for row in known if all(word in _text(row) for word in words)]
        snapshot.kept[asked] = known
    return known


def _text(row: Row) -> str:
    shown = [flops(row["budget"]), count(row["params"]), count(row["tokens"]), STATUS_LABELS.get(row["status"], "")]
    return " ".join([*shown, *(str(row[name]) for name in SEARCHED if row[name] is not None)]).lower()


def _chosen(
    snapshot: Snapshot, status: str | None, budget: float | None, role: str | None, sort: str | None, down: bool
) -> list[Row]:
    rows: Iterable[Row] = snapshot.rows
    if status is not None:
        rows = (row for row in rows if row["status"] == status)
    if budget is not None:
        rows = (row for row in rows if math.isclose(row["budget"], budget, rel_tol=1e-9))
    if role is not None:
        rows = (row for row in rows if row["role"] == role)
    found = list(rows)
    if sort is not None:
        known = [row for row in found if row[sort] is not None]
        rest = [row for row in found if row[sort] is None]
        return [*sorted(known, key=lambda row: row[sort], reverse=down), *rest]
    return found[::-1] if down else found
