"""Words of the run that finished a sweep, kept so that a run with nothing left to do says them again without a fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from flops_fit_ray._version import __version__
from flops_fit_ray.errors import FlopsFitError
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


def finished_sweep(
    paths: SweepPaths, spec: SweepSpec, say: Callable[[str], object] = bool
) -> tuple[Sweep, Finished] | None:
    """Return a sweep that this spec has completed, with the words of that run; None where anything is left to do.

    Args:
        say: told in a line what the directory has beside the spec, as by a run.

    Left to do is, too, what was changed: the spec, the version of this package, results, the report. Whether the code
    and the data have changed is for the caller to see.
    """
    kept = read_value(Finished, paths.finished)
    if kept is None or kept.version != __version__ or not paths.report.exists() or paths.forecast_names():
        return None
    try:
        sweep = open_sweep(paths.root)
    except FlopsFitError:  # whoever runs the sweep says so
        return None
    if not (sweep.complete and kept.results_sha256 == sweep.results_sha256):
        return None
    said: list[str] = []
    if as_measured(spec, sweep.spec) != sweep.spec:
        from flops_fit_ray.sweep.extend import continued  # with what chooses runs: not needed where nothing was added

        if as_measured(continued(spec, paths, said.append).spec, sweep.spec) != sweep.spec:
            return None
    for line in said:
        say(line)
    return sweep, kept
