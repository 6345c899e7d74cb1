"""Runs of tables and sweep directories with the value that each has on a second axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flops_fit_ray.analysis import AxisFit, Points, fit_axis, group_by_nearness, json_value
from flops_fit_ray.errors import FitError, SpecError
from flops_fit_ray.flags import Flag
from flops_fit_ray.formatting import did_you_mean, listed
from flops_fit_ray.planning import trunk_numbers
from flops_fit_ray.sweep._result_arrays import points_of
from flops_fit_ray.sweep.comparability import comparability

if TYPE_CHECKING:
    from flops_fit_ray.sweep.directory import Sweep
    from flops_fit_ray.tables import Table, TableOptions


@dataclass(frozen=True, kw_only=True, eq=False)
class AxisRuns:
    """Runs, the value of each on the axis, and what was assumed of them."""

    points: Points
    values: tuple[float | str, ...]
    flags: tuple[Flag, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepAxis:
    """A second axis that a sweep was run with; `fit` is None where the runs so far do not tell, as `problem` says."""

    name: str
    fit: AxisFit | None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; `fit` as `axis --json` prints it."""
        fit = None if self.fit is None else json_value(self.fit.to_json())
        return {"name": self.name, "problem": self.problem, "fit": fit}


def axes_of(sweep: Sweep) -> tuple[SweepAxis, ...]:
    """Compare the values on each axis of a sweep, as far as they have run, by the options of its fit."""
    options, found = sweep.fit_options, []
    for axis in sweep.plan.measurements.axes:
        try:
            runs = axis_runs([sweep], axis.name)
            fit = fit_axis(
                runs.points, axis.name, runs.values, reference=runs.values[0] if runs.values else None,
                confidence=options.confidence, draws=options.draws, seed=options.seed, known=runs.flags,
            )  # fmt: skip
            found.append(SweepAxis(name=axis.name, fit=fit))
        except FitError as e:
            found.append(SweepAxis(name=axis.name, fit=None, problem=f"axis {axis.name}: {e}"))
    return tuple(found)


def axis_runs(sources: Sequence[Sweep | Path], name: str, options: TableOptions | None = None) -> AxisRuns:
    """Return the runs of sweeps and tables together.

    A sweep has the axis among the arguments of its model; a table has a column of that name, and the rows of each value
    are read as a table of their own.

    Raises:
        SpecError: one has no such axis or cannot be read, or the losses are of different kinds.
    """
    parts: list[tuple[Points, list[object]]] = []
    read: list[Sweep | Table] = []  # one of each source
    flags: list[Flag] = []
    for source in sources:
        if isinstance(source, Path):
            tables = _of_table(source, name, options)
            parts += [(table.points, [value] * len(table.points)) for table, value in tables]
            flags += [flag for table, _ in tables for flag in table.flags]
            read.append(tables[0][0])
        else:
            parts.append(_of_sweep(source, name))
            read.append(source)
    for other in read[1:]:
        found = comparability(read[0], other)
        if severe := next((flag for flag in found if flag.code == "other_loss"), None):
            raise SpecError(name, [str(severe)])
        flags += found
    values = _numbers([value for _, some in parts for value in some])
    return AxisRuns(points=_joined([points for points, _ in parts]), values=values, flags=tuple(dict.fromkeys(flags)))


def _of_table(path: Path, name: str, options: TableOptions | None) -> list[tuple[Table, str]]:
    from flops_fit_ray.tables import Optima, TableOptions, load, read_loaded, values_of

    options = options or TableOptions()
    file = load(path)
    try:
        values = values_of(path, file, name, options)
    except SpecError as e:
        raise SpecError(str(path), [str(fault).replace("--each", "--of", 1) for fault in e.faults]) from e
    found = []
    for value in values:
        table = read_loaded(path, file, replace(options, where=(*options.where, (name, value))))
        if isinstance(table, Optima):
            raise SpecError(str(path), ["is a table of optima; an axis needs a table with a row per run"])
        found.append((table, value))
    return found


def _of_sweep(sweep: Sweep, name: str) -> tuple[Points, list[object]]:
    """Return a sweep's points, with those of other values where it has the axis, and the value of each."""
    planned = {e.key: e for e in sweep.plan.experiments}
    own = next((axis for axis in sweep.plan.measurements.axes if axis.name == name), None)
    if own is not None:
        others = [r for r in sweep.results if (r.axis or "").partition("=")[0] == name]
        results = [*sweep.standing, *others]  # the sweep's own value first
        trunks = trunk_numbers(planned[r.key] for r in results) if sweep.shares_trunks else None
        return points_of(results, trunks=trunks), [planned[r.key].size_kwargs.get(name, own.base) for r in results]
    fixed = dict(sweep.spec.model.kwargs)
    sizes = {key: {**fixed, **e.size_kwargs} for key, e in planned.items()}
    found = [sizes[result.key].get(name) for result in sweep.standing]
    if any(value is None for value in found):
        known = sorted({key for kwargs in sizes.values() for key in kwargs})
        way_out = did_you_mean(name, known) or f"its model has {listed(known, 10) or 'none'}"
        raise SpecError(str(sweep.paths.root), [f"no argument of the model is called {name}; {way_out}"])
    return sweep.points, found


def _numbers(values: Sequence[object]) -> tuple[float | str, ...]:
    """Return the values as numbers where all are; else as words."""
    numbers = []
    for value in values:
        try:
            numbers.append(float(str(value)))
        except ValueError:
            return tuple(str(value) for value in values)
    return tuple(numbers) if np.isfinite(numbers).all() else tuple(str(value) for value in values)


def _joined(parts: Sequence[Points]) -> Points:
    def all_of(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    flops = all_of("flops")
    labelled = all(part.labelled for part in parts)
    starts = np.cumsum([0, *(part.num_runs for part in parts)])
    run = None
    if any(part.run is not None for part in parts):
        run = np.concatenate([part.runs + start for part, start in zip(parts, starts, strict=False)])
    budget = all_of("budget") if labelled else group_by_nearness(flops)
    return Points(budget=budget, flops=flops, params=all_of("params"), tokens=all_of("tokens"), loss=all_of("loss"),
                  run=run, labelled=labelled)  # fmt: skip
