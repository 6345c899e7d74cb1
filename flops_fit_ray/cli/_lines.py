"""Lines that resume a sweep: all that `run` or `extend` was given and the sweep directory does not know."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit_ray.cli._common import base_of
from flops_fit_ray.cli._resume import shell_line
from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.sweep.run_limits import RunLimits

if TYPE_CHECKING:
    from flops_fit_ray.spec import BudgetsFor


def run_options(
    root: StoragePath, overrides: Sequence[str], limits: RunLimits, limit: BudgetsFor | None = None
) -> list[str]:
    """Return the options of `run` that repeat this run."""
    sets = [word for override in overrides for word in ("--set", override)]
    return ["--output", str(root), *sets, *([] if limit is None else limit.options()), *limits.options()]


def command_line(
    path: Path,
    root: StoragePath,
    overrides: Sequence[str],
    limits: RunLimits | None = None,
    code: Path | None = None,
    limit: BudgetsFor | None = None,
    address: str | None = None,
    first: Sequence[str] = (),
) -> str:
    """Return the shell command that resumes this sweep.

    Args:
        limit: what budgets are chosen by that are not yet.
        first: options that are needed until the sweep is recorded.
    """
    from flops_fit_ray.engine.jobs import line_to_submit

    options = [*place_options(code, None), *run_options(root, overrides, limits or RunLimits(), limit)]
    job = line_to_submit(["flops_fit_ray.run", str(path), *options], base_of(path, code), first)
    return job or shell_line(["run", str(path), *options, *place_options(None, address), *first])


def extend_line(
    root: StoragePath,
    base: Path,
    limits: RunLimits,
    code: Path | None = None,
    address: str | None = None,
    first: Sequence[str] = (),
) -> str:
    """Return the shell command that resumes an extended sweep, by its directory; `base`: the directory of its code."""
    from flops_fit_ray.engine.jobs import line_to_submit

    arguments = ["extend", str(root), *limits.options()]
    job = line_to_submit(["flops_fit_ray", *arguments], base, first)
    return job or shell_line([*arguments, *place_options(code, address), *first])


def place_options(code: Path | None, address: str | None) -> list[str]:
    """Return the options that say where code is, and where experiments run."""
    cluster = address or os.environ.get("RAY_ADDRESS")
    given = {"--code": None if code is None else str(code.absolute()), "--address": cluster}
    return given_options(given)


def given_options(values: Mapping[str, object]) -> list[str]:
    """Return the words of the options that have a value; of a list of values, the option for each; True: a flag."""
    found: list[str] = []
    for name, value in values.items():
        if value is True:
            found.append(name)
        elif value is not None and value is not False:
            listed = value if isinstance(value, tuple) else (value,)
            found += [word for one in listed for word in (name, str(one))]
    return found
