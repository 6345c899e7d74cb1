"""How often do 95 % intervals hold the truth? Synthetic sweeps in known worlds, and published ones, budget by budget.

    python -m benchmarks.coverage [--worlds W] [--sweeps 200] [--draws 400] [--curve auto] [--surfaces] [--scattered 0]
    python -m benchmarks.coverage --table PATH... [--each COLUMN] [--draws 1000] [--curve auto]

In worlds: sweeps with noise on every surface of `plan --simulate`, three of which are of the fitted form. A JSON line
for each world, noise and method: the share of intervals that hold the exponent a of N_opt and the optimum N, D and L at
the largest budget (x1) and at ten times that (x10), with the bias of ln N_opt and the half width of its interval there,
with the number of laws without an interval, which count in no share, and with the share of fits that a test of lack of
fit refuses. 200 sweeps tell 0.95 within 0.015, 25 within 0.044.

Of tables: every cut of at least three lowest budgets, every higher budget. The law of the valleys through the lower
ones gives an interval of the minimum that is found at the higher one, whose own error it allows for. A JSON line for
each range of the extrapolation, of all tables together, and one for each table. Half widths and errors are factors for
N and D (median; 1 is exact), nats for L.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flops_fit_ray.analysis import FitOptions, Interval, Law, MethodName, Points, ValleyFit, fit_minima, fit_sweep
from flops_fit_ray.errors import FlopsFitError
from flops_fit_ray.planning.loss_surfaces import SURFACES, LossSurface
from flops_fit_ray.tables import TableOptions, load, read_table, values_of
from tests.surfaces import BUDGETS, scattered_on, sweep_about

NOISES = (0.003, 0.01)  # nats
BEYOND = (1, 10)  # times the largest budget
SCATTERED_TARGET = 1e21  # C, within the range of scattered runs
WITH_SURFACES: tuple[MethodName, ...] = ("valley", "surface_huber", "surface_coupled")
MIN_CUT = 3  # budgets from which a law is fitted to predict the others
RANGES = ((0.0, 3.2, "to 3.2x"), (3.2, 10.0, "to 10x"), (10.0, math.inf, "over 10x"))
QUANTITIES = ("N", "D", "L")


def main() -> None:
    """Print the lines of the worlds, or of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default="all", help=f"all, or some of: {','.join(SURFACES)}")
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--draws", type=int, help="of the bootstrap; 400, and 1,000 for tables")
    parser.add_argument("--sizes", type=int, default=7, help="per budget, from 1/4 to 4 times the optimum")
    parser.add_argument("--curve", default="parabola", help="of the valleys, or auto")
    parser.add_argument("--surfaces", action="store_true", help="with the surfaces, which take seconds a sweep")
    parser.add_argument("--scattered", type=int, default=0, help="so many runs all over N and D instead of a sweep")
    parser.add_argument("--table", type=Path, nargs="+", help="tables of runs instead of worlds")
    parser.add_argument("--each", help="with --table: a column whose values are tables of their own")
    arguments = parser.parse_args()
    if arguments.table:
        _print_tables(arguments.table, arguments.each, FitOptions(draws=arguments.draws or 1000, curve=arguments.curve))
        return
    for name in SURFACES if arguments.worlds == "all" else arguments.worlds.split(","):
        for noise in NOISES:
            for line in _world(SURFACES[name], noise, arguments):
                _print({"world": name, "noise": noise, **line})


def _print(line: Mapping[str, object]) -> None:
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in line.items()}
    sys.stdout.write(json.dumps(rounded) + "\n")
    sys.stdout.flush()


# Worlds


def _world(surface: LossSurface, noise: float, arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield a line for each method."""
    centres = [surface.optimum(budget)[0] for budget in BUDGETS]
    targets = [SCATTERED_TARGET] if arguments.scattered else [x * BUDGETS[-1] for x in BEYOND]
    truths = {target: surface.optimum(target) for target in targets}
    exponent = math.log(centres[-1] / centres[0]) / math.log(BUDGETS[-1] / BUDGETS[0])
    wanted = WITH_SURFACES if arguments.surfaces or arguments.scattered else WITH_SURFACES[:1]
    marks: dict[MethodName, list[dict[str, float]]] = {method: [] for method in wanted}
    for seed in range(arguments.sweeps):
        if arguments.scattered:
            points = scattered_on(surface.loss, arguments.scattered, noise=noise, seed=seed)
        else:
            points = sweep_about(surface.loss, BUDGETS, centres, sizes=arguments.sizes, noise=noise, seed=seed)
        options = FitOptions(draws=arguments.draws or 400, seed=seed, curve=arguments.curve)
        for method, (laws, fits) in _laws(points, options, wanted).items():
            if laws is not None:
                tested = {} if fits is None else {"refused": float(not fits)}
                marks[method].append(_marks(laws, exponent, truths) | tested)
    for method, rows in marks.items():
        yield {"method": method, "sweeps": arguments.sweeps, **_means(rows)}


def _marks(
    laws: tuple[Law, Law, Law], exponent: float, truths: Mapping[float, tuple[float, float, float]]
) -> dict[str, float]:
    """Return 1 for each interval that holds the truth, 0 for one that does not, NaN where there is none."""
    mark = {"a": _held(laws[0].exponent_interval(0.95), exponent)}
    for target, truth in truths.items():
        for quantity, law, value in zip(QUANTITIES, laws, truth, strict=True):
            mark[f"{quantity} x{target / BUDGETS[-1]:g}"] = _held(law.interval(target, 0.95), value)
    farthest = max(truths)
    within = laws[0].interval(farthest, 0.95)
    mark["bias"] = math.log(laws[0].at(farthest) / truths[farthest][0])
    mark["half_width"] = math.nan if within is None else math.log(within.factor) / 2
    return mark


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return means over the sweeps that have a value; the half width is a median, as a factor."""
    if not rows:
        return {"answered": 0}
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    known = {name: values[~np.isnan(values)] for name, values in columns.items()}
    means = {name: float(values.mean()) for name, values in known.items() if len(values)}
    if len(known["half_width"]):
        means["half_width"] = math.exp(float(np.median(known["half_width"])))
    return {"answered": len(rows), "no_interval": len(rows) - len(known["half_width"]), **means}


def _laws(
    points: Points, options: FitOptions, wanted: Sequence[MethodName]
) -> dict[MethodName, tuple[tuple[Law, Law, Law] | None, bool | None]]:
    """Return the laws of N, D and L of each method, and whether tests of lack of fit pass it (None: untested)."""
    if len(wanted) == 1:
        return {"valley": (fit_minima(points, options).method.laws, None)}
    fit = fit_sweep(points, replace(options, method=wanted[-1]))
    refused = {test.method for test in fit.lack_of_fit if test.verdict == "does_not_fit"}
    return {method: (fit.methods[method].laws, method not in refused) for method in wanted}


def _held(within: Interval | None, truth: float) -> float:
    return math.nan if within is None else float(within.holds(truth))


# Tables


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The minimum of one budget, as the law of lower ones predicts it; N, D, L each, N and D as log10."""

    table: str
    beyond: float  # C over the largest of the fitted
    inside: tuple[float, float, float]
    half_width: tuple[float, float, float]
    error: tuple[float, float, float]  # absolute


def _print_tables(paths: Sequence[Path], each: str | None, options: FitOptions) -> None:
    rows = []
    for path in paths:
        for value in [None] if each is None else values_of(path, load(path), each):
            where = () if each is None or value is None else ((each, value),)
            try:
                points = read_table(path, TableOptions(where=where)).points
                rows += list(predicted(value or f"{path.absolute().parent.name}/{path.name}", points, options))
            except FlopsFitError as e:
                sys.stderr.write(f"left out: {path} {value or ''}: {e}\n")
    for low, high, words in RANGES:
        _print(_table_line({"beyond": words}, [r for r in rows if low < r.beyond <= high]))
    _print(_table_line({"beyond": "all"}, rows))
    for name in dict.fromkeys(r.table for r in rows):
        _print(
            _table_line({"table": name, "beyond": "to 10x"}, [r for r in rows if r.table == name and r.beyond <= 10])
        )


def predicted(table: str, points: Points, options: FitOptions) -> Iterator[Predicted]:
    """Yield every minimum above every cut of at least three budgets."""
    full = fit_minima(points, options)
    budgets = np.unique(points.budget)
    for cut in range(MIN_CUT, len(budgets)):
        low = fit_minima(points.pick(points.budget <= budgets[cut - 1]), options)
        fitted = [v.flops for v in low.valleys if v.status == "interior"]
        laws = low.method.laws
        if len(fitted) < MIN_CUT or laws is None or laws[0].draws is None or full.errors is None:
            continue
        for i, valley in enumerate(full.valleys):
            if valley.status == "interior" and valley.budget > budgets[cut - 1]:
                yield _predicted(table, full, laws, i, valley.flops / max(fitted))


def _predicted(table: str, full: ValleyFit, laws: tuple[Law, Law, Law], i: int, beyond: float) -> Predicted:
    valley, errors = full.valleys[i], full.errors
    assert errors is not None
    found = (math.log10(valley.params_opt), math.log10(valley.tokens_opt), valley.loss_opt)
    rng = np.random.default_rng([i, len(full.valleys)])
    marks = []
    for law, covariance, value, log in zip(
        laws, (errors.log10_params, errors.log10_tokens, errors.loss), found, (True, True, False), strict=True
    ):
        assert law.draws is not None
        drawn, at = law.draws.at(valley.flops), law.at(valley.flops)
        drawn = np.log10(drawn) if log else drawn
        drawn = drawn[np.isfinite(drawn)]
        scatter = 0.0 if law.effects is None else law.effects.tau  # of a new budget about the law
        drawn = drawn + math.sqrt(covariance[i, i] + scatter**2) * rng.standard_normal(len(drawn))
        low, high = np.quantile(drawn, [0.025, 0.975])
        marks.append((float(low <= value <= high), (high - low) / 2, abs((math.log10(at) if log else at) - value)))
    inside, half_width, error = zip(*marks, strict=True)
    return Predicted(table=table, beyond=beyond, inside=inside, half_width=half_width, error=error)


def _table_line(names: Mapping[str, object], rows: Sequence[Predicted]) -> dict[str, object]:
    line: dict[str, object] = {**names, "tables": len({r.table for r in rows}), "predictions": len(rows)}
    if not rows:
        return line
    for k, quantity in enumerate(QUANTITIES):
        width, error = (float(np.median([m[k] for m in marks])) for marks in
                        ([r.half_width for r in rows], [r.error for r in rows]))  # fmt: skip
        line[quantity] = float(np.mean([r.inside[k] for r in rows]))
        line[f"{quantity}_half_width"] = width if quantity == "L" else 10**width
        line[f"{quantity}_error"] = error if quantity == "L" else 10**error
    return line


if __name__ == "__main__":
    main()
