"""Comparability of two sweeps' losses: the loss function, its unit, the data, and what counts as a token."""

from __future__ import annotations

from collections.abc import Iterator

from flops_fit_ray.flags import Flag
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.tables import Table


def comparability(first: Sweep | Table, second: Sweep | Table) -> list[Flag]:
    """Return what makes the losses of two sweeps or tables differ for other reasons than their recipes.

    A flag of code `other_loss` says that they cannot be compared at all.
    """
    if isinstance(first, Sweep) and isinstance(second, Sweep):
        return [*_of_loss(first, second), *_of_data(first, second)]
    return [*_of_units(first, second), *_assumed(first, second)]


def _of_loss(first: Sweep, second: Sweep) -> Iterator[Flag]:
    one, other = first.spec, second.spec
    kinds = [f"{spec.loss}{f' in {spec.loss_in}' if spec.loss_in else ''}" for spec in (one, other)]
    held_out = [sweep.loss_name for sweep in (first, second)]
    if kinds[0] != kinds[1] or held_out[0] != held_out[1]:
        shown = [f"{kind} ({name})" for kind, name in zip(kinds, held_out, strict=True)]
        yield Flag(
            "other_loss",
            "severe",
            f"THE LOSSES ARE OF DIFFERENT KINDS: {shown[0]} and {shown[1]}; L_opt and a speedup mean nothing",
        )


def _of_data(first: Sweep, second: Sweep) -> Iterator[Flag]:
    one, other = (sweep.plan.measurements.data for sweep in (first, second))
    if one.token_unit != other.token_unit:
        yield Flag("other_data", "severe", f"the tokens are not the same: {one.token_unit} and {other.token_unit}; "
                   "losses per token of different tokenizers are no measure of a recipe")  # fmt: skip
    if one.fingerprint != other.fingerprint:
        yield Flag("other_data", "warning", "the data differ (their fingerprints do): the speedup is of recipe and "
                   "data together, and means something only if both are evaluated on the same text")  # fmt: skip


def _of_units(first: Sweep | Table, second: Sweep | Table) -> Iterator[Flag]:
    units = [one.loss_in if isinstance(one, Table) else one.spec.loss_in for one in (first, second)]
    if None not in units and units[0] != units[1]:
        yield Flag("other_loss", "severe", f"THE LOSSES ARE IN DIFFERENT UNITS: {units[0]} and {units[1]}; L_opt and a "
                   "speedup mean nothing (--unit loss=bits makes nats of a table in bits per token)")  # fmt: skip


def _assumed(first: Sweep | Table, second: Sweep | Table) -> Iterator[Flag]:
    tables = [one.path.name for one in (first, second) if isinstance(one, Table)]
    yield Flag("assumed", "info", f"{' and '.join(tables)} {'does' if len(tables) == 1 else 'do'} not say which data, "
               "tokenizer and loss the runs have: taken to be the same in both")  # fmt: skip
