"""A run of a sweep that is finished: said from files, without torch, Ray and a fit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit_ray.cli._put import put_text
from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath

if TYPE_CHECKING:
    from flops_fit_ray.planning.code_facts import CodeFacts
    from flops_fit_ray.spec import SweepSpec
    from flops_fit_ray.sweep.directory import Sweep


def say_finished(spec: SweepSpec, base: Path, root: StoragePath) -> int | None:
    """Print the answer of a sweep that is finished and of the same spec, code and version, and return the exit code.

    Code is compared by its files. Data that it makes are not read again; token files are, by a run as usual.

    Args:
        base: directory of the user's code.

    Returns:
        None where a run may have something to do, or something to say.
    """
    from flops_fit_ray.spec import is_data_path

    paths, began = SweepPaths(root), time.monotonic()
    files = [data for data in (spec.data.train, spec.data.eval) if data is not None and is_data_path(data)]
    if files or not paths.finished.exists():
        return None
    from flops_fit_ray.sweep.finished import finished_sweep

    def is_same(_: Sweep, code: CodeFacts) -> bool:
        from flops_fit_ray.training.user.source_code import code_differences

        return not code_differences(code, base)

    found = finished_sweep(paths, spec, base, is_same)
    if found is None:
        return None
    from flops_fit_ray.console.status_text import finished_lines

    what = "spec, code and version are those of before (data are read again when something is left to run)"
    put_text("\n".join(finished_lines(found, what, time.monotonic() - began)))
    return EXIT_FAILED if found.words.has_problem else EXIT_DONE
