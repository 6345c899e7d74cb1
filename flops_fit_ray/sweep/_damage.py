"""Warnings of files of a sweep that are gone, or are not what was written."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_ray import formatting as fmt
from flops_fit_ray.flags import Flag
from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.planning import Experiment

MAX_NAMED = 5  # experiments in a warning


def outcome_flags(ledger: Ledger, damaged: Sequence[Experiment]) -> tuple[Flag, ...]:
    """Return a warning of outcomes that are damaged, and one of those that are gone; none without any.

    Args:
        damaged: the experiments that have ended, and have no outcome that can be believed.
    """
    there = {e.key for e in damaged if ledger.has_outcome_file(e.key)}
    torn, gone = ([e for e in damaged if (e.key in there) is is_there] for is_there in (True, False))
    found = []
    if torn:
        found.append(
            f"damaged, and left out: {_named(torn)}: what is in result.json or failure.json there is not what was "
            "written; `run` keeps it aside and trains again"
        )
    for end, file in (("completed", "result.json"), ("failed", "failure.json")):
        if some := [e for e in gone if ledger.noted_ends.get(e.key) == end]:
            found.append(
                f"gone: {_named(some)}: {end}, and {file} is not there any more; put it back, or `run` trains again"
            )
    return tuple(Flag("damaged", "warning", message) for message in found)


def curve_flags(results: Sequence[ExperimentResult], *, any_curve: bool) -> tuple[Flag, ...]:
    """Return a warning of completed experiments without a curve that can be read.

    Args:
        any_curve: whether others have one; sweeps of synthetic losses have none.
    """
    if not (results and any_curve):
        return ()
    message = (
        f"curve.parquet is gone or damaged: {_named(results)}: their losses stand; the envelope and the figure of the "
        "training losses are without them"
    )
    return (Flag("damaged", "warning", message),)


def _named(some: Sequence[Experiment] | Sequence[ExperimentResult]) -> str:
    names = [f"C {fmt.flops(e.budget)}, size {e.size} ({e.key})" for e in some]
    return fmt.listed(names, MAX_NAMED, "; ")
