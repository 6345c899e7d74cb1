"""`fit --next`: the runs that would help most, of a table or a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from flops_fit_ray.cli._sources import Opened

if TYPE_CHECKING:
    from flops_fit_ray.analysis import NextRuns

MOST_NEXT = 50  # runs; each one more is chosen beside all before it


@dataclass(frozen=True)
class NextWanted:
    """Options of `fit --next`."""

    runs: int
    target: float | None
    at_most: float | None


def next_wanted(
    runs: int | None, target: float | None, at_most: float | None, at: Sequence[float]
) -> NextWanted | None:
    """Return what is asked of --next; None without it.

    Raises:
        click.UsageError: an option of --next was given without it.
    """
    if runs is not None:
        return NextWanted(runs, target if target is not None else next(iter(at), None), at_most)
    for name, value in (("--target", target), ("--at-most", at_most)):
        if value is not None:
            raise click.UsageError(f"{name} belongs to --next RUNS")
    return None


def choose_next(opened: Opened, wanted: NextWanted) -> NextRuns:
    """Choose the next runs of a table or a sweep.

    Raises:
        SpecError, FitError: as `analysis.next_runs`.
    """
    from flops_fit_ray.analysis import next_runs
    from flops_fit_ray.sweep.next_places import next_runs_of

    if opened.sweep is not None:
        return next_runs_of(opened.sweep, opened.fit, wanted.runs, wanted.target, wanted.at_most)
    return next_runs(opened.fit, wanted.runs, wanted.target, at_most=wanted.at_most)
