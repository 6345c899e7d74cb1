"""The demo's question answered by us and by what people write by hand: wall time to the same interval.

    python -m benchmarks.sweep [--short] [--peers plain,tune,trainer] [--trainer-python PYTHON]

Ours is `flops-fit-ray run` of examples/bytes from its start to its end, report and all. The peers (`sweep_peers.py`)
train a full grid: 7 sizes from 1/4 to 4 times the optimum at every budget, which they know beforehand, each from
scratch for its exact D, at the demo's learning rates: one after the other in a plain loop, as trials of Ray Tune,
and by Hugging Face's Trainer in a loop (by `--trainer-python`, a Python that has transformers beside what the demo
needs). They are fitted by us.

Intervals of one sweep are wide or narrow by chance. So those of both designs are simulated, on the surface that the
demo's own runs gave, as factors within which N_opt is known at ten times the largest budget, and the seconds of a
peer count times (ln its factor / ln ours)²: as long as it would train for our interval. `--short` has smaller
budgets, and peers train a tenth of each D: the seconds of their steps count tenfold, all others once. One JSON line
for each peer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Line
from benchmarks.parts import DEMO
from flops_fit_ray.analysis import FitOptions, Law, Points, fit_sweep
from flops_fit_ray.planning import Measurements, ModelSize, make_plan
from flops_fit_ray.planning.cells import max_steps, resolve_lr, steps_of
from flops_fit_ray.planning.loss_surfaces import additive
from flops_fit_ray.spec import SweepSpec, read_spec
from flops_fit_ray.sweep.directory import open_sweep
from flops_fit_ray.sweep.simulate import Simulation, simulate_spec
from flops_fit_ray.training.preflight.model_size import SpecMeasurer

BUDGETS = {False: [6e10, 2e11, 6e11, 2e12], True: [3e10, 6e10, 1.2e11, 2.4e11]}  # by --short
SHORTER = 10  # by which peers' runs are cut short by --short
SURFACE = additive("demo", (1.02, 17.6, 404.0, 0.343, 0.487))  # as the demo's runs gave it (docs/defaults.md)
NOISE = 0.03  # nats, about its valleys
SIZES, WINDOW = 7, 4.0
SLOTS = {"plain": 1, "tune": 2, "trainer": 1}
TARGETS = {"plain": 8.0, "tune": 4.0, "trainer": 8.0}
BEYOND = 10.0
Cell = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One way to the answer: its wall time, and what it found."""

    seconds: float  # with those that were cut short
    measured: float  # without
    experiments: int
    exponent: float | None  # of N_opt
    within: tuple[float, float] | None  # 95 %


def main() -> None:
    """Run ours and the peers one after the other, and print a line for each peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="about 6 minutes on two quiet cores")
    parser.add_argument("--peers", default="plain,tune", help=f"some of: {','.join(SLOTS)}")
    parser.add_argument("--trainer-python", default=sys.executable)
    parser.add_argument("--sweeps", type=int, default=20, help="simulated, for the intervals")
    arguments = parser.parse_args()
    budgets, shorter = BUDGETS[arguments.short], SHORTER if arguments.short else 1
    spec = read_spec(DEMO / "sweep.yaml", [f"budgets={json.dumps(budgets)}"])
    measurements = SpecMeasurer(DEMO).measure(spec)
    full = full_grid(spec, measurements)
    simulated = [
        simulate_spec(
            one, make_plan(one, measurements), surface=SURFACE, noise=NOISE, sweeps=arguments.sweeps, slots=[2]
        )
        for one in (spec, full)
    ]
    with tempfile.TemporaryDirectory() as where:
        own = ours(Path(where), budgets)
        for name in arguments.peers.split(","):
            python = arguments.trainer_python if name == "trainer" else sys.executable
            ran = peer(name, python, Path(where), cells_of(full, measurements), shorter)
            line(name, own, ran, simulated, arguments.short).print()


def full_grid(spec: SweepSpec, measurements: Measurements) -> SweepSpec:
    """Return the spec whose every budget has its seven sizes, as far as the data allow them, each a run of its own."""
    budgets = []
    for budget in spec.budgets:
        centre = optimum(measurements, budget.flops)
        wanted = centre * np.geomspace(1 / WINDOW, WINDOW, SIZES)
        near = {min(measurements.sizes, key=lambda s: abs(math.log(s.params / n))).size for n in wanted}
        sizes = [s for s in measurements.by_params if s.size in near]
        most = max_steps(spec, measurements)
        kept = [s.size for s in sizes if steps_of(spec, measurements, budget.flops, s) <= most]
        budgets.append({"flops": budget.flops, "sizes": kept})
    overrides = [f"budgets={json.dumps(budgets)}", "grid.trunk=false", "grid.seeds=0"]
    return read_spec(DEMO / "sweep.yaml", overrides)


def optimum(measurements: Measurements, budget: float) -> float:
    """N of the lowest loss of the surface among the sizes, at C = `budget` by the counted FLOPs."""
    losses = [float(SURFACE.loss(s.params, budget / s.flops_per_token)) for s in measurements.by_params]
    return float(measurements.by_params[int(np.argmin(losses))].params)


def cells_of(full: SweepSpec, measurements: Measurements) -> list[Cell]:
    """Return the runs of a full grid, as the peers take them."""
    by_label: Mapping[object, ModelSize] = {s.size: s for s in measurements.sizes}
    found = []
    for budget in full.budgets:
        for size in (by_label[label] for label in budget.sizes or ()):
            steps = steps_of(full, measurements, budget.flops, size)
            lr = resolve_lr(full, size, budget.flops)
            cell = {"d_model": size.size, "steps": steps, "lr": lr, "budget": budget.flops, "params": size.params}
            found.append(cell)
    return found


def ours(where: Path, budgets: Sequence[float]) -> Ran:
    """Run the demo as its users do."""
    command = [sys.executable, "-m", "flops_fit_ray", "run", str(DEMO / "sweep.yaml"), "--quiet"]
    command += ["--output", str(where / "ours"), "--set", f"budgets={json.dumps(list(budgets))}"]
    seconds = _timed(command)
    sweep = open_sweep(where / "ours")
    law = sweep.fit.params_opt
    return Ran(
        seconds=seconds,
        measured=seconds,
        experiments=len(sweep.results),
        exponent=None if law is None else law.exponent,
        within=None if law is None else _ends(law),
    )


def peer(name: str, python: str, where: Path, cells: Sequence[Cell], shorter: int) -> Ran:
    """Run a peer, with steps that are cut short by a factor and counted as often."""
    given, answer = where / "cells.json", where / f"{name}.json"
    given.write_text(json.dumps([cell | {"steps": max(1, cell["steps"] // shorter)} for cell in cells]))
    measured = _timed([python, "-m", "benchmarks.sweep_peers", name, str(given), str(answer)])
    found = json.loads(answer.read_text())
    training = sum(one["seconds"] for one in found) / SLOTS[name]
    exponent, within = None, None
    if shorter == 1:
        exponent, within = _exponent(cells, [one["loss"] for one in found])
    return Ran(
        seconds=measured + (shorter - 1) * training,
        measured=measured,
        experiments=len(cells),
        exponent=exponent,
        within=within,
    )


def _timed(command: Sequence[str]) -> float:
    began = time.perf_counter()
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(  # noqa: S603 - our own command
        command, cwd=root, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


def _exponent(cells: Sequence[Cell], losses: Sequence[float]) -> tuple[float | None, tuple[float, float] | None]:
    budget, params, steps = (np.array([float(c[name]) for c in cells]) for name in ("budget", "params", "steps"))
    points = Points(budget=budget, flops=budget, params=params, tokens=steps * 512, loss=np.array(losses))
    law = fit_sweep(points, FitOptions()).methods["valley"].params_opt
    return (None, None) if law is None else (law.exponent, _ends(law))


def _ends(law: Law) -> tuple[float, float] | None:
    within = law.exponent_interval(0.95)
    return None if within is None else (within.low, within.high)


def line(name: str, own: Ran, ran: Ran, simulated: Sequence[Simulation], short: bool) -> Line:
    """Say how much longer a peer takes for the same interval; `simulated` are ours and the full grid."""
    factors = [math.log(s.factor) for s in simulated]
    narrower = (factors[1] / factors[0]) ** 2
    meets = (
        own.within is None
        or ran.within is None
        or max(own.within[0], ran.within[0]) <= min(own.within[1], ran.within[1])
    )
    return Line(
        name=f"sweep, {name}{', short' if short else ''}",
        ratio=round(ran.seconds * narrower / own.seconds, 2),
        ci95=None,
        pairs=1,
        target=TARGETS[name],
        limit="",
        same_answer=meets and all(s.coverage >= 0.9 for s in simulated),
        details={
            "seconds": [round(own.seconds, 1), round(ran.seconds, 1)],
            "seconds_measured": [round(own.measured, 1), round(ran.measured, 1)],
            "experiments": [own.experiments, ran.experiments],
            "exponent": [own.exponent, ran.exponent],
            "interval": [own.within, ran.within],
            "simulated": {
                "factor": [round(s.factor, 3) for s in simulated],
                "coverage": [s.coverage for s in simulated],
                "bias": [round(s.bias, 3) for s in simulated],
                "flops": [s.flops for s in simulated],
            },
            "ratio_of_seconds": round(ran.seconds / own.seconds, 2),
        },
    )


if __name__ == "__main__":
    main()
