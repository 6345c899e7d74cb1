"""`fit --next`: the runs that would help most, of a table or a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from flops_fit_ray.cli._sources import Opened


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


def show_next(opened: Opened, wanted: NextWanted, as_json: bool) -> dict[str, Any]:
    """Choose the next runs, print them unless they are wanted as JSON, and return them as its content."""
    from flops_fit_ray.analysis import next_runs
    from flops_fit_ray.console.next_text import next_runs_text
    from flops_fit_ray.sweep.next_places import next_runs_of

    if opened.sweep is not None:
        chosen = next_runs_of(opened.sweep, opened.fit, wanted.runs, wanted.target, wanted.at_most)
    else:
        chosen = next_runs(opened.fit, wanted.runs, wanted.target, at_most=wanted.at_most)
    if not as_json:
        click.echo(f"\n{next_runs_text(chosen)}")
    return {"next_runs": chosen.to_json()}
