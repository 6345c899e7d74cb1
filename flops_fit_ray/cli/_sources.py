"""Sources of the commands that fit: a sweep directory or a table of runs, with the options of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flops_fit_ray.cli._common import open_directory
from flops_fit_ray.errors import FitError
from flops_fit_ray.fit_options import CHOICES, FIT_DEFAULTS, LIMITS, PINS, FitOptions, check_pins
from flops_fit_ray.storage.storage_path import StoragePath, local_path
from flops_fit_ray.sweep.sources import is_table

if TYPE_CHECKING:
    from flops_fit_ray.analysis import SweepFit
    from flops_fit_ray.flags import Flag
    from flops_fit_ray.sweep.directory import Sweep
    from flops_fit_ray.tables import Table, TableOptions

MIN_DRAWS, MAX_REFITTED = 400, 4_000_000  # draws; rows times draws, which take about 3 seconds

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _number(name: str) -> click.ParamType[Any]:
    """Return the parameter type with the limits of a setting."""
    limits = LIMITS[name]
    low, high = (a if a is not None else b for a, b in ((limits.ge, limits.gt), (limits.le, limits.lt)))
    if limits.whole:
        return click.IntRange(None if low is None else int(low), None if high is None else int(high))
    return click.FloatRange(low, high, min_open=limits.gt is not None, max_open=limits.lt is not None)


def _choice(name: str) -> click.Choice[str]:
    return click.Choice(CHOICES[name])


FIT_OPTIONS = [
    click.option("--method", type=_choice("method"),
                 help=f"Method of the reported laws [default: {FitOptions.method}, valleys where there are two]."),
    click.option(
        "--curve",
        type=_choice("curve"),
        help=f"The curve of a valley; auto: chosen by how it predicts sizes left out [default: {FitOptions.curve}].",
    ),
    click.option("--window", type=_number("window"), help="Fit only the sizes nearest to the lowest loss, this many."),
    click.option("--reach", type=_number("reach"), help="Fit only the sizes within this factor of the minimum."),
    click.option("--law-weights", type=_choice("law_weights"),
                 help=f"Weights of the minima in their power law [default: {FitOptions.law_weights}]."),
    click.option("--delta", type=_number("delta"), help=f"Of the Huber loss [default: {FitOptions.delta:g}]."),
    click.option("--undertuned", type=_number("undertuned"),
                 help="Weight of runs above the Huber surface: below 1 they pull less "
                      f"[default: {FitOptions.undertuned:g}]."),
    click.option("--pin", "pins", multiple=True, metavar="NAME=VALUE",
                 help=f"Hold a parameter of the surface: {', '.join(PINS)}."),
    click.option("--draws", "--bootstrap", "draws", type=_number("draws"),
                 help="Bootstrap draws for intervals; 0: no intervals "
                      f"[default: {FitOptions.draws}; above {MAX_REFITTED // FitOptions.draws:,} rows fewer]."),
    click.option("--seed", type=_number("seed"), help=f"Of the bootstrap [default: {FitOptions.seed}]."),
    click.option("--confidence", type=_number("confidence"),
                 help=f"Of the intervals [default: {FitOptions.confidence}]."),
]  # fmt: skip
TABLE_OPTIONS = [
    click.option("--column", "columns", multiple=True, metavar="params=NAME",
                 help="What a column is: params, tokens, flops, loss, budget, run, weight, seconds, flops_per_token, "
                 "unique_tokens, epochs; of a table of optima params_opt, tokens_opt. NAME none: take none."),
    click.option("--unit", "units", multiple=True, metavar="tokens=B", help="What one of a column's units is worth: "
                 "k, M, B, T, EFLOP, PF-days or a number; of the loss bits or perplexity."),
    click.option("--where", multiple=True, metavar="NAME=VALUE", help="Only the rows whose column has this value."),
    click.option("--best-of", multiple=True, metavar="NAME", help="Of a column with a setting that was swept, such as "
                 "lr: the best row of each (N, D) [default: columns called lr, batch_size and alike]; none: all rows."),
    click.option("--pool", multiple=True, metavar="NAME", help="Rows that differ in this column are one law all the "
                 "same."),
]  # fmt: skip


def with_options(options: Sequence[Callable[[Any], Any]]) -> Callable[[_Function], _Function]:
    """Add options to a command, in their order."""

    def add(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


class Opened:
    """Fit of a sweep or of a table."""

    def __init__(self, fit: SweepFit, *, sweep: Sweep | None = None, table: Table | None = None) -> None:
        self.fit, self.sweep, self.table = fit, sweep, table

    @property
    def assumed(self) -> list[Flag]:
        """Notes on a table's rows and columns that an answer rests on, or on the damaged results of a sweep."""
        if self.table is None:
            return [] if self.sweep is None else list(self.sweep.damage)
        flags = self.table.flags
        return [flag for flag in flags if flag.code != "budgets_by_nearness"]


def refuse_options(options: Mapping[str, Any], name: str) -> None:
    """Refuse options of tables and fits for a published law.

    Raises:
        click.UsageError: one was given.
    """
    for option, value in options.items():
        if value not in (None, ()):
            raise click.UsageError(f"{_flag(option)} is for tables and sweeps, and {name} is a published law")


def reading_of(options: Mapping[str, Any]) -> TableOptions:
    """Return how a table is to be read.

    Raises:
        click.UsageError: an option is not NAME=VALUE.
    """
    from flops_fit_ray.tables import TableOptions

    return TableOptions(
        columns=dict(pairs("--column", options["columns"])),
        units=dict(pairs("--unit", options["units"])),
        where=pairs("--where", options["where"]),
        best_of=options["best_of"],
        pool=options["pool"],
        metrics=options.get("metrics", ()),
    )


def opened_table(table: Table, options: Mapping[str, Any]) -> Opened:
    """Fit the points of a table, with fewer draws where they are very many."""
    from flops_fit_ray.analysis import fit_sweep

    draws = min(FIT_DEFAULTS.draws, max(MIN_DRAWS, MAX_REFITTED // len(table.points)))
    base = replace(FIT_DEFAULTS, draws=draws)
    return Opened(fit_sweep(table.points, fit_options_of(base, options)), table=table)


def open_source(source: StoragePath | None, options: Mapping[str, Any]) -> Opened:
    """Open a sweep directory or read a table, and fit it with the options.

    Raises:
        click.UsageError: an option of tables was given for a sweep.
        SpecError: the table cannot be read.
    """
    if source is not None and is_table(source):
        from flops_fit_ray.tables import read_table

        return opened_table(read_table(local_path(source), reading_of(options)), options)
    return opened_sweep(source, options)


def opened_sweep(source: StoragePath | None, options: Mapping[str, Any]) -> Opened:
    """Open a sweep directory, and fit it with the options.

    Raises:
        click.UsageError: an option of tables was given.
    """
    for name in ("columns", "units", "where", "best_of", "pool"):
        if options[name]:
            raise click.UsageError(f"{_flag(name)} is for tables, and {source} is a sweep")
    sweep = open_directory(source)
    wanted = fit_options_of(sweep.fit_options, options)
    fitted = sweep.fit if wanted == sweep.fit_options else sweep.fitted(wanted)
    return Opened(fitted, sweep=sweep)


def fit_options_of(base: FitOptions, options: Mapping[str, Any]) -> FitOptions:
    """Return the settings of a fit: `base`, with what was given on the command line."""
    names = {*CHOICES, *LIMITS}
    given: dict[str, Any] = {name: value for name, value in options.items() if name in names and value is not None}
    pins: dict[str, float] = {}
    for name, value in pairs("--pin", options["pins"]):
        try:
            pins[name] = float(value)
        except ValueError as e:
            raise click.UsageError(f"--pin {name}={value}: must be a number") from e
    try:
        check_pins(pins)
    except FitError as e:
        raise click.UsageError(f"--pin: {e}") from e
    if pins:
        given["pins"] = pins
    if given.keys() & {"window", "reach"}:
        given = {"window": None, "reach": None} | given
    try:
        return replace(base, **given)
    except FitError as e:
        raise click.UsageError(str(e)) from e


def pairs(option: str, values: Sequence[str]) -> list[tuple[str, str]]:
    """Split every NAME=VALUE of an option.

    Raises:
        click.UsageError: one is not of that form.
    """
    found = []
    for value in values:
        name, equals, right = value.partition("=")
        if not (name and equals and right):
            raise click.UsageError(f"{option} {value}: must be NAME=VALUE")
        found.append((name.strip(), right.strip()))
    return found


def _flag(name: str) -> str:
    """Return the option of a parameter."""
    singular = {"columns": "column", "units": "unit", "pins": "pin"}.get(name, name)
    return f"--{singular.replace('_', '-')}"


def command_of(table: Table, options: Mapping[str, Any]) -> str:
    """Return the command that fits this table so."""
    import shlex

    words = ["flops-fit-ray", "fit", str(table.path)]
    for name, value in options.items():
        for one in value if isinstance(value, tuple) else [value]:
            if one is not None:
                words += [_flag(name), str(one)]
    return shlex.join(words)
