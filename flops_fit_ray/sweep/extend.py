"""A sweep with further budgets, sizes or seeds. Experiments planned before keep their keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flops_fit_ray import formatting as fmt
from flops_fit_ray.errors import PlanDamagedError, SpecError
from flops_fit_ray.planning import Measurements, next_fault, unbracketed
from flops_fit_ray.spec import Budget, LrRule, SizeValue, SweepSpec, make_spec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath
from flops_fit_ray.sweep.directory import Sweep, open_sweep
from flops_fit_ray.sweep.recorded import Addition, LrAgain, as_measured, recorded_origin, recorded_spec
from flops_fit_ray.sweep.stopping import with_budgets, with_runs

SOURCE = "extend"
NO_TRAINING = {"budgets", "fit", "trackers", "name", "checkpoint", "resources_per_trial", "device", "max_retries"}


def extend_spec(
    spec: SweepSpec,
    *,
    budgets: Sequence[float] = (),
    sizes: Sequence[int] = (),
    seeds: int | None = None,
    device: str | None = None,
    lr: LrRule | None = None,
) -> SweepSpec:
    """Return the spec with further budgets, sizes (of the new budgets, else of all) and seeds, or another device.

    Args:
        lr: learning rates for the whole sweep, checked at the minima as those that were measured are.

    Raises:
        SpecError: an addition does not fit this sweep; all faults at once.
    """
    faults = list(_faults(spec, budgets, sizes))
    if faults:
        raise SpecError(SOURCE, faults)
    budget_sizes: list[SizeValue] | None = list(sizes) if sizes and budgets else None
    if spec.is_one_run and not sizes:  # the same model, trained for longer
        budget_sizes = spec.budgets[0].sizes
    wider = with_budgets(spec, [Budget(flops=c, sizes=budget_sizes) for c in budgets])
    if sizes and not budgets:
        wider = _with_sizes(wider, sizes)
    if seeds is not None:
        wider = wider.model_copy(update={"grid": wider.grid.model_copy(update={"seeds": seeds})})
    if device is not None:
        wider = wider.model_copy(update={"device": device})
    if lr is not None:
        grid = wider.grid
        if grid.lr_check == "auto":
            grid = grid.model_copy(update={"lr_check": "lower"})
        wider = wider.model_copy(update={"train": wider.train.model_copy(update={"lr": lr}), "grid": grid})
    return make_spec(wider.model_dump(mode="json"), SOURCE)  # model_copy does not validate


@dataclass(frozen=True, kw_only=True)
class BegunSweep:
    """The spec that a directory's sweep was last run with, and where its targets are; None: it was run by a program."""

    spec: SweepSpec
    base: Path | None


def begun_sweep(root: StoragePath) -> BegunSweep:
    """Read what a directory is extended from; without its plan where that is damaged, which the run makes again.

    Raises:
        DirectoryError, SpecError, StorageError: as `open_sweep`.
    """
    try:
        sweep = open_sweep(root)
        return BegunSweep(spec=sweep.spec, base=sweep.base)
    except PlanDamagedError:
        origin = recorded_origin(SweepPaths(root))
        if origin is None:
            raise
    base = None if origin.base is None else Path(origin.base)
    return BegunSweep(spec=recorded_spec(SweepPaths(root), sealed=True), base=base)


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A spec with what its directory has beside it, and the additions of `extend` that it holds."""

    spec: SweepSpec
    added: tuple[Addition, ...] = ()


def continued(
    spec: SweepSpec, paths: SweepPaths, say: Callable[[str], None], *, until: bool = False, new: bool = False
) -> Continued:
    """Return a spec with what its directory has beside it: additions of `extend`, runs of `--until`, shorter runs.

    Args:
        say: told in a line what is kept.
        until: with the budgets, too, that `--until` of earlier versions added.
        new: without additions of `extend` that it does not hold.
    """
    if not paths.spec.exists():
        return Continued(spec=spec)
    try:
        recorded = recorded_spec(paths)
    except SpecError:  # damaged: whoever runs the sweep says so
        return Continued(spec=spec)
    kept = _with_additions(spec, recorded, paths, say, new=new)
    spec = kept.spec
    if spec.is_one_run:
        return replace(kept, spec=_longer_run(spec, recorded, paths, say))
    if spec.model.model_dump(exclude={"axes"}) != recorded.model.model_dump(exclude={"axes"}):
        return kept
    known = {b.flops for b in spec.budgets}
    if until and spec.is_adaptive and known:
        added = [b for b in recorded.budgets if b.flops > max(known) and b.sizes is None]
        if added:
            say(f"the budgets C = {fmt.listed([fmt.flops(b.flops) for b in added], 5)} in {paths.root} are kept")
        spec = with_budgets(spec, added)
        known |= {b.flops for b in added}
    if recorded.grid.runs and not spec.grid.runs and known >= {b.flops for b in recorded.budgets}:
        say(f"{len(recorded.grid.runs)} single runs that were chosen in {paths.root} are kept")
        spec = with_runs(spec, recorded.grid.runs)
    return replace(kept, spec=spec)


def _with_additions(
    spec: SweepSpec, recorded: SweepSpec, paths: SweepPaths, say: Callable[[str], None], *, new: bool
) -> Continued:
    """Return a spec of the recorded model with what `extend` added to its directory."""
    origin, without_sizes = recorded_origin(paths), {"sizes", "axes"}
    same = spec.model.model_dump(exclude=without_sizes) == recorded.model.model_dump(exclude=without_sizes)
    if origin is None or not origin.added or not same:
        return Continued(spec=spec)
    try:
        wider, words = spec, list[str]()
        for addition in origin.added:
            wider, what = _added_again(wider, addition)
            words += what
    except SpecError as e:
        say(f"what `extend` added in {paths.root} does not fit this spec, and is left out: {'; '.join(e.faults)}")
        return Continued(spec=spec)
    if words and new:
        say(f"left out (--new): what `extend` added in {paths.root}: {', '.join(words)}")
        return Continued(spec=spec)
    if words:
        say(f"kept: what `extend` added in {paths.root}: {', '.join(words)} (--new leaves it out)")
    return Continued(spec=wider, added=origin.added)


def _added_again(spec: SweepSpec, addition: Addition) -> tuple[SweepSpec, list[str]]:
    """Return a spec with as much of an addition as it lacks, and in words what that is."""
    known = {b.flops for b in spec.budgets}
    budgets = [c for c in addition.budgets if c not in known]
    sizes = addition.sizes if budgets or not addition.budgets else ()
    wider = extend_spec(spec, budgets=budgets, sizes=sizes)
    words = [f"C = {fmt.flops(c)}" for c in budgets]
    if sizes and not budgets and wider != spec:
        words.append(f"size {', '.join(map(str, sizes))}")
    if addition.seeds is not None and wider.grid.seeds == addition.seeds_before != addition.seeds:
        wider = extend_spec(wider, seeds=addition.seeds)
        words.append(f"seeds {addition.seeds}")
    return (wider, words) if words else (spec, [])


def _longer_run(spec: SweepSpec, recorded: SweepSpec, paths: SweepPaths, say: Callable[[str], None]) -> SweepSpec:
    """Return a spec of one run with the shorter ones of the same run that a directory holds: it begins at their trunk.

    Returned as it is where what is recorded there is of another model or recipe.
    """
    same = as_measured(spec, recorded).model_dump(exclude=NO_TRAINING) == recorded.model_dump(exclude=NO_TRAINING)
    if not (same and recorded.is_one_run and recorded.budgets[0].sizes == spec.budgets[0].sizes):
        return spec
    known, longest = {b.flops for b in spec.budgets}, spec.budgets[-1].flops
    shorter = [b for b in recorded.budgets if b.flops < longest and b.flops not in known]
    if not shorter:
        return spec
    kept = ", ".join(fmt.flops(b.flops) for b in shorter)
    say(f"the run to C = {kept} in {paths.root} is kept: this one begins at its trunk")
    return with_budgets(spec, shorter)


def _faults(spec: SweepSpec, budgets: Sequence[float], sizes: Sequence[int]) -> list[str]:
    faults = []
    known, smallest = {b.flops for b in spec.budgets}, spec.budgets[0].flops
    for c in budgets:
        if not (math.isfinite(c) and c > 0):
            faults.append(f"--budget: must be a positive, finite number (got {c:g})")
        elif c in known:
            faults.append(f"--budget: C = {fmt.flops(c)} is in this sweep already; give another C")
        elif c < smallest and spec.is_adaptive:
            faults.append(
                f"--budget: C = {fmt.flops(c)} is below the smallest budget, {fmt.flops(smallest)}, at which the "
                "learning rate and the first valley were measured; start a new sweep (`run` with another --output)"
            )
    if sizes and spec.is_adaptive:
        faults.append("--size: an adaptive grid chooses its sizes itself; add budgets or seeds")
    if budgets and not sizes and not (spec.is_adaptive or spec.is_one_run) and spec.model.sizes == "auto":
        faults.append("--budget: this sweep lists the sizes of each budget; give those of the new budget with --size")
    return faults


def _with_sizes(spec: SweepSpec, sizes: Sequence[int]) -> SweepSpec:
    """Add these sizes to every list of sizes that lacks them."""

    def union(listed: list[SizeValue]) -> list[SizeValue]:
        return [*listed, *(s for s in sizes if s not in listed)]

    budgets = [b if b.sizes is None else b.model_copy(update={"sizes": union(b.sizes)}) for b in spec.budgets]
    model = spec.model
    if isinstance(model.sizes, list):
        model = model.model_copy(update={"sizes": union(model.sizes)})
    return spec.model_copy(update={"budgets": budgets, "model": model})


def better_lr(sweep: Sweep) -> tuple[LrRule, LrAgain]:
    """Return the learning rates that a sweep's checks ask for, and the same with the runs that they rest on.

    Raises:
        SpecError: no other rate was tried at a minimum, or none was clearly better.
    """
    if sweep.found_lr is None:
        fault = (
            "--lr-again: no other learning rates were tried at the minima, so no better ones are known; set "
            "grid.lr_check to all, and run the sweep again: only the checks are trained"
        )
        raise SpecError(SOURCE, [fault])
    if not sweep.lr_limited:
        fault = f"--lr-again: none of {len(sweep.lr_checks)} checks found a clearly better learning rate; leave it out"
        raise SpecError(SOURCE, [fault])
    from flops_fit_ray.sweep._result_arrays import rates_tried

    rule = sweep.found_lr
    rows = [*rates_tried(sweep.results), *(() if sweep.lr_again is None else sweep.lr_again.tried)]
    rates: dict[tuple[float, float], set[float]] = {}
    for n, d, lr, _ in rows:
        rates.setdefault((n, d), set()).add(lr)
    tried = tuple(row for row in rows if len(rates[row[:2]]) > 1)
    return rule, LrAgain(base=rule.base, at=rule.at, exponent=rule.exponent, tried=tried)


def unbracketed_budgets(sweep: Sweep, spec: SweepSpec, measurements: Measurements) -> list[str]:
    """Describe each budget that the sweep lacks, and whose valley its law puts beyond the data or the steps.

    Only of an adaptive grid: sizes that a spec lists are run as they are written.
    """
    known = {b.flops for b in sweep.spec.budgets}
    added = [b.flops for b in spec.budgets if b.flops not in known]
    if not added or not spec.is_adaptive:
        return []
    law = sweep.fit.params_opt if sweep.results else None
    if law is None:  # as for a sweep that begins
        return [fault for c in added if (fault := next_fault(spec, measurements, c))]
    return [fault for c in added if (fault := unbracketed(spec, measurements, c, law.at))]
