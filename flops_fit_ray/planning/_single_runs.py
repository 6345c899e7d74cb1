"""Single runs beside the grid, as the spec names them and as `--until` chooses them: more sizes, budgets and seeds."""

from __future__ import annotations

from collections.abc import Iterator

from flops_fit_ray import formatting as fmt
from flops_fit_ray.planning.cells import max_steps, steps_of
from flops_fit_ray.planning.experiment import Experiment, Measurements
from flops_fit_ray.spec import SingleRun, SweepSpec

SEEDS = 1000  # between the seeds of repeats, far from those of the grid
WHY = "chosen to narrow N_opt at the target"


def is_single_run(e: Experiment) -> bool:
    """Return True for an experiment that is in the plan as a run beside the grid alone."""
    return e.reason == WHY


def seed_of(spec: SweepSpec, run: SingleRun) -> int | None:
    """Return the seed of a run; None for that of the sweep."""
    return spec.train.seed + SEEDS * run.seed if run.seed else None


def single_run_faults(spec: SweepSpec, measurements: Measurements) -> Iterator[str]:
    """Yield the runs that cannot be trained."""
    sizes = {s.size: s for s in measurements.sizes}
    most = max_steps(spec, measurements)
    for run in spec.grid.runs:
        where = f"grid.runs: C = {fmt.flops(run.flops)}, size {run.size}"
        if run.size not in sizes:
            known = fmt.listed([str(size) for size in sizes], 5)
            yield f"{where}: is no size of this sweep; it has {known}"
            continue
        steps = steps_of(spec, measurements, run.flops, sizes[run.size])
        if not 1 <= steps <= most:
            limit = "less than one batch" if steps < 1 else f"{steps:,} steps, and the data allow {most:,.0f}"
            yield f"{where}: D would be {limit}"
