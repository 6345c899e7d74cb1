"""Words of the run that finished a sweep, kept so that a run with nothing left to do says them again without a fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from flops_fit_ray._version import __version__
from flops_fit_ray.errors import FlopsFitError
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning.code_facts import CodeFacts
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.atomic import write_json
from flops_fit_ray.storage.codec import Record, read_value
from flops_fit_ray.storage.paths import SCHEMA_VERSION, SweepPaths
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.sweep.recorded import as_measured


@dataclass(frozen=True, kw_only=True)
class Finished(Record):
    """The words of a run that completed its sweep, and what they are of."""

    version: str  # of this package
    results_sha256: str
    code: str  # digest of the user's code
    answer: str  # fit and minima in words; empty for a single run
    has_problem: bool  # the fit has no law


def record_finished(sweep: Sweep, code: str, answer: str) -> None:
    """Keep the words of a run that completed a sweep and wrote its report.

    Raises:
        StorageError: the directory cannot be written.
    """
    found = Finished(
        version=__version__,
        results_sha256=sweep.results_sha256,
        code=code,
        answer=answer,
        has_problem=not sweep.spec.is_one_run and bool(sweep.fit.problem),
    )
    write_json(sweep.paths.finished, {"schema_version": SCHEMA_VERSION, **asdict(found)}, sealed=True)


@dataclass(frozen=True, kw_only=True)
class FinishedSweep:
    """A sweep that a spec has completed, with the words of the run that did."""

    sweep: Sweep
    words: Finished
    kept: tuple[str, ...]  # lines on what the directory has beside the spec


def finished_sweep(
    paths: SweepPaths, spec: SweepSpec, base: Path | None, is_same: Callable[[Sweep, CodeFacts], bool]
) -> FinishedSweep | None:
    """Return the sweep that a request has completed; None where a run may have something to do, or something to say.

    Something to do is, too, what was changed: the spec, the code, the version of this package, results, the report.

    Args:
        base: directory of the user's code; None for objects of a program.
        is_same: tells whether code, and data as far as they are looked at, are those of the sweep.
    """
    words = read_value(Finished, paths.finished) if paths.finished.exists() else None
    if words is None or words.version != __version__ or not paths.report.exists() or paths.forecast_names():
        return None
    try:
        sweep = open_sweep(paths.root)
    except FlopsFitError:  # whoever runs the sweep says so
        return None
    if not (sweep.complete and words.results_sha256 == sweep.results_sha256):
        return None
    said: list[str] = []
    if as_measured(spec, sweep.spec) != sweep.spec:
        from flops_fit_ray.sweep.extend import continued  # with what chooses runs: not needed where nothing was added

        if as_measured(continued(spec, paths, said.append).spec, sweep.spec) != sweep.spec:
            return None
    code = Ledger(paths).code(words.code)
    if code is None or sweep.base != base or sweep.writer is not None or not is_same(sweep, code):
        return None
    return FinishedSweep(sweep=sweep, words=words, kept=tuple(said))
