"""The command of a second axis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from flops_fit_ray.cli._common import LocalPath, StoragePathType, echo, json_option, open_directory
from flops_fit_ray.cli._put import put_text
from flops_fit_ray.cli._sources import FIT_OPTIONS, TABLE_OPTIONS, reading_of, with_options
from flops_fit_ray.fit_options import LIMITS, FitOptions
from flops_fit_ray.storage.storage_path import StoragePath, local_path
from flops_fit_ray.sweep.sources import is_table

if TYPE_CHECKING:
    from flops_fit_ray.analysis import AxisScale

OF_INTERVALS = FIT_OPTIONS[-2:]  # seed and confidence
MOST_DRAWS = LIMITS["draws"].le


@click.command()
@click.argument("sources", nargs=-1, required=True, type=StoragePathType(), metavar="SOURCE...")
@click.option("--of", required=True, metavar="NAME", help="The axis: an argument of the model, or a column of a table.")
@click.option("--reference", metavar="VALUE", help="What the others are compared with [default: the one most run].")
@click.option("--scale", type=click.Choice(["log", "linear", "kinds"]), help="Take numbers by their logarithm, as they "
              "are, or each value for itself [default: by the values].")  # fmt: skip
@click.option("--draws", type=click.IntRange(0, None if MOST_DRAWS is None else int(MOST_DRAWS)),
              help=f"Draws for intervals; 0: no intervals [default: {FitOptions.draws}].")  # fmt: skip
@with_options([*TABLE_OPTIONS, *OF_INTERVALS])
@click.option("--figure", type=LocalPath(), help="Draw the differences here (.svg, .png, .pdf).")
@json_option
def axis(
    sources: tuple[StoragePath, ...],
    of: str,
    reference: str | None,
    scale: str | None,
    figure: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare the values of a second axis (depth, experts, sparsity, ...) at equal C, each at its best N.

    How much better or worse each value is, in nats and as a factor of compute, with intervals; d ln L / d axis; the
    best value of each budget; and whether any of it is told apart from noise.

    SOURCE is a table of runs with a column NAME, or sweep directories that differ in an argument NAME of their model,
    one or several. Budgets need three sizes, of which one value may have as few as one.
    """
    from flops_fit_ray.analysis import fit_axis, json_value
    from flops_fit_ray.console.axis_text import axis_text
    from flops_fit_ray.storage.paths import SCHEMA_VERSION
    from flops_fit_ray.sweep.axis_runs import axis_runs

    reading = reading_of(options)
    opened = [local_path(source) if is_table(source) else open_directory(source) for source in sources]
    runs = axis_runs(opened, of, reading)
    known = {name: options[name] for name in ("draws", "seed", "confidence") if options[name] is not None}
    at: float | str | None = reference
    if reference is not None and not any(isinstance(value, str) for value in runs.values):
        try:
            at = float(reference)
        except ValueError as e:
            raise click.UsageError(f"--reference {reference}: the values of {of} are numbers") from e
    found = fit_axis(
        runs.points, of, runs.values, reference=at, scale=cast("AxisScale | None", scale), known=runs.flags, **known
    )
    if as_json:
        echo(json.dumps({"schema_version": SCHEMA_VERSION, **json_value(found.to_json())}, indent=1))
    else:
        echo(axis_text(found))
    if figure is not None:
        from flops_fit_ray.report.figures import draw_axis, save

        save(draw_axis(found), figure)
        put_text(f"figure: {figure}", err=as_json)
