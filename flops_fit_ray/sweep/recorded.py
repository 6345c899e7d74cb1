"""Facts that a directory keeps of its sweep beside the plan: its spec, what it began with, and the measured speed."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import Rates, RecordedRates, SweepConstants
from flops_fit_ray.storage.atomic import (
    is_missing,
    read_file,
    read_json,
    sealed_text,
    storage_error,
    text_seal,
    write_bytes,
    write_json,
)
from flops_fit_ray.storage.codec import Record, read_value, value_of
from flops_fit_ray.storage.paths import SCHEMA_VERSION, SweepPaths
from flops_fit_ray.storage.storage_path import check_store_answers

if TYPE_CHECKING:
    from flops_fit_ray.spec import LrRule, SweepSpec


@dataclass(frozen=True, kw_only=True)
class LrAgain(Record):
    """The learning rates that `extend --lr-again` took from checks, and the runs that they rest on."""

    base: float  # of the rule base·(N / at)^exponent
    at: float
    exponent: float
    tried: tuple[tuple[float, float, float, float], ...] = ()  # N, D, learning rate and loss, at two rates or more

    def is_of(self, rule: LrRule) -> bool:
        """Return True if it is this rule."""
        return (self.base, self.at, self.exponent) == (rule.base, rule.at, rule.exponent)


@dataclass(frozen=True, kw_only=True)
class Addition(Record):
    """Budgets, sizes, seeds and learning rates that one `extend` added to a sweep."""

    budgets: tuple[float, ...] = ()  # C, FLOPs
    sizes: tuple[int, ...] = ()  # of these budgets; of all where there are none
    seeds: int | None = None  # instead of `seeds_before`
    seeds_before: int | Literal["auto"] | None = None
    lr: LrAgain | None = None


@dataclass(frozen=True, kw_only=True)
class Origin(Record):
    """Facts of the plan that nothing else holds, so that a damaged one can be made again.

    They are the command that resumes the sweep, the directory of its code, the constants that its keys rest on, and
    what was added to the spec that its user wrote.
    """

    command: str
    base: str | None = None
    frame: SweepConstants | None = None
    added: tuple[Addition, ...] = ()


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


def left_open(spec: SweepSpec) -> list[str]:
    """Name the settings of training that a spec leaves to a measurement, made once for each directory."""
    return [name for name in ("precision", "compile") if getattr(spec.train, name) == "auto"]


def as_measured(spec: SweepSpec, recorded: SweepSpec) -> SweepSpec:
    """Return a spec with what was measured for the recorded one where it leaves that open."""
    measured = {name: getattr(recorded.train, name) for name in left_open(spec)}
    return spec.model_copy(update={"train": spec.train.model_copy(update=measured)})


def record_spec(paths: SweepPaths, spec: SweepSpec) -> None:
    """Write the spec of a sweep, as it is resolved, into its directory.

    Raises:
        StorageError: the directory cannot be written.
    """
    from flops_fit_ray.spec import dump_spec

    write_bytes(paths.spec, sealed_text(dump_spec(spec)))


def recorded_spec(paths: SweepPaths, *, sealed: bool = False) -> SweepSpec:
    """Read the spec that a directory's sweep was last run with.

    Args:
        sealed: it was written by a version that sealed it.

    Raises:
        SpecError: there is none, it is no text, or it was changed after it was written.
        StorageError: it cannot be read now.
    """
    found = spec_of(paths, sealed=sealed)
    return found() if isinstance(found, functools.partial) else found


def spec_of(paths: SweepPaths, *, sealed: bool) -> SweepSpec | functools.partial[SweepSpec]:
    """Read the spec as `recorded_spec` does; return one that is as we wrote it as what parses it, for later.

    Raises:
        SpecError, StorageError: as `recorded_spec` says.
    """
    try:
        raw = read_file(paths.spec)
    except OSError as e:
        if not is_missing(paths.spec, e):
            raise storage_error(paths.spec, "read", e) from e
        raise SpecError(str(paths.spec), [f"cannot be read: {e.strerror}"]) from e
    if not (text_seal(raw) if sealed else text_seal(raw) is not False):
        changed = "was changed after it was written; run the spec that you wrote yourself again, which writes this one"
        raise SpecError(str(paths.spec), [changed])
    later = functools.partial(_parsed, raw, str(paths.spec))
    return later if text_seal(raw) else later()


def _parsed(raw: bytes, source: str) -> SweepSpec:
    from flops_fit_ray.spec import spec_from_bytes

    return spec_from_bytes(raw, source)
