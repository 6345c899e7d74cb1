"""Facts that a directory keeps of its sweep beside spec and plan: what it began with, and the measured speed."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass

from flops_fit_ray.planning import Rates, RecordedRates, SweepConstants
from flops_fit_ray.storage.atomic import read_json, write_json
from flops_fit_ray.storage.codec import Record, read_value, value_of
from flops_fit_ray.storage.paths import SCHEMA_VERSION, SweepPaths
from flops_fit_ray.storage.storage_path import check_store_answers


@dataclass(frozen=True, kw_only=True)
class Origin(Record):
    """Facts of the plan that nothing else holds, so that a damaged one can be made again.

    They are the command that resumes the sweep, the directory of its code, and the constants that its keys rest on.
    """

    command: str
    base: str | None = None
    frame: SweepConstants | None = None


def record_origin(paths: SweepPaths, origin: Origin) -> None:
    """Write it, unless it is there.

    Raises:
        StorageError: the directory cannot be written.
    """
    if recorded_origin(paths) != origin:
        write_json(paths.origin, {"schema_version": SCHEMA_VERSION, **asdict(origin)}, sealed=True)


def recorded_origin(paths: SweepPaths) -> Origin | None:
    """Read it; None where there is none that can be believed, as in directories of earlier versions."""
    return read_value(Origin, paths.origin)


def recorded_rates(paths: SweepPaths, constants: SweepConstants) -> Rates | None:
    """Read the speed that `check` measured for this sweep; None without one, or if it is of another sweep."""
    recorded = read_value(RecordedRates, paths.rates)
    return None if recorded is None or recorded.identity != constants.identity else recorded.rates


def record_rates(paths: SweepPaths, constants: SweepConstants, rates: Rates) -> None:
    """Write the speed that `check` measured into the sweep directory, for the price of its plan.

    Raises:
        StorageError: the directory cannot be written.
    """
    content = {"schema_version": SCHEMA_VERSION, "identity": constants.identity, "rates": rates.to_json()}
    write_json(paths.rates, content, sealed=True)


def recorded_constants(paths: SweepPaths) -> SweepConstants | None:
    """Read the constants of the directory's sweep; the planner takes them if the sweep is still the same."""
    check_store_answers(paths.root)
    content = read_json(paths.plan) or {}
    with contextlib.suppress(ValueError):
        return value_of(SweepConstants, content.get("frame") or {})
    origin = recorded_origin(paths)
    return None if origin is None else origin.frame
