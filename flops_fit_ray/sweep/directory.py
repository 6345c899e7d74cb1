"""A sweep directory read back: spec, plan, outcomes and fit. It reads files only, and works on a partial sweep."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit_ray.analysis import FitOptions
from flops_fit_ray.errors import DirectoryError, PlanDamagedError
from flops_fit_ray.flags import Flag, Flagged, warning
from flops_fit_ray.ledger import ExperimentResult, Failure, Ledger, Progress, results_sha256, results_table
from flops_fit_ray.planning import IN_FIT, Experiment, Plan, plan_from_json, trunk_numbers
from flops_fit_ray.storage.atomic import (
    has_mark,
    read_sealed,
)
from flops_fit_ray.storage.codec import value_of, without_collection
from flops_fit_ray.storage.lock import living_owner
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import StoragePath, check_store_answers
from flops_fit_ray.sweep._codes import mixed_code
from flops_fit_ray.sweep._damage import curve_flags, outcome_flags
from flops_fit_ray.sweep.recorded import LrAgain, Origin, recorded_origin, spec_of

if TYPE_CHECKING:
    import pandas as pd

    from flops_fit_ray.analysis import Analysis, Points, SweepFit
    from flops_fit_ray.planning.experiment import Role
    from flops_fit_ray.spec import LrRule, SweepSpec
    from flops_fit_ray.sweep._batch_checks import BatchCheck
    from flops_fit_ray.sweep._lr_checks import LrCheck

MAX_CURVES = 500  # experiments whose curves are read
STATUSES = (
    "completed",
    "diverged",
    "out_of_memory",
    "stalled",
    "failed",  # the user's own error
    "infrastructure",  # its worker or node died again and again
    "running",
    "damaged",  # it has ended, and its result or failure is gone, or is not what was written
    "waiting",  # for its parent's trunk
    "planned",
)


class _Spec:
    """The spec of a sweep, or what parses it when it is first asked for: `status` does without it."""

    def __get__(self, sweep: Sweep | None, _: type[Sweep]) -> SweepSpec:
        if sweep is None:
            raise AttributeError("spec")  # it has no default
        found = vars(sweep)["spec"]
        spec: SweepSpec = found() if isinstance(found, functools.partial) else found
        vars(sweep)["spec"] = spec
        return spec

    def __set__(self, sweep: Sweep, spec: SweepSpec | functools.partial[SweepSpec]) -> None:
        vars(sweep)["spec"] = spec


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Contents of one directory now. Fits are made when they are asked for, from what is completed."""

    paths: SweepPaths
    spec: _Spec = _Spec()
    plan: Plan
    results: tuple[ExperimentResult, ...]
    failures: tuple[Failure, ...]
    command: str  # that goes on with this sweep
    base: Path | None = None  # where the spec's targets are looked for; None: the sweep was run by a program

    @property
    def outcomes(self) -> tuple[ExperimentResult | Failure, ...]:
        """Return results and failures."""
        return (*self.results, *self.failures)

    @property
    def complete(self) -> bool:
        """Return True if every planned experiment has a result, and none will be added."""
        return self.plan.final and len(self.results) == len(self.plan.experiments)

    @property
    def counts(self) -> dict[str, int]:
        """Count the experiments in each status; all of `STATUSES`, so that the sum is the plan."""
        states = Counter(str(outcome.status) for outcome in self.outcomes)
        states["running"] = len(self.running)
        states["damaged"] = len(self.damaged)
        states["waiting"] = len(self.waiting)
        states["planned"] = len(self.plan.experiments) - states.total()
        return {status: states[status] for status in STATUSES}

    @cached_property
    def _open(self) -> tuple[Experiment, ...]:
        finished = {outcome.key for outcome in self.outcomes}
        return tuple(e for e in self.plan.experiments if e.key not in finished)

    @cached_property
    def running(self) -> tuple[tuple[Experiment, Progress], ...]:
        """The open experiments that gave a sign of life a short while ago."""
        ledger, begun = Ledger(self.paths), self.paths.begun_keys()
        open_ones = (e for e in self._open if e.key in begun)
        return tuple((e, progress) for e in open_ones if (progress := ledger.progress(e.key)) is not None)

    @cached_property
    def damaged(self) -> tuple[Experiment, ...]:
        """The open experiments that have ended, whose outcome is gone or not believed, and that do not run yet."""
        running = {e.key for e, _ in self.running}
        damaged = Ledger(self.paths).damaged(e.key for e in self._open if e.key not in running)
        return tuple(e for e in self._open if e.key in damaged)

    @cached_property
    def waiting(self) -> tuple[Experiment, ...]:
        """The open experiments that begin where another one, which is open too, has not been yet."""
        open_keys = {e.key for e in self._open}
        begun = {e.key for e, _ in self.running} | {e.key for e in self.damaged}
        trunks = {key for key in self.paths.trunk_keys() & open_keys if self.paths.trunk(key).finished()}
        return tuple(e for e in self._open if e.parent in open_keys and e.key not in begun and e.parent not in trunks)

    @property
    def num_begun(self) -> int:
        """Count the experiments without a result that have a checkpoint to resume from."""
        done = {r.key for r in self.results}
        begun = self.paths.begun_keys()
        left = (e.key for e in self.plan.experiments if e.key not in done and e.key in begun)
        return sum(bool(self.paths.checkpoints(key).finished()) for key in left)

    @property
    def writer(self) -> str | None:
        """Describe the process that runs this sweep now; None without one, as far as files and this machine tell."""
        return living_owner(self.paths)

    @property
    def num_deaths(self) -> int:
        """Count the deaths of workers and nodes, as far as they are known of experiments that have ended."""
        return sum(outcome.deaths for outcome in self.outcomes)

    @property
    def flops_spent(self) -> float:
        """Training FLOPs that the completed experiments executed."""
        return sum(r.flops if r.flops_executed is None else r.flops_executed for r in self.results)

    @property
    def device_seconds(self) -> float:
        """Seconds that devices spent on the completed experiments, each worker's counted."""
        return sum((r.seconds if r.seconds_executed is None else r.seconds_executed) * r.workers for r in self.results)

    @property
    def results_sha256(self) -> str:
        """Fingerprint of the losses; equal for an interrupted and an uninterrupted sweep."""
        return results_sha256(self.results)

    @property
    def loss_name(self) -> str:
        """Return the name of the loss for axes and tables."""
        from flops_fit_ray.spec import SYNTHETIC_LOSS

        if self.spec.loss == SYNTHETIC_LOSS:
            return "synthetic loss"
        return "held-out loss" if self.plan.measurements.data.eval_samples else "training loss, smoothed"

    @property
    def fit_options(self) -> FitOptions:
        """Return the options of the fit that the spec asks for."""
        return fit_options(self.spec, self.plan.reach)

    @cached_property
    def points(self) -> Points:
        """The completed experiments of the grid, their seeds and reruns as arrays."""
        from flops_fit_ray.sweep._result_arrays import points_of, token_cost, tried_in_sweep

        sizes = {s.size: s.params_non_embedding for s in self.plan.measurements.sizes}
        standing = self.standing
        planned = {e.key: e for e in self.plan.experiments}
        trunks = trunk_numbers(planned[r.key] for r in standing) if self.shares_trunks else None
        measured = token_cost(self.plan.measurements)
        epochs = {key: e.epochs for key, e in planned.items() if e.epochs is not None}
        probed = self.plan.lr is not None or self.lr_again is not None
        tried = tried_in_sweep(self.results, self.lr_again) if probed else None
        return points_of(standing, {r.key: sizes.get(r.size, 0) for r in standing}, trunks, measured, epochs, tried)

    @cached_property
    def standing(self) -> tuple[ExperimentResult, ...]:
        """The results that make the valleys: not probes and checks, and not what a rerun stands for."""
        replaced, roles = self._replaced_keys, {e.key: e.role for e in self.plan.experiments}
        return tuple(r for r in self.results if roles.get(r.key, r.role) in IN_FIT and r.key not in replaced)

    @property
    def replaced(self) -> tuple[ExperimentResult, ...]:
        """The results for which a rerun stands; on record, and drawn."""
        return tuple(r for r in self.results if r.key in self._replaced_keys)

    @property
    def _replaced_keys(self) -> set[str | None]:
        return {r.of for r in self.results if r.role == "rerun"}

    @property
    def replaced_points(self) -> list[tuple[float, float, float]]:
        """Budget, N and loss of the same."""
        return [(r.budget, float(r.params), r.loss) for r in self.replaced]

    @property
    def shares_trunks(self) -> bool:
        """On the CPU a run from scratch has the very bits of one from a trunk: what is shared is the recipe."""
        return self.spec.grid.trunk and self.spec.train.schedule == "wsd"

    @property
    def curves(self) -> Points | None:
        """Training losses along the way, for the envelope and the figure; None where hardly any were kept."""
        return self._curves[0]

    @property
    def _curve_damage(self) -> tuple[Flag, ...]:
        return curve_flags(self._curves[1], any_curve=self.curves is not None)

    @cached_property
    def _curves(self) -> tuple[Points | None, list[ExperimentResult]]:
        from flops_fit_ray.sweep._result_arrays import curves_of

        return curves_of(Ledger(self.paths), self.standing) if len(self.standing) <= MAX_CURVES else (None, [])

    @cached_property
    def fit(self) -> SweepFit:
        """The laws of all completed experiments."""
        return self.fitted(self.fit_options)

    def fitted(self, options: FitOptions) -> SweepFit:
        """Return the laws of all completed experiments by other options, with a warning where results are damaged."""
        from flops_fit_ray.analysis import fit_sweep

        fit = fit_sweep(self.points, options, self.curves)
        return replace(fit, warnings=(*self.damage, *self._curve_damage, *fit.warnings))

    @cached_property
    def analysis(self) -> Analysis:
        """The fit, questioned at ten times its largest budget."""
        from flops_fit_ray.analysis import analyse

        return analyse(self.fit)

    @cached_property
    def lr_again(self) -> LrAgain | None:
        """The rates of the sweep, where `extend --lr-again` took them from checks; None where they are others."""
        from flops_fit_ray.spec import LrRule

        rule = self.spec.train.lr
        if not isinstance(rule, LrRule) or (origin := recorded_origin(self.paths)) is None:
            return None
        return next((one.lr for one in reversed(origin.added) if one.lr is not None and one.lr.is_of(rule)), None)

    @cached_property
    def lr_checks(self) -> tuple[LrCheck, ...]:
        """Other learning rates beside the minima, where both runs are there."""
        from flops_fit_ray.sweep._lr_checks import lr_checks

        return lr_checks(self.results, self._run_sigma) if self._has_run("lr_check") else ()

    @cached_property
    def lr_limited(self) -> tuple[str, ...]:
        """The sentences of checks that found a clearly better rate."""
        python = self.base is None
        return tuple(check.words(self.found_lr, from_python=python) for check in self.lr_checks if check.better)

    @cached_property
    def batch_checks(self) -> tuple[BatchCheck, ...]:
        """Other batch sizes beside the minima, where both runs are there."""
        from flops_fit_ray.sweep._batch_checks import batch_checks

        if not self._has_run("batch_check"):
            return ()
        return batch_checks(self.results, {e.key: e for e in self.plan.experiments}, self._run_sigma)

    def _has_run(self, role: Role) -> bool:
        """True if there is something to hold against the noise, which costs a fit."""
        return any(r.role == role for r in self.results)

    @property
    def _run_sigma(self) -> float | None:
        """Standard deviation of one run's loss; None where nothing tells it."""
        from flops_fit_ray.analysis.prediction import run_noise

        noise = run_noise(self.fit)
        return None if noise is None else noise[0]

    @cached_property
    def batch_limited(self) -> tuple[str, ...]:
        """The sentences of checks that found a clearly better batch size."""
        return tuple(check.words(from_python=self.base is None) for check in self.batch_checks if check.better)

    @cached_property
    def found_lr(self) -> LrRule | None:
        """The learning rate rule that the checks and the probes ask for; None without a check."""
        from flops_fit_ray.sweep._lr_checks import found_rule

        return found_rule(self.results, self.plan.lr)

    @property
    def warnings(self) -> tuple[Flagged, ...]:
        """Return the warnings of the fit, of learning rate and batch size and of the plan, each once."""
        return tuple(dict.fromkeys([*(flag.text for flag in self.fit.warnings), *self.own_warnings]))

    @property
    def own_warnings(self) -> tuple[Flagged, ...]:
        """Return the warnings of learning rate and batch size, of the code, then of the plan."""
        flags = [warning("lr_limited", words) for words in self.lr_limited]
        flags += [warning("batch_limited", words) for words in self.batch_limited]
        flags += [] if self.mixed_code is None else [warning("mixed_code", self.mixed_code)]
        return (*(flag.text for flag in flags), *self.plan.warnings)

    @cached_property
    def mixed_code(self) -> str | None:
        """The sentence on results of other code than the newest; None where all have the same."""
        return mixed_code(Ledger(self.paths), self.results)

    @property
    def damage(self) -> tuple[Flag, ...]:
        """Warnings of the results that are left out because their files are gone or cannot be believed."""
        return outcome_flags(Ledger(self.paths), self.damaged)

    def to_frame(self) -> pd.DataFrame:
        """One row per experiment of the plan."""
        states = {e.key: "waiting" for e in self.waiting} | {e.key: "damaged" for e in self.damaged}
        states |= {e.key: "running" for e, _ in self.running}
        return results_table(self.plan.experiments, self.outcomes, states)


def fit_options(spec: SweepSpec, reach: float | None = None) -> FitOptions:
    """Return the options of the fit that a spec asks for; `reach` is that of its plan."""
    wishes = {name: value for name, value in spec.fit.model_dump().items() if value is not None}
    if spec.is_adaptive and not wishes.keys() & {"window", "reach"}:
        from flops_fit_ray.planning import even_sizes

        # Its valleys differ in width, and with it in the parabola's bias
        wishes |= {"window": even_sizes(spec.grid)} if reach is None else {"reach": reach}
    return FitOptions(**wishes)


def open_sweep(root: StoragePath) -> Sweep:
    """Read a sweep directory.

    Raises:
        PlanDamagedError: its plan cannot be read.
        DirectoryError: it is not one, or its store does not answer.
        SpecError: its spec cannot be read.
        StorageError: a file cannot be read now, and may well be whole.
    """
    paths = SweepPaths(root.absolute())
    check_store_answers(root)
    if not root.is_dir():
        raise DirectoryError(f"{root}: no such directory; `flops-fit-ray run` makes one")
    if missing := [path.name for path in (paths.plan, paths.spec) if not path.exists()]:
        raise DirectoryError(f"{root}: is not a sweep directory (no {missing[0]}); give one that `run` made")
    content = read_sealed(paths.plan) or b""
    with without_collection():
        try:
            plan, origin = plan_from_json(content), value_of(Origin, content)
        except ValueError as e:
            known = recorded_origin(paths)
            way_out = "`flops-fit-ray run`" if known is None else f"what resumes the sweep: {known.command}"
            raise PlanDamagedError(f"{paths.plan}: cannot be read as a plan; it is written again by {way_out}") from e
        outcomes = Ledger(paths).outcomes(e.key for e in plan.experiments)
    return Sweep(
        paths=paths,
        spec=spec_of(paths, sealed=has_mark(content)),
        plan=plan,
        results=tuple(o for o in outcomes if isinstance(o, ExperimentResult)),
        failures=tuple(o for o in outcomes if isinstance(o, Failure)),
        command=origin.command,
        base=None if origin.base is None else Path(origin.base),
    )
